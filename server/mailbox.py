"""Who has post: answers that are whole, and a bell for those who wait."""

import asyncio
import threading
from collections.abc import Iterable

from knowmine.shared.errors import Refused

MAX_OPEN_UPLOADS = 4
"""Answers that one site may be sending at a time; it is asked one question at a time."""


class Uploads:
    """Answers arrive in parts. One is read only when it is whole.

    A connection that breaks halfway leaves an answer that nobody waits for; the site sends it
    again from the start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._missing: dict[str, set[str]] = {}
        self._sender: dict[str, str] = {}

    def began(self, question: str, sender: str, parts: Iterable[str]) -> None:
        """`sender` is about to send these parts of its answer to `question`.

        Raises `Refused` where it has too many answers under way.
        """
        with self._lock:
            under_way = [
                other
                for other, by in self._sender.items()
                if by == sender and self._missing[other] and other != question
            ]
            if len(under_way) >= MAX_OPEN_UPLOADS:
                raise Refused(f"site {sender!r} sends {len(under_way) + 1} answers at once")
            self._missing[question] = set(parts)
            self._sender[question] = sender

    def arrived(self, part: str) -> bool:
        """One part is here; say whether an answer is whole now."""
        with self._lock:
            waiting = [missing for missing in self._missing.values() if part in missing]
            for missing in waiting:
                missing.discard(part)
            return any(not missing for missing in waiting)

    def whole(self, question: str) -> bool:
        """Whether there is an answer to `question` and all of it is here."""
        with self._lock:
            return question in self._missing and not self._missing[question]

    def forget(self, question: str) -> None:
        """The answer was read, or nobody waits for it any more."""
        with self._lock:
            self._missing.pop(question, None)
            self._sender.pop(question, None)


class Doorbell:
    """Wakes every coroutine that waits on one event loop; rung from any thread."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The next ring. Take it before looking, so that no ring is missed between."""
        self._loop = asyncio.get_running_loop()
        return self._next

    def ring(self) -> None:
        """Wake those who wait."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()
