"""A round's pseudo-labels on disk: all that people at the site may look at, one file a round.

`mined-0002.npz`, or `mined-0002.sealed` where the site encrypts, holds what is known of each image
and, a member of its own for each, its small picture and its masks: one can be looked at without the
others being read.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.at_rest import Seal
from knowmine.client.pseudo_labels import Floats, Opinions, dice_of
from knowmine.client.site import Kind
from knowmine.shared.weights import write_atomically

KEPT_ROUNDS = 8
"""Mining rounds whose files stay, unless more are needed to hold each image once."""
_PICTURE_QUALITY = 92


@dataclass(frozen=True)
class PseudoLabel:
    """What is known of one without its pixels.

    disagreement: 1 - Dice of U-Net++ and SAM, None where SAM was not asked. digest and size (H, W)
    are those of the image's file. file and row: where its pixels are.
    """

    round: int
    stem: str
    quality: float
    kept: bool
    disagreement: float | None
    digest: str
    size: tuple[int, int]
    classes: int
    file: Path
    row: int


@dataclass(frozen=True)
class Pixels:
    """image: (S, S, 3) uint8; masks: (S, S) float32 in [0, 1], all classes joined; sam is None
    where SAM was not asked.
    """

    image: NDArray[np.uint8]
    unet: Floats
    sam: Floats | None
    label: Floats


def save_mined(
    folder: Path,
    round_: int,
    kind: Kind,
    opinions: Opinions,
    labels: Floats,
    quality: NDArray[np.float64],
    kept: NDArray[np.bool_],
    *,
    seal: Seal | None = None,
    rounds: int = KEPT_ROUNDS,
) -> None:
    """Keep a round's pseudo-labels, and the files of the last `rounds` rounds that mined."""
    asked = opinions.prompted & (opinions.sam is not opinions.unet)
    unsure = 1 - dice_of(opinions.unet > 0.5, opinions.sam > 0.5)
    arrays: dict[str, NDArray[Any]] = {
        "stems": np.array([case.stem for case in kind.cases]),
        "quality": quality,
        "kept": kept,
        "disagreement": np.where(asked, unsure, np.nan),
        "digests": np.array(kind.digests),
        "sizes": np.array(kind.sizes, np.int64).reshape(-1, 2),
        "classes": np.array(labels.shape[1]),
    }
    for row in range(len(kind)):
        arrays[f"image-{row}"] = _packed(kind.images[row].permute(1, 2, 0).numpy())
        arrays[f"unet-{row}"] = _bytes(opinions.unet[row])
        arrays[f"label-{row}"] = _bytes(labels[row])
        if asked[row]:
            arrays[f"sam-{row}"] = _bytes(opinions.sam[row])
    name, content = f"mined-{round_:04d}", _npz(arrays)
    if seal is None:
        write_atomically(folder / f"{name}.npz", content)
    else:
        write_atomically(folder / f"{name}.sealed", seal.seal("gallery", name, content))
    for old in mined_files(folder, seal)[:-rounds]:
        _destroy(old, seal)


def mined_files(folder: Path, seal: Seal | None = None) -> list[Path]:
    """What `save_mined` wrote into a site's folder, oldest round first."""
    return sorted(folder.glob("mined-*.npz" if seal is None else "mined-*.sealed"))


def list_mined(file: Path, seal: Seal | None = None) -> list[PseudoLabel]:
    """A file's pseudo-labels in its order; none where its key is gone or it is damaged."""
    with _opened(file, seal) as arrays:
        if arrays is None:
            return []
        classes, sizes = int(arrays["classes"]), arrays["sizes"]
        columns = (arrays[key] for key in ("stems", "quality", "kept", "disagreement", "digests"))
        return [
            PseudoLabel(
                round=int(file.stem.removeprefix("mined-")),
                stem=str(stem),
                quality=float(quality),
                kept=bool(kept),
                disagreement=None if np.isnan(unsure) else float(unsure),
                digest=str(digest),
                size=(int(sizes[row, 0]), int(sizes[row, 1])),
                classes=classes,
                file=file,
                row=row,
            )
            for row, (stem, quality, kept, unsure, digest) in enumerate(zip(*columns, strict=True))
        ]


def pixels_of(label: PseudoLabel, seal: Seal | None = None) -> Pixels | None:
    """Its picture and masks; None where its round's file is gone."""
    row = label.row
    with _opened(label.file, seal) as arrays:
        # A round that was done again may have another image in this row.
        if arrays is None or arrays["stems"][row : row + 1].tolist() != [label.stem]:
            return None
        with Image.open(io.BytesIO(arrays[f"image-{row}"].tobytes())) as picture:
            image = np.asarray(picture.convert("RGB"))
        sam = f"sam-{row}"
        return Pixels(
            image,
            arrays[f"unet-{row}"] / np.float32(255),
            arrays[sam] / np.float32(255) if sam in arrays else None,
            arrays[f"label-{row}"] / np.float32(255),
        )


def masks_of(file: Path, rows: list[int], seal: Seal | None = None) -> list[NDArray[np.bool_]]:
    """The masks, (S, S) bool, of some rows of a file."""
    with _opened(file, seal) as arrays:
        return [] if arrays is None else [arrays[f"label-{row}"] > 127 for row in rows]


def forget_mined(folder: Path, stem: str, seal: Seal | None) -> int:
    """Destroy keys and files of the rounds that a case is in; how many there were."""
    found = 0
    for file in mined_files(folder, seal):
        listed = list_mined(file, seal)
        # What cannot be opened any more might be of this case: it helps nobody.
        if not listed or any(label.stem == stem for label in listed):
            _destroy(file, seal)
            found += 1
    return found


def _destroy(file: Path, seal: Seal | None) -> None:
    if seal:
        seal.destroy("gallery", file.stem)
    file.unlink(missing_ok=True)


@contextmanager
def _opened(file: Path, seal: Seal | None) -> Iterator[Any]:
    """The arrays of a file, each read when it is asked for; None where it cannot be opened."""
    try:
        content: bytes | None = file.read_bytes()
    except FileNotFoundError:
        content = None
    if seal is not None and content is not None:
        content = seal.unseal("gallery", file.stem, content)
    if content is None:
        yield None
        return
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        yield arrays


def _npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """As `numpy.savez_compressed`, which cannot be told to hurry: a third of its time."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
    return content.getvalue()


def _packed(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=_PICTURE_QUALITY)
    return np.frombuffer(content.getvalue(), np.uint8)


def _bytes(mask: Floats) -> NDArray[np.uint8]:
    """A mask (C, S, S) as (S, S) of 0 to 255, its classes joined."""
    joined: NDArray[np.uint8] = (mask.max(0) * 255 + 0.5).astype(np.uint8)
    return joined
