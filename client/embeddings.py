"""SAM's image embeddings: computed once, kept on disk, never trusted blindly.

An embedding costs a second or more and never changes, so a second round reads it back. The
key is the image's content and SAM's: copies of an image share one file, and other weights
find nothing that is theirs.
"""

import io
import secrets
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowmine.client.sam import EMBEDDING_SHAPE, Sam
from knowmine.shared.errors import CannotWrite
from knowmine.shared.weights import write_atomically

_HALF_MAX = float(np.finfo(np.float16).max)


class EmbeddingStore:
    """Embeddings by image digest, below `folder`, about 2 MB each.

    `encoded` counts the encoder's runs in this process: it stands still in a second round.
    """

    def __init__(self, folder: Path, sam: Sam) -> None:
        self.encoded = 0
        self._sam = sam
        self._folder = folder / sam.digest[:16]

    def has(self, image_digest: str) -> bool:
        """Whether a sound embedding of that image is on disk."""
        return _read(self._path(image_digest)) is not None

    def get(self, image_digest: str, read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float16]:
        """The embedding (256, 64, 64) float16 of the image with that SHA-256.

        Args:
            image_digest: hex, of the image file's content.
            read: gives the image (H, W, 3), original frame; called only on a miss.

        Raises `CannotWrite` where the embedding cannot be written, for instance on a full disk.
        """
        path = self._path(image_digest)
        kept = _read(path)
        if kept is not None:
            return kept
        embedding = self._sam.embed(read())
        self.encoded += 1
        half = embedding.clip(-_HALF_MAX, _HALF_MAX).astype(np.float16)
        self._write(path, half)
        return half

    def _path(self, image_digest: str) -> Path:
        return self._folder / image_digest[:2] / f"{image_digest}.npy"

    def _write(self, path: Path, half: NDArray[np.float16]) -> None:
        # A name of its own: two processes may embed the same image at once.
        own = path.with_name(f"{path.stem}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(own, _packed(half))
            own.replace(path)
        except OSError as error:
            raise CannotWrite(
                f"cannot write an embedding of {half.nbytes // 1024} KiB to {self._folder} "
                f"({error.strerror or error}); free space there or choose another folder, then "
                "resume: embeddings already written are kept"
            ) from error


def _packed(half: NDArray[np.float16]) -> bytes:
    """The array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, half, allow_pickle=False)
    return file.getvalue()


def _read(path: Path) -> NDArray[np.float16] | None:
    """The embedding at `path`, or None where there is none that can be trusted."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            whole = not file.read(1)
    except (OSError, ValueError, EOFError):
        return None
    sound = (
        whole
        and array.shape == EMBEDDING_SHAPE
        and array.dtype == np.float16
        and bool(np.isfinite(array).all())
    )
    return array if sound else None
