"""SAM's image embeddings: computed once, kept on disk, never trusted blindly.

An embedding costs a second or more and never changes, so a second round reads it back. The
key is the image's content, SAM's, and SAM's precision: copies of an image share one file, and other
weights, another precision or another way to prepare images find nothing that is theirs.
"""

import contextlib
import io
import os
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from knowmine.client.sam.interface import Sam, embedding_shape
from knowmine.shared.errors import CannotWrite
from knowmine.shared.files import write_atomically

_HALF_MAX = float(np.finfo(np.float16).max)


class Seal(Protocol):
    """What embeddings need of the project's encryption (`client.storage.encryption`)."""

    def alias(self, purpose: str, name: str) -> str:
        """A name that only the holder of the key can relate to `name`."""

    def seal(self, kind: Literal["embedding"], name: str, content: bytes) -> bytes:
        """`content`, encrypted with a key of its own."""

    def unseal(self, kind: Literal["embedding"], name: str, content: bytes) -> bytes | None:
        """The content; None if the key is gone or the bytes are damaged."""

    def destroy(self, kind: Literal["embedding"], name: str) -> bool:
        """Destroy the key; whether there was one."""


class EmbeddingStore:
    """Embeddings by image digest, below `folder`, about 2 MB each.

    seal: encrypts them, and names them so that only the key relates a name to an image.
    quota_bytes: largest size of them all; the least recently used go first. 0 is no limit.
    `encoded` counts the encoder's runs in this process: it stands still in a second round.
    Threads may share it.
    """

    def __init__(
        self, folder: Path, sam: Sam, *, seal: Seal | None = None, quota_bytes: int = 0
    ) -> None:
        self.encoded = 0
        self._sam, self._seal, self._quota = sam, seal, quota_bytes
        self._folder = folder_of(folder, seal) / f"{sam.digest[:16]}{sam.form}"
        self._size: int | None = None
        self._counting = threading.Lock()

    def has(self, image_digest: str) -> bool:
        """Whether a sound embedding of that image is on disk."""
        return self._read(image_digest) is not None

    def get(self, image_digest: str, read: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float16]:
        """The embedding float16 of the image with that SHA-256.

        Args:
            image_digest: hex, of the image file's content.
            read: gives the image (H, W, 3), original frame; called only on a miss.

        Raises `CannotWrite` where the embedding cannot be written, for instance on a full disk.
        """
        kept = self.find(image_digest)
        return self.make(image_digest, read()) if kept is None else kept

    def find(self, image_digest: str) -> NDArray[np.float16] | None:
        """The embedding that is on disk, None where there is no sound one."""
        kept = self._read(image_digest)
        if kept is not None and self._quota:
            # Its time of change is when it was used last: disks often keep no time of reading.
            with contextlib.suppress(FileNotFoundError):
                os.utime(self._path(image_digest))
        return kept

    def make(self, image_digest: str, image: NDArray[np.uint8]) -> NDArray[np.float16]:
        """The embedding of an image (H, W, 3), original frame, which is on disk from here on.

        Raises `CannotWrite` where it cannot be written, for instance on a full disk.
        """
        embedding = self._sam.embed(image)
        with self._counting:
            self.encoded += 1
        half = embedding.clip(-_HALF_MAX, _HALF_MAX).astype(np.float16)
        self._write(image_digest, half)
        return half

    def _path(self, image_digest: str) -> Path:
        if self._seal is None:
            return self._folder / image_digest[:2] / f"{image_digest}.npy"
        return sealed_path(self._folder, self._seal.alias("embedding", image_digest))

    def _read(self, image_digest: str) -> NDArray[np.float16] | None:
        path = self._path(image_digest)
        if self._seal is None:
            return _read(path, embedding_shape(self._sam.input_px))
        try:
            content = self._seal.unseal("embedding", name_of(path), path.read_bytes())
        except OSError:
            return None
        # What the seal vouches for was checked when it was written: we wrote it.
        return None if content is None else _unpacked(content, embedding_shape(self._sam.input_px))

    def _write(self, image_digest: str, half: NDArray[np.float16]) -> None:
        path = self._path(image_digest)
        # A name of its own: two processes may embed the same image at once.
        own = path.with_name(f"{path.stem}.{secrets.token_hex(4)}")
        content = _packed(half)
        try:
            if self._seal is not None:
                content = self._seal.seal("embedding", name_of(path), content)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(own, content)
            own.replace(path)
        except OSError as error:
            raise CannotWrite(
                f"cannot write an embedding of {half.nbytes // 1024} KiB to {self._folder} "
                f"({error.strerror or error}); free space there or choose another folder, then "
                "resume: embeddings already written are kept"
            ) from error
        if self._quota:
            with self._counting:
                self._make_room(path, len(content))

    def _make_room(self, newest: Path, added: int) -> None:
        """Let the least recently used go until a tenth of the quota is free."""
        self._size = None if self._size is None else self._size + added
        if self._size is not None and self._size <= self._quota:
            return
        files = {}
        for path in self._folder.glob("*/*"):
            # What others are writing has another ending; what others removed is gone.
            if path.suffix in (".npy", ".sealed"):
                with contextlib.suppress(FileNotFoundError):
                    files[path] = path.stat()
        self._size = sum(seen.st_size for seen in files.values())
        if self._size <= self._quota:
            return
        for path, seen in sorted(files.items(), key=lambda pair: pair[1].st_mtime_ns):
            if self._size <= 0.9 * self._quota:
                return
            if path != newest:
                path.unlink(missing_ok=True)
                self._size -= seen.st_size


def folder_of(folder: Path, seal: Seal | None) -> Path:
    """Where a project's embeddings are: sealed ones apart from those of other projects."""
    return folder if seal is None else folder / f"sealed-{seal.alias('project', '')[:16]}"


def sealed_path(folder: Path, alias: str) -> Path:
    """Where a sealed embedding is, in the folder of one SAM; alias: of its image's digest."""
    return folder / alias[:2] / f"{alias}.sealed"


def name_of(path: Path) -> str:
    """What a sealed embedding is bound to: its SAM, and its image by alias."""
    return f"{path.parents[1].name}|{path.stem}"


def forget_embeddings(folder: Path, seal: Seal, aliases: Iterable[str]) -> int:
    """Destroy keys and files of images' sealed embeddings, of any SAM; how many there were."""
    found = 0
    for alias in aliases:
        for of_sam in sorted(folder_of(folder, seal).glob("*")):
            path = sealed_path(of_sam, alias)
            known = seal.destroy("embedding", name_of(path))
            there = path.exists()
            path.unlink(missing_ok=True)
            found += known or there
    return found


def forget_plain(folder: Path, digests: Iterable[str]) -> int:
    """Remove images' embeddings that are not sealed, of any SAM; how many there were."""
    found = 0
    for digest in digests:
        for path in folder.glob(f"*/{digest[:2]}/{digest}.npy"):
            path.unlink(missing_ok=True)
            found += 1
    return found


def _packed(half: NDArray[np.float16]) -> bytes:
    """The array as the bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, half, allow_pickle=False)
    return file.getvalue()


def _read(path: Path, expected: tuple[int, ...]) -> NDArray[np.float16] | None:
    """The embedding at `path`, or None where there is none that can be trusted."""
    try:
        with path.open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            whole = not file.read(1)
    except (OSError, ValueError, EOFError):
        return None
    sound = (
        whole
        and array.shape == expected
        and array.dtype == np.float16
        and bool(np.isfinite(array).all())
    )
    return array if sound else None


def _unpacked(content: bytes, expected: tuple[int, ...]) -> NDArray[np.float16] | None:
    """The array in the bytes of a sealed .npy file."""
    file = io.BytesIO(content)
    try:
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        return None
    if shape != expected or fortran or dtype != np.float16:
        return None
    # A copy, for torch wants to be able to write to what it is given.
    return np.frombuffer(content, np.float16, offset=file.tell()).reshape(shape).copy()
