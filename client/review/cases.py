"""The cases of a review, worst first: listed by their figures, opened one by one."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knowmine.client.mining.fusion import dice_of
from knowmine.client.review.sources import Place
from knowmine.client.storage.pseudo_label_store import (
    Gone,
    Pixels,
    PseudoLabel,
    index_file,
    load_mined,
    load_pixels,
)
from knowmine.client.storage.report_samples import Kept, load_gallery, mined_files
from knowmine.shared.errors import DataError, UsageError

SHOWN_PX = 1024
"""The long side of what is shown and drawn on; SAM sees no finer either."""

ROUNDS = 1000
"""Galleries that are looked through where a run of an older knowmine kept nothing else."""

OPENED = 24
"""Cases whose pixels stay in memory: the one on screen and those that the page asks ahead."""


class UnknownCase(UsageError):
    """A case that this review does not have."""


@dataclass(frozen=True)
class ReviewCase:
    """One pseudo-label to look at, the newest of its image.

    shown: (h, w) of the frame that people see and draw in. small: its pixels where they come from
    a gallery, None where they are opened when they are looked at.
    """

    id: str
    place: Place
    label: PseudoLabel
    shown: tuple[int, int]
    small: Pixels | None

    @property
    def worth(self) -> float:
        """How much a label would teach: how bad it is judged, and how much the models differ."""
        return (1 - self.label.quality) + (self.label.disagreement or 0.0)


class Cases:
    """The cases of several sites; rounds that end meanwhile add theirs. Threads may share it."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._files: tuple[Any, ...] = ()
        self._sorted: list[ReviewCase] = []
        self._by_id: dict[str, ReviewCase] = {}
        self._opened: OrderedDict[tuple[str, int], Pixels] = OrderedDict()

    def listed(self) -> list[ReviewCase]:
        """All of them, worst judged first; the same list until there is something new."""
        with self._lock:
            files = tuple(map(_seen, self._places))
            if files != self._files:
                found = [case for place in self._places for case in self._of(place)]
                self._sorted = sorted(found, key=lambda case: (case.label.quality, case.id))
                self._by_id = {case.id: case for case in found}
                self._files = files
            return self._sorted

    def get(self, id_: str) -> ReviewCase:
        """The case of that id, as it was listed last."""
        if id_ not in self._by_id:
            self.listed()
        try:
            return self._by_id[id_]
        except KeyError:
            raise UnknownCase(f"no case {id_} in this review: load the page again") from None

    def pixels(self, case: ReviewCase) -> Pixels:
        """Its picture and masks; raises `Gone` where a newer round has replaced them."""
        if case.small is not None:
            return case.small
        key = case.id, case.label.round
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
        found = load_pixels(case.place.folder, case.label, case.place.seal)
        with self._lock:
            self._opened[key] = found
            while len(self._opened) > OPENED:
                self._opened.popitem(last=False)
        return found

    def _of(self, place: Place) -> list[ReviewCase]:
        mined = load_mined(place.folder, place.seal)
        cases = {one.stem: _case(place, one, None) for one in mined}
        # Rounds of an older knowmine left a few of their pseudo-labels, in galleries only.
        since = min((one.round for one in mined), default=None)
        if since is None or any(_round_of(file) < since for file in _galleries(place)):
            for kept in load_gallery(place.folder, ROUNDS, seal=place.seal):
                if kept.stem not in cases or cases[kept.stem].label.round < kept.round:
                    cases[kept.stem] = _of_gallery(place, kept)
        return list(cases.values())


def case_id(place: Place, stem: str) -> str:
    """What the page calls a case: nothing in it tells whose it is."""
    text = f"{place.site}/{stem}".encode(errors="surrogateescape")
    return hashlib.sha256(text).hexdigest()[:16]


def of_round(case: ReviewCase, round_: int) -> ReviewCase:
    """The case if it is of the round that the page was told of; raises `Gone` if it is newer."""
    if case.label.round != round_:
        raise Gone(
            f"round {case.label.round} looked at this image again since: open the case once more"
        )
    return case


def _seen(place: Place) -> tuple[Any, ...]:
    """What changes with each round that ends at a site."""
    index = index_file(place.folder, place.seal)
    files = [*_galleries(place), *([index] if index.exists() else [])]
    return tuple((file, file.stat().st_mtime_ns) for file in files)


def _galleries(place: Place) -> list[Path]:
    return mined_files(place.folder, place.seal)


def _round_of(gallery: Path) -> int:
    return int(gallery.stem.removeprefix("mined-"))


def _of_gallery(place: Place, kept: Kept) -> ReviewCase:
    disagreement = None
    if kept.sam is not None:
        both = dice_of((kept.unet > 0.5)[None, None], (kept.sam > 0.5)[None, None])
        disagreement = 1 - float(both[0])
    label = PseudoLabel(
        stem=kept.stem,
        round=kept.round,
        quality=kept.quality,
        kept=kept.kept,
        disagreement=disagreement,
        digest=kept.digest,
        size=kept.size,
        classes=kept.classes,
        bytes=0,
    )
    return _case(place, label, Pixels(kept.image, kept.unet, kept.sam, kept.label))


def _case(place: Place, label: PseudoLabel, small: Pixels | None) -> ReviewCase:
    if label.classes != 1:
        raise UsageError(
            f"the run has {label.classes} classes; review can correct masks of one class only"
        )
    if Path(label.stem).name != label.stem:
        raise DataError(f"{place.folder} names a case {label.stem!r}, which is no file's name")
    height, width = label.size
    scale = min(1.0, SHOWN_PX / max(height, width))
    shown = max(1, round(height * scale)), max(1, round(width * scale))
    return ReviewCase(case_id(place, label.stem), place, label, shown, small)
