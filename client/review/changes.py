"""What of a review's list a page does not know yet: thousands of cases are sent once, not again."""

import secrets
import threading
from typing import Any

from knowmine.client.review.cases import ReviewCase
from knowmine.client.review.decisions import Decision
from knowmine.client.review.session import Review

LOST = "Its accepted mask is missing or was changed since: the case is open again, so decide anew."


class News:
    """The list of a review as pages know it, each case with the number of its last change."""

    def __init__(self, review: Review) -> None:
        self._review = review
        self._start, self._number = secrets.token_hex(4), 0
        self._told: dict[str, tuple[int, dict[str, Any]]] = {}
        self._cases: list[ReviewCase] = []
        self._seen: tuple[Any, ...] = ()
        self._lock = threading.Lock()

    def since(self, then: str) -> dict[str, Any]:
        """What changed since the answer whose `now` was `then`; all of it for one not known.

        cases: what is told of each. gone: ids. whole: whether the page should forget the rest.
        """
        with self._lock:
            self._look()
            start, _, number = then.partition("-")
            whole = start != self._start or not number.isdecimal()
            known = 0 if whole else int(number)
            new = [told for changed, told in self._told.values() if changed > known]
            return {
                "now": f"{self._start}-{self._number}",
                "whole": whole,
                "cases": [told for told in new if "stem" in told],
                "gone": [told["id"] for told in new if "stem" not in told],
            }

    def _look(self) -> None:
        """Give each case that is told otherwise than before the next number."""
        review = self._review
        cases, drafts = review.cases(), review.drafts()
        seen = review.changes(), drafts
        if cases is self._cases and seen == self._seen:
            return
        self._cases, self._seen = cases, seen
        now = self._number + 1
        told = {
            case.id: told_of(
                case, review.decision(case), review.is_lost(case), drafts.get(case.id, ())
            )
            for case in cases
        }
        told |= {id_: {"id": id_} for id_ in self._told if id_ not in told}
        for id_, one in told.items():
            if id_ not in self._told or self._told[id_][1] != one:
                self._told[id_] = now, one
                self._number = now


def told_of(
    case: ReviewCase, decision: Decision | None, lost: bool = False, drafts: Any = ()
) -> dict[str, Any]:
    """A case as the page knows it. drafts: the windows that hold strokes on it."""
    label = case.label
    return {
        "id": case.id,
        "stem": label.stem,
        "site": case.place.site,
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
