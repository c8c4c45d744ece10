"""What people decided about pseudo-labels: labels and exclusions from the next round on.

```
SITE/reviews.jsonl               a line for each decision, only ever added to; the last of a case counts
SITE/masks_reviewed/A.5f0c….png  the mask that was accepted for image A, 0 and 255, named by its digest
SITE/masks_drafts/A.png/7b….png  strokes of one window that it has not decided about yet
```
A mask is written before its decision, and the one that it takes the place of goes after it: at any
moment the last decision has its mask. One whose mask is gone or another counts for nothing, and the
case is open again. Nothing of this leaves the site but the count of labelled images.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from knowmine.client.site import Kind
from knowmine.shared.errors import DataError
from knowmine.shared.images import digest_of_file, read_mask, resize_mask
from knowmine.shared.weights import write_atomically

REVIEWS, MASKS, DRAFTS = "reviews.jsonl", "masks_reviewed", "masks_drafts"
_DIGITS = 16
_SUFFIX = len(f".{'0' * _DIGITS}.png")

Verdict = Literal["accepted", "corrected", "rejected", "skipped", "withdrawn"]


class Decision(BaseModel):
    """One person's word on one pseudo-label, as `reviews.jsonl` keeps it.

    round: of the pseudo-label that was looked at. sam_sha256: of the SAM whose clicks could be
    asked, None where none was. role: who decided, never a name.
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

    @property
    def is_label(self) -> bool:
        """Whether the mask is to be learnt from."""
        return self.verdict in ("accepted", "corrected")


def after_review(unlabelled: Kind, folder: Path) -> tuple[Kind, Kind | None]:
    """What is left to mine, and what a review made labels of, with its masks as truth.

    folder: the site's own. Where nothing was reviewed, the first is `unlabelled` itself. A
    decision counts while image and mask are the very files that were looked at.
    """
    decided = standing(folder)
    if not decided:
        return unlabelled, None
    px = unlabelled.images.shape[-1]
    rest, rows, masks = [], [], []
    for row, case in enumerate(unlabelled.cases):
        decision = decided.get(case.stem)
        if decision is None or decision.image_sha256 not in ("", unlabelled.digests[row]):
            rest.append(row)
        elif decision.is_label:
            rows.append(row)
            masks.append(resize_mask(read_mask(mask_of(folder, decision), 1), px))
        elif decision.verdict != "rejected":
            rest.append(row)
    if not rows:
        return unlabelled.at(rest), None
    truth = torch.from_numpy(np.stack(masks)[:, None] > 0)
    return unlabelled.at(rest), replace(unlabelled.at(rows), truth=truth)


def standing(folder: Path) -> Mapping[str, Decision]:
    """The last decision on each stem, without those whose mask is no longer what was accepted."""
    return {
        stem: decision
        for stem, decision in read_decisions(folder).items()
        if not decision.is_label
        or digest_or_none(mask_of(folder, decision)) == decision.mask_sha256
    }


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
    masks = [path for path in (folder / MASKS).glob("*.png") if path.name[:-_SUFFIX] == stem]
    masks += drafts_of(folder, stem)
    for path in masks:
        path.unlink(missing_ok=True)
    if stem not in read_decisions(folder):
        return len(masks)
    lines = (folder / REVIEWS).read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not _is_of(line, stem)]
    write_atomically(folder / REVIEWS, b"".join(kept))
    return len(masks) + 1


def _is_of(line: bytes, stem: str) -> bool:
    try:
        return Decision.model_validate_json(line).stem == stem
    except ValidationError:
        return False


def keep_mask(folder: Path, stem: str, png: bytes) -> str:
    """Write the mask of a decision that is about to be written, and return its SHA-256."""
    digest = hashlib.sha256(png).hexdigest()
    save_mask(_mask_path(folder, stem, digest), png)
    return digest


def save_mask(path: Path, png: bytes) -> None:
    """Write a mask, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)


def mask_of(folder: Path, decision: Decision) -> Path:
    """Where the mask of a decision that made a label is."""
    return _mask_path(folder, decision.stem, decision.mask_sha256 or "")


def _mask_path(folder: Path, stem: str, digest: str) -> Path:
    return folder / MASKS / f"{stem}.{digest[:_DIGITS]}.png"


def draft_path(folder: Path, stem: str, window: str) -> Path:
    """Where one window's strokes wait for a decision."""
    return folder / DRAFTS / f"{stem}.png" / f"{window}.png"


def drafts_of(folder: Path, stem: str) -> list[Path]:
    """The strokes of all windows on a case, the newest first."""
    found = (folder / DRAFTS / f"{stem}.png").glob("*.png")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def digest_or_none(path: Path) -> str | None:
    """SHA-256 of a file, None where there is none."""
    try:
        return digest_of_file(path)
    except DataError:
        return None
