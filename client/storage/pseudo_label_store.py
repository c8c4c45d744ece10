"""The newest pseudo-label of every image that was mined, kept at the site for people to review.

```
SITE/mined/index.json       one line of figures an image; sealed sites: index.sealed
SITE/mined/ALIAS-0003.zst   picture and masks of one image in round 3; sealed sites: .sealed
```
A review lists thousands by the index alone and opens only what is looked at. Files of a round are
written before the index that names them, and what no index names any more goes after it: whenever
a crash comes, the index names whole files. Lost files cost nothing that a round does not make again.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from knowmine.client.mining.fusion import Floats, dice_of
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.storage.encryption import Seal
from knowmine.shared.errors import DataError
from knowmine.shared.files import write_atomically

MINED = "mined"
QUOTA_BYTES = 2 << 30
"""Most that a site's pseudo-labels may take on disk; those mined longest ago go first."""

_LEVEL = 3
_MOST_BYTES = 64 << 20
"""No pseudo-label is unpacked into more: two thousand pixels a side."""


class Gone(DataError):
    """A newer round has taken the place of what was listed."""


class PseudoLabel(BaseModel):
    """What the index says of one image's newest pseudo-label.

    disagreement: 1 - Dice of U-Net++ and SAM, None if SAM was not prompted. digest and size (H, W)
    are those of the image's file. bytes: of its file here.
    """

    model_config = ConfigDict(frozen=True)

    case_id: str
    round: int
    quality: float
    kept: bool
    disagreement: float | None
    digest: str
    size: tuple[int, int]
    classes: int
    bytes: int


@dataclass(frozen=True)
class Pixels:
    """image: (S, S, 3) uint8; the masks: (S, S) float32 in [0, 1], all classes joined; sam is None
    if SAM was not prompted.
    """

    image: NDArray[np.uint8]
    unet: Floats
    sam: Floats | None
    label: Floats


_INDEX = TypeAdapter(list[PseudoLabel])


def save_mined(
    folder: Path,
    round_: int,
    found: PseudoLabels,
    *,
    seal: Seal | None = None,
    quota_bytes: int = QUOTA_BYTES,
) -> None:
    """Put a round's pseudo-labels in the place of older ones of the same images.

    folder: the site's own. seal: encrypts what is written. One image at a time is in memory.
    """
    own = folder / MINED
    own.mkdir(exist_ok=True)
    images, seen = found.images, found.predictions
    prompted = seen.prompted & (seen.sam is not seen.unet)
    differ = 1 - dice_of(
        seen.unet.max(1, keepdims=True) > 0.5, seen.sam.max(1, keepdims=True) > 0.5
    )
    index = {one.case_id: one for one in load_mined(folder, seal)}
    for row, case in enumerate(images.cases):
        of_sam = [seen.sam[row]] if prompted[row] else []
        masks = [seen.unet[row], *of_sam, found.masks[row]]
        content = _packed(images.images[row].numpy(), masks)
        if seal is not None:
            content = seal.seal("gallery", _sealed_as(case.case_id, seal), content)
        _write_whole(_file(own, case.case_id, round_, seal), content)
        index[case.case_id] = PseudoLabel(
            case_id=case.case_id,
            round=round_,
            quality=float(found.quality[row]),
            kept=bool(found.selection.kept[row]),
            disagreement=float(differ[row]) if prompted[row] else None,
            digest=images.digests[row],
            size=images.sizes[row],
            classes=found.masks.shape[1],
            bytes=len(content),
        )
    _write_index(folder, _within(index.values(), quota_bytes), seal)


def load_mined(folder: Path, seal: Seal | None = None) -> list[PseudoLabel]:
    """What is kept of a site's folder, in no order; nothing where the key is gone."""
    file = index_file(folder, seal)
    try:
        content: bytes | None = file.read_bytes()
    except FileNotFoundError:
        return []
    if seal is not None:
        content = seal.unseal("gallery", "mined index", content or b"")
    try:
        return [] if content is None else _INDEX.validate_json(content)
    except ValidationError:
        return []  # damaged, or of another version: the next round writes it again


def load_pixels(folder: Path, label: PseudoLabel, seal: Seal | None = None) -> Pixels:
    """Picture and masks of one that `load_mined` listed; raises `Gone` where they are no more."""
    gone = Gone(
        f"the pseudo-label of round {label.round} is not here any more: a round replaced it"
    )
    try:
        content: bytes | None = _file(folder / MINED, label.case_id, label.round, seal).read_bytes()
    except FileNotFoundError:
        raise gone from None
    if seal is not None:
        content = seal.unseal("gallery", _sealed_as(label.case_id, seal), content or b"")
    if content is None:
        raise gone
    try:
        return _unpacked(content)
    except (zstandard.ZstdError, ValueError, KeyError, EOFError):
        raise gone from None


def forget_mined(folder: Path, case_id: str, seal: Seal | None) -> int:
    """Destroy key and files of one case's pseudo-labels; how many there were."""
    own = folder / MINED
    if not own.is_dir():
        return 0
    files = list(own.glob(f"{_alias(case_id, seal)}-*"))
    listed = load_mined(folder, seal)
    kept = [one for one in listed if one.case_id != case_id]
    if seal is not None:
        seal.destroy("gallery", _sealed_as(case_id, seal))
        # What cannot be opened may name the case, and is of no use.
        if not listed:
            index_file(folder, seal).unlink(missing_ok=True)
    for file in files:
        file.unlink(missing_ok=True)
    if len(kept) < len(listed):
        if seal is not None:
            seal.destroy("gallery", "mined index")  # older copies of it name the case
        _write_index(folder, kept, seal)
    return len(files)


def index_file(folder: Path, seal: Seal | None = None) -> Path:
    """What changes whenever there is something new to review."""
    return folder / MINED / ("index.json" if seal is None else "index.sealed")


def _within(labels: Iterable[PseudoLabel], quota_bytes: int) -> list[PseudoLabel]:
    """As many as there is room for: the newest rounds, of each the lowest predicted Dice first."""
    kept, size = [], 0
    for label in sorted(labels, key=lambda one: (-one.round, one.quality, one.case_id)):
        size += label.bytes
        if size > quota_bytes:
            break
        kept.append(label)
    return kept


def _write_index(folder: Path, labels: Sequence[PseudoLabel], seal: Seal | None) -> None:
    content = _INDEX.dump_json(list(labels))
    if seal is not None:
        content = seal.seal("gallery", "mined index", content)
    write_atomically(index_file(folder, seal), content)
    named = {_file(folder / MINED, one.case_id, one.round, seal).name for one in labels}
    suffix = _suffix(seal)
    for entry in os.scandir(folder / MINED):
        old = entry.name.endswith(suffix) and entry.name not in named
        if (old or entry.name.endswith(".tmp")) and not entry.name.startswith("index."):
            Path(entry.path).unlink(missing_ok=True)


def _write_whole(path: Path, content: bytes) -> None:
    """A file that is whole or not there. No sync: what a power cut costs, a round makes again."""
    own = path.with_name(path.name + ".tmp")
    try:
        own.write_bytes(content)
        own.replace(path)
    except OSError:
        own.unlink(missing_ok=True)
        raise


def _file(own: Path, case_id: str, round_: int, seal: Seal | None) -> Path:
    return own / f"{_alias(case_id, seal)}-{round_:04d}{_suffix(seal)}"


def _suffix(seal: Seal | None) -> str:
    return ".zst" if seal is None else ".sealed"


def _alias(case_id: str, seal: Seal | None) -> str:
    """A name that fits every disk and that only the key relates to the case."""
    if seal is not None:
        return seal.alias("mined", case_id)[:32]
    return hashlib.sha256(case_id.encode(errors="surrogateescape")).hexdigest()[:32]


def _sealed_as(case_id: str, seal: Seal) -> str:
    return f"mined|{_alias(case_id, seal)}"


def _packed(image: NDArray[np.uint8], masks: Sequence[Floats]) -> bytes:
    """image: (3, S, S) uint8; masks: (C, S, S) each, of which the classes are joined."""
    joined = [(mask.max(0) * 255 + 0.5).astype(np.uint8) for mask in masks]
    file = io.BytesIO()
    np.save(file, np.concatenate([image, np.stack(joined)]), allow_pickle=False)
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(file.getvalue())


def _unpacked(content: bytes) -> Pixels:
    plain = zstandard.ZstdDecompressor().decompress(content, max_output_size=_MOST_BYTES)
    stack = np.load(io.BytesIO(plain), allow_pickle=False)
    if stack.dtype != np.uint8 or stack.ndim != 3 or len(stack) not in (5, 6):
        raise ValueError(f"a stack of {stack.shape} {stack.dtype}; expected 5 or 6 planes")
    masks = stack[3:] / np.float32(255)
    sam = masks[1] if len(masks) == 3 else None
    return Pixels(stack[:3].transpose(1, 2, 0), masks[0], sam, masks[-1])
