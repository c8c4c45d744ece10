"""What people decided about pseudo-labels: labels and exclusions from the next round on.

```
SITE/reviews.jsonl            a line for each decision, only ever added to; the last of a case counts
SITE/masks_reviewed/A.D.png   the mask that was accepted for image A, 0 and 255; D: of its SHA-256
SITE/masks_drafts/W/A.png     strokes of window W that nobody has decided about yet
```
A mask has a name of its own, is written before the decision that holds its digest, and an older
one is removed after it: whenever a crash comes, the last decision has its mask. Earlier versions
wrote `masks_reviewed/A.png` and `masks_drafts/A.png`; both are still read. Nothing of this leaves
the site but the count of labelled images.
"""

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from knowmine.client.data.images import digest_of_file, read_mask, resize_mask
from knowmine.client.site.site import Kind
from knowmine.shared.errors import DataError
from knowmine.shared.weights import write_atomically

REVIEWS, MASKS, DRAFTS = "reviews.jsonl", "masks_reviewed", "masks_drafts"

Verdict = Literal["accepted", "corrected", "rejected", "skipped", "withdrawn"]


class Decision(BaseModel):
    """One person's word on one pseudo-label, as `reviews.jsonl` keeps it.

    round: of the pseudo-label that was looked at. sam_sha256: of the SAM whose clicks could be
    asked, None where none was. role: who decided, never a name. window: of the browser that they
    decided in, "" from earlier versions.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    stem: str
    verdict: Verdict
    role: str
    when: datetime
    round: int
    image_sha256: str
    mask_sha256: str | None
    sam_sha256: str | None
    window: str = ""

    @property
    def is_label(self) -> bool:
        """Whether the mask is to be learnt from."""
        return self.verdict in ("accepted", "corrected")


def after_review(unlabelled: Kind, folder: Path) -> tuple[Kind, Kind | None]:
    """What is left to mine, and what a review made labels of, with its masks as truth.

    folder: the site's own. Where nothing was reviewed, the first is `unlabelled` itself. A
    decision counts while image and mask are the very files that were looked at.
    """
    decided = read_decisions(folder)
    if not decided:
        return unlabelled, None
    px = unlabelled.images.shape[-1]
    rest, rows, masks = [], [], []
    for row, case in enumerate(unlabelled.cases):
        decision = decided.get(case.stem)
        if decision is None or decision.image_sha256 not in ("", unlabelled.digests[row]):
            rest.append(row)
        elif decision.is_label:
            path = label_path(folder, decision)
            if path is not None:
                rows.append(row)
                masks.append(resize_mask(read_mask(path, 1), px))
            else:
                rest.append(row)
        elif decision.verdict != "rejected":
            rest.append(row)
    if not rows:
        return unlabelled.at(rest), None
    truth = torch.from_numpy(np.stack(masks)[:, None] > 0)
    return unlabelled.at(rest), replace(unlabelled.at(rows), truth=truth)


def read_decisions(folder: Path) -> Mapping[str, Decision]:
    """The last decision on each stem; a line that a crash cut short is passed over."""
    try:
        lines = (folder / REVIEWS).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    last: dict[str, Decision] = {}
    for line in lines:
        try:
            decision = Decision.model_validate_json(line)
        except ValidationError:
            continue
        last[decision.stem] = decision
    return last


def append_decision(folder: Path, decision: Decision) -> None:
    """Add the decision to the site's `reviews.jsonl`; on return it is on the disk."""
    with (folder / REVIEWS).open("a+b") as file:
        # A line that a crash cut short must not swallow this one.
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        cut = bool(end) and file.read(1) != b"\n"
        file.write((b"\n" if cut else b"") + decision.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def forget_review(folder: Path, stem: str) -> int:
    """Remove a case's reviewed masks, strokes and decisions; from how many files."""
    reviewed = re.compile(re.escape(stem) + r"(\.[0-9a-f]{16})?\.png")
    files = [path for path in _in(folder / MASKS) if reviewed.fullmatch(path.name)]
    files += [draft_path(folder, stem, window) for window in draft_windows(folder).get(stem, ())]
    for path in files:
        path.unlink(missing_ok=True)
    if stem in read_decisions(folder):
        lines = (folder / REVIEWS).read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_of(line, stem)]
        write_atomically(folder / REVIEWS, b"".join(kept))
        files.append(folder / REVIEWS)
    return len(files)


def _is_of(line: bytes, stem: str) -> bool:
    try:
        return Decision.model_validate_json(line).stem == stem
    except ValidationError:
        return False


def save_mask(path: Path, png: bytes) -> None:
    """Write a mask, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)


def save_label(folder: Path, stem: str, png: bytes) -> str:
    """Write an accepted mask under a name that no other mask has; return its SHA-256."""
    digest = hashlib.sha256(png).hexdigest()
    save_mask(mask_path(folder, stem, digest), png)
    return digest


def label_path(folder: Path, decision: Decision) -> Path | None:
    """The mask that was accepted; None where it is gone, or is another than the one decided on."""
    if not decision.is_label or decision.mask_sha256 is None:
        return None
    places = (
        mask_path(folder, decision.stem, decision.mask_sha256),
        folder / MASKS / f"{decision.stem}.png",  # of earlier versions
    )
    return next((path for path in places if digest_or_none(path) == decision.mask_sha256), None)


def mask_path(folder: Path, stem: str, digest: str) -> Path:
    """Where the reviewed mask of an image with that SHA-256 is."""
    return folder / MASKS / f"{stem}.{digest[:16]}.png"


def draft_path(folder: Path, stem: str, window: str) -> Path:
    """Where a window's strokes wait for a decision; "" for those of earlier versions."""
    return folder / DRAFTS / window / f"{stem}.png"


def draft_windows(folder: Path) -> Mapping[str, Sequence[str]]:
    """The windows that hold strokes on a stem, by stem."""
    found: dict[str, list[str]] = {}
    for place in [folder / DRAFTS, *(path for path in _in(folder / DRAFTS) if path.is_dir())]:
        window = "" if place == folder / DRAFTS else place.name
        for path in _in(place):
            if path.suffix == ".png" and path.is_file():
                found.setdefault(path.stem, []).append(window)
    return found


def _in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def digest_or_none(path: Path) -> str | None:
    """SHA-256 of a file, None where there is none."""
    try:
        return digest_of_file(path)
    except DataError:
        return None
