"""Keep what people decided about pseudo-labels, and give it to the next round.

```
SITE/reviews.jsonl            one line a decision, append-only; the last line of a case counts
SITE/masks_reviewed/A.D.png   the accepted mask of case A, 0 and 255; D begins its SHA-256
SITE/masks_drafts/W/A.png     strokes of browser window W on case A, without a decision yet
```
Each accepted mask has its own file name. It is written before the decision that holds its digest,
and the mask that it replaces is removed after that. So after a crash at any point, the last
decision still has its mask. Only the number of labelled images ever leaves the site.
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

from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.images import digest_of_file, read_mask, resize_mask
from knowmine.shared.errors import DataError
from knowmine.shared.files import write_atomically

REVIEWS, MASKS, DRAFTS = "reviews.jsonl", "masks_reviewed", "masks_drafts"

Verdict = Literal["accepted", "corrected", "rejected", "skipped", "withdrawn"]


class Decision(BaseModel):
    """One person's decision on one pseudo-label: a line of `reviews.jsonl`.

    round: of the pseudo-label that was reviewed. sam_sha256: of the SAM that was loaded for clicks;
    None if none was. role: of the person, never a name. window: the browser window.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    case_id: str
    verdict: Verdict
    role: str
    when: datetime
    round: int
    image_sha256: str
    mask_sha256: str | None
    sam_sha256: str | None
    window: str

    @property
    def is_label(self) -> bool:
        """Whether the mask is used as a label."""
        return self.verdict in ("accepted", "corrected")


def after_review(unlabelled: ImageSet, folder: Path) -> tuple[ImageSet, ImageSet | None]:
    """Divide the unlabelled images by the decisions: those left to mine, and those with labels.

    folder: the site's own. The second set has the accepted masks as `truth`; it is None if there
    are none. Rejected images are in neither set. A decision counts only while image and mask are
    the files that the person saw. Without decisions the first set is `unlabelled` itself.
    """
    decided = read_decisions(folder)
    if not decided:
        return unlabelled, None
    px = unlabelled.images.shape[-1]
    rest, rows, masks = [], [], []
    for row, case in enumerate(unlabelled.cases):
        decision = decided.get(case.case_id)
        if decision is None or decision.image_sha256 != unlabelled.digests[row]:
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
    """The last decision on each case. A line that a crash cut short is ignored."""
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
        last[decision.case_id] = decision
    return last


def append_decision(folder: Path, decision: Decision) -> None:
    """Append the decision to `reviews.jsonl`; it is on the disk when this returns."""
    with (folder / REVIEWS).open("a+b") as file:
        # If a crash cut the last line short, the decision needs a line of its own.
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
        cut = bool(end) and file.read(1) != b"\n"
        file.write((b"\n" if cut else b"") + decision.model_dump_json().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def forget_review(folder: Path, case_id: str) -> int:
    """Remove the reviewed masks, strokes and decisions of a case; return the number of files."""
    reviewed = re.compile(re.escape(case_id) + r"\.[0-9a-f]{16}\.png")
    files = [path for path in _in(folder / MASKS) if reviewed.fullmatch(path.name)]
    files += [
        draft_path(folder, case_id, window) for window in draft_windows(folder).get(case_id, ())
    ]
    for path in files:
        path.unlink(missing_ok=True)
    if case_id in read_decisions(folder):
        lines = (folder / REVIEWS).read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if not _is_of(line, case_id)]
        write_atomically(folder / REVIEWS, b"".join(kept))
        files.append(folder / REVIEWS)
    return len(files)


def _is_of(line: bytes, case_id: str) -> bool:
    try:
        return Decision.model_validate_json(line).case_id == case_id
    except ValidationError:
        return False


def save_mask(path: Path, png: bytes) -> None:
    """Write a mask, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png)


def save_label(folder: Path, case_id: str, png: bytes) -> str:
    """Write an accepted mask under its own file name; return its SHA-256."""
    digest = hashlib.sha256(png).hexdigest()
    save_mask(mask_path(folder, case_id, digest), png)
    return digest


def label_path(folder: Path, decision: Decision) -> Path | None:
    """The accepted mask of a decision; None if the file is missing or was changed."""
    if not decision.is_label or decision.mask_sha256 is None:
        return None
    path = mask_path(folder, decision.case_id, decision.mask_sha256)
    return path if digest_or_none(path) == decision.mask_sha256 else None


def mask_path(folder: Path, case_id: str, digest: str) -> Path:
    """The file of a reviewed mask with that SHA-256."""
    return folder / MASKS / f"{case_id}.{digest[:16]}.png"


def draft_path(folder: Path, case_id: str, window: str) -> Path:
    """The file of a window's strokes on a case."""
    return folder / DRAFTS / window / f"{case_id}.png"


def draft_windows(folder: Path) -> Mapping[str, Sequence[str]]:
    """The windows that have strokes on a case, by case id."""
    found: dict[str, list[str]] = {}
    for window in _in(folder / DRAFTS):
        for path in _in(window):
            if path.suffix == ".png" and path.is_file():
                found.setdefault(path.stem, []).append(window.name)
    return found


def _in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def digest_or_none(path: Path) -> str | None:
    """SHA-256 of a file; None if it cannot be read."""
    try:
        return digest_of_file(path)
    except DataError:
        return None
