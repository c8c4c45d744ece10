"""Segment a person's images with an exported model: masks, overlays, areas, DICOM SEG.

```
OUT/areas.csv             one line per image and class, and one per file that failed
OUT/masks/NAME.png        0 and 255, or the class numbers if there are several; original size
OUT/overlays/NAME.jpg     the image with the mask drawn on it
OUT/seg/NAME.dcm          for DICOM: the same masks as a DICOM Segmentation, if possible
```
A bad file gets a line in areas.csv and does not stop the others.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.predict.areas import Segmented, overlay_of, segment
from knowmine.client.predict.inputs import count_frames, explained, find_inputs, open_input
from knowmine.client.predict.networks import Network, load_network
from knowmine.client.predict.types import Input, Opened
from knowmine.shared.errors import CannotWrite, DataError, Interrupted, UsageError
from knowmine.shared.log import Progress, Silent
from knowmine.shared.model_card import ModelCard
from knowmine.shared.package import Package, open_package

COLUMNS = (
    "file",
    "frame",
    "class",
    "area_px",
    "area_mm2",
    "area_percent",
    "agreement",
    "doubt",
    "note",
    "mask",
    "error",
)
OVERLAY_PX = 4096
"""Longest side of an overlay; larger images are scaled down. Masks keep their size."""


@dataclass
class Outcome:
    """The result of a run.

    images: number of frames with a mask. doubted: names of frames whose mask should be checked
    first. failed: files without a mask, with the reason. without_seg: DICOM files with masks but
    without a DICOM SEG, with the reason.
    """

    package: Package
    out: Path
    images: int = 0
    doubted: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    without_seg: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0, or 3 if a file failed; the results of the others are written in any case."""
        return 3 if self.failed else 0


def predict_files(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    public_key: Path | None = None,
    unsigned: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Segment the images in `inputs`, files and folders, into the new folder `out`.

    public_key: the coordinator's; the model must be signed with it. unsigned: without a key, accept
    a model without a signature. Raises `PackageRefused` for a model that was changed or is not
    signed, `UsageError` for wrong arguments, `CannotWrite` for a full disk, and `Interrupted` on
    Ctrl-C; what was finished until then stays written.
    """
    progress = progress or Silent()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not empty: name a new folder for the results")
    package = open_package(model, public_key, unsigned=unsigned)
    files = find_inputs(inputs, out)
    network = load_network(package, threads)
    outcome = Outcome(package, out)
    lengths = [count_frames(file.path) for file in files]
    progress.start("segmenting", sum(lengths))
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "areas.csv").open("w", newline="", encoding="utf-8") as table:
            rows = csv.DictWriter(table, COLUMNS)
            rows.writeheader()
            for file, length in zip(files, lengths, strict=True):
                before = outcome.images
                for row in _rows_of(file, network, package.card, outcome, progress.advance):
                    rows.writerow(row)
                table.flush()
                # A file that failed halfway is finished too.
                progress.advance(length - (outcome.images - before))
    except OSError as error:
        raise CannotWrite(
            f"cannot write to {out} ({error.strerror or error}): make room; {outcome.images} "
            "images are written and listed in areas.csv"
        ) from error
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted: {outcome.images} images are written and listed in {out / 'areas.csv'}"
        ) from None
    progress.done()
    return outcome


def _rows_of(
    file: Input,
    network: Network,
    card: ModelCard,
    outcome: Outcome,
    advance: Callable[[], None],
) -> list[dict[str, Any]]:
    """Segment one file, write its results, and return its rows of areas.csv."""
    rows: list[dict[str, Any]] = []
    masks: list[NDArray[np.uint8]] = []
    try:
        opened = open_input(file.path, card.modalities)
        with explained(file.path):
            problem = _no_seg(opened, card)
        for index in range(opened.frames):
            name = file.name if opened.frames == 1 else f"{file.name}-{index + 1:04}"
            with explained(file.path):
                image = opened.read(index)
            found = segment(network, image, card.plan.model.image_px)
            _save_mask(outcome.out, name, found.mask, card.plan.model.classes)
            _save_overlay(outcome.out, name, overlay_of(image, found.mask))
            frame = index + 1 if opened.frames > 1 else None
            rows += _area_rows(file, name, frame, found, opened, card)
            if opened.header is not None and not problem:
                masks.append(found.mask)
            outcome.images += 1
            advance()
            if found.doubt:
                outcome.doubted.append(name)
        if problem := problem or _write_seg(outcome.out, file, opened, masks, card):
            outcome.without_seg[str(file.path)] = problem
            for row in rows:
                row["note"] = "; ".join(filter(None, (row["note"], problem)))
    except DataError as error:
        outcome.failed[str(file.path)] = str(error)
        rows.append({"file": file.path, "error": str(error)})
    return rows


def _area_rows(
    file: Input, name: str, frame: int | None, found: Segmented, opened: Opened, card: ModelCard
) -> Iterator[dict[str, Any]]:
    for value, class_name in enumerate(card.class_names, 1):
        area = found.area_px(value)
        spacing = opened.spacing_mm
        yield {
            "file": file.path,
            "frame": frame,
            "class": class_name,
            "area_px": area,
            "area_mm2": round(area * spacing[0] * spacing[1], 3) if spacing else None,
            "area_percent": round(100 * area / found.mask.size, 3),
            "agreement": round(found.agreement, 4),
            "doubt": "yes" if found.doubt else "no",
            "note": "; ".join(opened.notes),
            "mask": f"masks/{name}.png",
        }


def _save_mask(out: Path, name: str, mask: NDArray[np.uint8], classes: int) -> None:
    shown = mask * np.uint8(255) if classes == 1 else mask
    _save(out / "masks" / f"{name}.png", lambda path: Image.fromarray(shown).save(path))


def _save_overlay(out: Path, name: str, overlay: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(overlay)
    picture.thumbnail((OVERLAY_PX, OVERLAY_PX))
    _save(out / "overlays" / f"{name}.jpg", lambda path: picture.save(path, quality=92))


def _no_seg(opened: Opened, card: ModelCard) -> str:
    """Why there will be no DICOM SEG, so that masks need not be kept for it; "" if there may be."""
    if opened.header is None:
        return ""
    from knowmine.client.predict.dicom_seg import refusal  # late: highdicom takes half a second

    return refusal(opened.header, opened.frames, card.plan.model.classes)


def _write_seg(
    out: Path, file: Input, opened: Opened, masks: list[NDArray[np.uint8]], card: ModelCard
) -> str:
    """Write the DICOM SEG, or return why there is none; the masks exist as PNG in either case."""
    if opened.header is None:
        return ""
    from knowmine.client.predict.dicom_seg import write_seg

    header = opened.header
    try:
        _save(out / "seg" / f"{file.name}.dcm", lambda path: write_seg(path, header, masks, card))
    except DataError as error:
        return str(error)
    return ""


def _save(path: Path, save: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
