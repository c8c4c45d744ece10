"""Turn events of the site's log into short lines for the person at the terminal."""

from collections.abc import Mapping
from typing import Any

WRONG = frozenset(("failed", "dropped", "not renewed", "expiry", "clock"))
"""Events that are printed even with --quiet."""

_DOING = {"train": "train", "evaluate": "score the model", "query": "introduce itself"}


class Lines:
    """Turns events into lines, and drops a line that repeats the last one.

    >>> Lines().of("joined", {"server": "localhost:9443"})
    'connected to localhost:9443; waiting to be asked'
    """

    def __init__(self) -> None:
        self._last = ""

    def of(self, event: str, fields: Mapping[str, Any]) -> str:
        """The line for an event; empty if there is nothing new."""
        line = _line(event, fields)
        if line == self._last:
            return ""
        self._last = line or self._last
        return line


def _line(event: str, fields: Mapping[str, Any]) -> str:
    if event in ("unreachable", "unsent"):
        waits = "waiting" if event == "unreachable" else "the answer waits"
        return f"{waits}: {fields['reason']}; next attempt in {fields['pause_s']} s"
    doing = _DOING.get(fields.get("kind", ""), "")
    round_ = f"round {fields['round']}: " if fields.get("round") else ""
    lines = {
        "start": "site {site}, server {server}",
        "joined": "connected to {server}; waiting to be asked",
        "lost": "connecting again: {reason}",
        "asked": f"{round_}asked to {doing}",
        "answered": f"{round_}answered after {{seconds:.1f}} s",
        "failed": f"{round_}could not {doing}: {{reason}}",
        "dropped": "the server did not take the answer: {reason}",
        "expiry": "{reason}",
        "renewed": "this site's certificate was renewed",
        "not renewed": "this site's certificate was not renewed: {reason}",
        "leftovers": "left over in {folder}: {names}; {reason}",
        "clock": "this machine's clock is wrong by {wrong_by_s} s; going by the server's",
        "end": "the end: {reason}",
    }
    return lines.get(event, "").format(**fields)
