"""Send a page only the cases that changed since its last request, out of thousands."""

import secrets
import threading
from typing import Any

from knowmine.client.review.cases import ReviewCase
from knowmine.client.review.decisions import Decision
from knowmine.client.review.session import Review

LOST = "The accepted mask is missing or was changed, so the case is open again: decide again."


class ChangeFeed:
    """The list of cases as pages know it; each case has the number of its last change."""

    def __init__(self, review: Review) -> None:
        self._review = review
        self._start, self._number = secrets.token_hex(4), 0
        self._sent: dict[str, tuple[int, dict[str, Any]]] = {}
        self._cases: list[ReviewCase] = []
        self._state: tuple[Any, ...] = ()
        self._lock = threading.Lock()

    def since(self, then: str) -> dict[str, Any]:
        """What changed since the answer whose `now` was `then`; everything if `then` is unknown.

        cases: the changed cases. gone: ids of removed ones. whole: the page must drop all others.
        """
        with self._lock:
            self._update()
            start, _, number = then.partition("-")
            whole = start != self._start or not number.isdecimal()
            known = 0 if whole else int(number)
            new = [entry for changed, entry in self._sent.values() if changed > known]
            return {
                "now": f"{self._start}-{self._number}",
                "whole": whole,
                "cases": [entry for entry in new if "case_id" in entry],
                "gone": [entry["id"] for entry in new if "case_id" not in entry],
            }

    def _update(self) -> None:
        """Give the next number to each case whose entry changed."""
        review = self._review
        cases, drafts = review.cases.listed(), review.drafts()
        state = review.state(), drafts
        if cases is self._cases and state == self._state:
            return
        self._cases, self._state = cases, state
        now = self._number + 1
        entries = {
            case.id: entry_of(
                case, review.decision(case), review.is_lost(case), drafts.get(case.id, ())
            )
            for case in cases
        }
        entries |= {id_: {"id": id_} for id_ in self._sent if id_ not in entries}
        for id_, entry in entries.items():
            if id_ not in self._sent or self._sent[id_][1] != entry:
                self._sent[id_] = now, entry
                self._number = now


def entry_of(
    case: ReviewCase, decision: Decision | None, lost: bool = False, drafts: Any = ()
) -> dict[str, Any]:
    """A case as JSON for the page. drafts: the windows that have strokes on it."""
    label = case.label
    return {
        "id": case.id,
        "case_id": label.case_id,
        "site": case.site.name,
        "round": label.round,
        "image": label.digest,
        "height": case.shown[0],
        "width": case.shown[1],
        "quality": round(label.quality, 3),
        "disagreement": None if label.disagreement is None else round(label.disagreement, 3),
        "worth": round(case.worth, 3),
        "used": label.kept,
        "decision": None if decision is None else decision.model_dump(mode="json"),
        "lost": LOST if lost else None,
        "drafts": list(drafts),
    }
