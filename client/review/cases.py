"""List the cases of a review, worst first, and open their pixels one by one."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knowmine.client.data.images import read_image
from knowmine.client.review.decisions import digest_or_none
from knowmine.client.review.sources import SiteFiles
from knowmine.client.storage.pseudo_label_store import (
    Gone,
    Pixels,
    PseudoLabel,
    index_file,
    load_mined,
    load_pixels,
)
from knowmine.shared.errors import DataError, UsageError

SHOWN_PX = 1024
"""Longest side of the image that is shown and drawn on; SAM does not see a finer one."""

OPENED = 24
"""Cases whose pixels stay in memory: the one on screen and those that the page loads ahead."""


class UnknownCase(UsageError):
    """The review has no such case."""


@dataclass(frozen=True)
class ReviewCase:
    """One pseudo-label to review, the newest of its image.

    id: the page's name for the case. shown: (h, w) of the frame that people see and draw in.
    """

    id: str
    site: SiteFiles
    label: PseudoLabel
    shown: tuple[int, int]

    @property
    def worth(self) -> float:
        """How much a label would help: low quality estimate plus disagreement of the models."""
        return (1 - self.label.quality) + (self.label.disagreement or 0.0)


class Cases:
    """The cases of several sites. Rounds that end meanwhile add theirs. Safe to use from threads."""

    def __init__(self, sites: Sequence[SiteFiles]) -> None:
        self._sites = sites
        self._lock = threading.Lock()
        self._state: tuple[Any, ...] = ()
        self._sorted: list[ReviewCase] = []
        self._by_id: dict[str, ReviewCase] = {}
        self._opened: OrderedDict[tuple[str, int], Pixels] = OrderedDict()

    def listed(self) -> list[ReviewCase]:
        """All cases, lowest quality first. It is the same list object until something changes."""
        with self._lock:
            state = tuple(_index_state(site) for site in self._sites)
            if state != self._state:
                found = [
                    _case(site, label)
                    for site in self._sites
                    for label in load_mined(site.folder, site.seal)
                ]
                self._sorted = sorted(found, key=lambda case: (case.label.quality, case.id))
                self._by_id = {case.id: case for case in found}
                self._state = state
            return self._sorted

    def get(self, id_: str) -> ReviewCase:
        """The case with that id, as it was last listed. Raises `UnknownCase`."""
        if id_ not in self._by_id:
            self.listed()
        try:
            return self._by_id[id_]
        except KeyError:
            raise UnknownCase(f"no case {id_} in this review: load the page again") from None

    def pixels(self, case: ReviewCase) -> Pixels:
        """Image and masks of a case. Raises `Gone` if a newer round has replaced them."""
        key = case.id, case.label.round
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
        found = load_pixels(case.site.folder, case.label, case.site.seal)
        with self._lock:
            self._opened[key] = found
            while len(self._opened) > OPENED:
                self._opened.popitem(last=False)
        return found


def original_image(case: ReviewCase) -> NDArray[np.uint8] | None:
    """The image (H, W, 3) in the data folder; None if it is not the file that the round used."""
    path = case.site.images.get(case.label.case_id)
    if path is None or digest_or_none(path) != case.label.digest:
        return None
    try:
        return read_image(path)
    except DataError:
        return None


def page_id(site: SiteFiles, case_id: str) -> str:
    """The page's name for a case; it does not reveal the case id."""
    text = f"{site.name}/{case_id}".encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def in_round(case: ReviewCase, round_: int) -> ReviewCase:
    """The case if its pseudo-label is from round `round_`; raises `Gone` if it is newer."""
    if case.label.round != round_:
        raise Gone(f"round {case.label.round} has mined this image again: open the case again")
    return case


def _index_state(site: SiteFiles) -> tuple[Path, int] | None:
    """A value that changes with each round that mines at the site."""
    index = index_file(site.folder, site.seal)
    return (index, index.stat().st_mtime_ns) if index.exists() else None


def _case(site: SiteFiles, label: PseudoLabel) -> ReviewCase:
    if label.classes != 1:
        raise UsageError(
            f"the run has {label.classes} classes; review can correct masks of one class only"
        )
    if Path(label.case_id).name != label.case_id:
        raise DataError(f"{site.folder} names a case {label.case_id!r}, which is not a file name")
    height, width = label.size
    scale = min(1.0, SHOWN_PX / max(height, width))
    shown = max(1, round(height * scale)), max(1, round(width * scale))
    return ReviewCase(page_id(site, label.case_id), site, label, shown)
