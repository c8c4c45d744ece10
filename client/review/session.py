"""One person's review: the last decision on each case, and how a new one is written."""

import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from knowmine.client.review.cases import Cases, ReviewCase, page_id
from knowmine.client.review.clicks import ClickSam
from knowmine.client.review.decisions import (
    MASKS,
    REVIEWS,
    Decision,
    Verdict,
    append_decision,
    draft_path,
    draft_windows,
    label_path,
    mask_path,
    read_decisions,
    save_label,
    save_mask,
)
from knowmine.client.review.mask_png import checked_mask, resized_mask
from knowmine.client.review.sources import SiteFiles
from knowmine.client.sam.interface import Sam
from knowmine.shared.errors import CannotWrite, UsageError


class Overtaken(UsageError):
    """Another window has decided on the case since the person opened it; see `decision`."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(
            f"a {decision.role} {decision.verdict} this case in another window at "
            f"{decision.when.astimezone():%H:%M:%S}: look at it first"
        )
        self.decision = decision


@dataclass(frozen=True)
class Shown:
    """What was on screen: the round of the pseudo-label and the SHA-256 of the image file."""

    round: int
    image_sha256: str


class Review:
    """The review of one or several sites by one person. Safe to use from many threads.

    open_sam: loads SAM at the first click. embeddings: folder of the cache. role: of the person;
    each decision contains it.
    """

    def __init__(
        self, sites: Sequence[SiteFiles], open_sam: Callable[[], Sam], embeddings: Path, role: str
    ) -> None:
        self.role = role
        self.cases = Cases(sites)
        self.sam = ClickSam(open_sam, embeddings, self.cases)
        self._sites = sites
        self._lock = threading.RLock()
        self._read: dict[Path, tuple[Any, Mapping[str, Decision]]] = {}
        self._sound: dict[tuple[Any, ...], bool] = {}

    # ------------------------------------------------------------------------ what was decided

    def decision(self, case: ReviewCase) -> Decision | None:
        """The last decision on a case."""
        return self._decided(case.site.folder).get(case.label.case_id)

    def drafts(self) -> dict[str, Sequence[str]]:
        """The windows that have strokes on a case, by the case's id on the page."""
        return {
            page_id(site, case_id): windows
            for site in self._sites
            for case_id, windows in draft_windows(site.folder).items()
        }

    def is_lost(self, case: ReviewCase) -> bool:
        """Whether the accepted mask of a case is missing or was changed."""
        decision, folder = self.decision(case), case.site.folder
        if decision is None or not decision.is_label:
            return False
        try:
            seen = mask_path(folder, decision.case_id, decision.mask_sha256 or "").stat()
        except FileNotFoundError:
            return True
        key = decision.id, seen.st_mtime_ns, seen.st_size
        if key not in self._sound:
            self._sound[key] = label_path(folder, decision) is not None
        return not self._sound[key]

    def state(self) -> tuple[Any, ...]:
        """A value that changes with each decision, and with each accepted mask that comes or goes."""
        seen = []
        for site in self._sites:
            for path in (site.folder / REVIEWS, site.folder / MASKS):
                with suppress(FileNotFoundError):
                    found = path.stat()
                    seen.append((path, found.st_mtime_ns, found.st_size))
        return tuple(seen)

    def _decided(self, folder: Path) -> Mapping[str, Decision]:
        """`read_decisions`, cached until the file changes."""
        try:
            found = (folder / REVIEWS).stat()
        except FileNotFoundError:
            return {}
        seen = found.st_ino, found.st_mtime_ns, found.st_size
        with self._lock:
            if folder not in self._read or self._read[folder][0] != seen:
                self._read[folder] = seen, read_decisions(folder)
            return self._read[folder][1]

    # ------------------------------------------------------------------------ what is written

    def save_draft(self, case: ReviewCase, window: str, png: bytes) -> None:
        """Save a window's strokes, without a decision yet."""
        with _explained(case.site.folder):
            path = draft_path(case.site.folder, case.label.case_id, window)
            save_mask(path, checked_mask(png, case.shown))

    def discard_draft(self, case: ReviewCase, window: str) -> None:
        """Remove a window's strokes."""
        draft_path(case.site.folder, case.label.case_id, window).unlink(missing_ok=True)

    def decide(
        self,
        case: ReviewCase,
        verdict: Verdict,
        *,
        shown: Shown,
        seen: str | None,
        window: str,
        png: bytes | None = None,
        id_: str | None = None,
    ) -> Decision:
        """Write a decision; it is on the disk when this returns.

        seen: id of the last decision that the person knew about. png: the mask; required to accept.
        id_: of this decision, so that a decision that is sent twice counts once.
        Raises `Overtaken` if another decision was made meanwhile.
        """
        folder, case_id = case.site.folder, case.label.case_id
        is_label = verdict in ("accepted", "corrected")
        if is_label and png is None:
            raise UsageError("accepted without a mask: load the page again")
        mask = None
        if png and is_label:
            mask = resized_mask(checked_mask(png, case.shown), case.label.size)
        with self._lock, _explained(folder):
            last = self.decision(case)
            if last is not None and last.id == id_:
                return last  # only the answer was lost
            if last is not None and last.id != seen:
                raise Overtaken(last)
            if verdict == "skipped" and last and last.verdict not in ("skipped", "withdrawn"):
                return last  # skipping does not undo a decision
            # 1. The mask that stops being the label becomes strokes again: of the window that drew
            #    it, and, if this decision makes no label, of the window that decides.
            before = None if last is None else label_path(folder, last)
            if last is not None and before is not None:
                for whose in {last.window, window} - ({window} if is_label else set()):
                    if not (draft := draft_path(folder, case_id, whose)).exists():
                        save_mask(draft, before.read_bytes())
            # 2. Write the mask. 3. Write the decision that names it. 4. Remove what neither needs.
            digest = save_label(folder, case_id, mask) if mask else None
            decision = Decision(
                id=id_ or secrets.token_hex(8),
                case_id=case_id,
                verdict=verdict,
                role=self.role,
                when=datetime.now(UTC),
                round=shown.round,
                image_sha256=shown.image_sha256,
                mask_sha256=digest,
                sam_sha256=self.sam.digest,
                window=window,
            )
            append_decision(folder, decision)
            if before is not None and before != label_path(folder, decision):
                before.unlink(missing_ok=True)
            if is_label:
                self.discard_draft(case, window)
        return decision


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an error of the disk into `CannotWrite`, in words for the page."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(
            f"cannot write in {folder} ({error.strerror}): make room, then try again; your strokes "
            "are kept in this page"
        ) from error
