"""A few of a round's pseudo-labels for the report; what a person reviews are all, in pseudo_label_store.py."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowmine.client.mining.fusion import Floats
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.pseudo_label_store import forget_mined
from knowmine.shared.files import write_atomically

WORST, BEST = 4, 2
"""How many of the pseudo-labels with the lowest and the highest predicted Dice are kept."""
SAMPLE = 60
"""Of how many, evenly from worst to best, the mask alone is kept: to compare predicted Dice with the truth in a simulation."""


@dataclass(frozen=True)
class Kept:
    """One pseudo-label. image: (S, S, 3) uint8; the masks: (S, S) float32 in [0, 1], all
    classes joined; sam is None if SAM was not prompted. digest and size (H, W) are those of the
    image's file.
    """

    round: int
    case_id: str
    image: NDArray[np.uint8]
    unet: Floats
    sam: Floats | None
    label: Floats
    quality: float
    kept: bool
    digest: str
    size: tuple[int, int]
    classes: int


@dataclass(frozen=True)
class Sampled:
    """A pseudo-label's mask without its picture. mask: (S, S) bool, all classes joined."""

    round: int
    case_id: str
    quality: float
    kept: bool
    mask: NDArray[np.bool_]


def save_gallery(
    folder: Path,
    round_: int,
    found: PseudoLabels,
    *,
    seal: Seal | None = None,
) -> None:
    """Keep the pseudo-labels of a round with the lowest and highest predicted Dice, as `mined-0002.npz`.

    seal: encrypts the file, which is then `mined-0002.sealed`.
    """
    images, seen, quality, kept = (
        found.images,
        found.predictions,
        found.quality,
        found.selection.kept,
    )
    order = np.argsort(quality, kind="stable")
    rows = np.unique(np.concatenate([order[:WORST], order[-BEST:]]))
    sample = order[np.linspace(0, len(order) - 1, min(len(order), SAMPLE)).round().astype(int)]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        case_ids=np.array([images.cases[row].case_id for row in rows]),
        images=images.images[rows].numpy(),
        unet=_bytes(seen.unet[rows]),
        sam=_bytes(seen.sam[rows]),
        prompted=seen.prompted[rows] & (seen.sam is not seen.unet),
        labels=_bytes(found.masks[rows]),
        quality=quality[rows],
        kept=kept[rows],
        digests=np.array([images.digests[row] for row in rows]),
        sizes=np.array([images.sizes[row] for row in rows], np.int64),
        classes=np.array(found.masks.shape[1]),
        sample_case_ids=np.array([images.cases[row].case_id for row in sample]),
        sample_quality=quality[sample],
        sample_kept=kept[sample],
        sample_masks=np.packbits(found.masks[sample].max(1) > 0.5, axis=-1),
    )
    name = f"mined-{round_:04d}"
    if seal is None:
        write_atomically(folder / f"{name}.npz", content.getvalue())
    else:
        write_atomically(folder / f"{name}.sealed", seal.seal("gallery", name, content.getvalue()))


def load_gallery(folder: Path, rounds: int, *, seal: Seal | None = None) -> list[Kept]:
    """The pseudo-labels kept in a site's folder in its last `rounds` mining rounds, oldest first.

    Sealed files whose key is gone or that are damaged show nothing.
    """
    found = []
    for file in mined_files(folder, seal)[-rounds:]:
        content = _content_of(file, seal)
        if content is None:
            continue
        sizes = content["sizes"]
        found += [
            Kept(
                round=int(file.stem.removeprefix("mined-")),
                case_id=str(content["case_ids"][i]),
                image=content["images"][i].transpose(1, 2, 0),
                unet=content["unet"][i] / np.float32(255),
                sam=content["sam"][i] / np.float32(255) if content["prompted"][i] else None,
                label=content["labels"][i] / np.float32(255),
                quality=float(content["quality"][i]),
                kept=bool(content["kept"][i]),
                digest=str(content["digests"][i]),
                size=(int(sizes[i, 0]), int(sizes[i, 1])),
                classes=int(content["classes"]),
            )
            for i in range(len(content["case_ids"]))
        ]
    return found


def load_sample(folder: Path, rounds: int, *, seal: Seal | None = None) -> list[Sampled]:
    """Masks of a site's last `rounds` mining rounds, evenly from the lowest predicted Dice to the highest."""
    found = []
    for file in mined_files(folder, seal)[-rounds:]:
        content = _content_of(file, seal)
        if content is None:
            continue
        px = content["images"].shape[-1]
        masks = np.unpackbits(content["sample_masks"], axis=-1, count=px).astype(bool)
        found += [
            Sampled(
                round=int(file.stem.removeprefix("mined-")),
                case_id=str(content["sample_case_ids"][i]),
                quality=float(content["sample_quality"][i]),
                kept=bool(content["sample_kept"][i]),
                mask=mask,
            )
            for i, mask in enumerate(masks)
        ]
    return found


_NAMING = ("case_ids", "sample_case_ids")
"""Arrays of a file that name cases."""


def mined_files(folder: Path, seal: Seal | None = None) -> list[Path]:
    """What `save_gallery` wrote into a site's folder, oldest round first."""
    return sorted(folder.glob("mined-*.npz" if seal is None else "mined-*.sealed"))


def forget_in_gallery(folder: Path, case_id: str, seal: Seal | None) -> int:
    """Destroy keys and files of the rounds in whose gallery a case is, and of its own pseudo-label;
    how many there were.
    """
    found = forget_mined(folder, case_id, seal)
    for file in mined_files(folder, seal):
        content = _content_of(file, seal)
        # A file that cannot be read may show this case, and is of no use.
        named = content is not None and all(key in content for key in _NAMING)
        if content is None or not named or any(case_id in content[key] for key in _NAMING):
            if seal:
                seal.destroy("gallery", file.stem)
            file.unlink(missing_ok=True)
            found += 1
    return found


def _content_of(file: Path, seal: Seal | None) -> dict[str, NDArray[Any]] | None:
    content: bytes | None = file.read_bytes()
    if seal is not None:
        content = seal.unseal("gallery", file.stem, content or b"")
    if content is None:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return dict(arrays)


def _bytes(masks: Floats) -> NDArray[np.uint8]:
    joined: NDArray[np.uint8] = (masks.max(1) * 255 + 0.5).astype(np.uint8)
    return joined
