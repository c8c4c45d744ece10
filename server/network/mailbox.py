"""Who has post: questions that are open, answers that are whole, a bell for those who wait."""

import asyncio
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from knowmine.shared.errors import Refused


@dataclass
class _Open:
    """A question that waits. missing: parts still to come; None until the answer began.

    most: bytes that its answer may bring. room: what is left of them. tree: digest of how the
    answer is made up. weighed: bytes of its parts.
    """

    node: int
    most: float = math.inf
    room: float = math.inf
    answer: str = ""
    tree: str = ""
    missing: set[str] | None = None
    weighed: dict[str, int] = field(default_factory=dict)


class Uploads:
    """Answers arrive in parts, one to each open question, and are read only when whole.

    A connection that breaks halfway leaves an answer that is not read; its site sends it again
    from the start.

    room: bytes that the answer to a question which is put next may bring, in all its parts.
    """

    def __init__(self) -> None:
        self.room = math.inf
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}

    def expect(self, question: str, node: int) -> None:
        """A question was put to `node`."""
        with self._lock:
            self._open[question] = _Open(node, self.room, self.room)

    def node_of(self, question: str) -> int | None:
        """Whom the question was put to, while it waits."""
        with self._lock:
            waiting = self._open.get(question)
            return waiting.node if waiting else None

    def most_of(self, question: str) -> float:
        """Bytes that its answer may hold once it is read."""
        with self._lock:
            waiting = self._open.get(question)
            return waiting.most if waiting else 0

    def begin(self, question: str, node: int, answer: str, tree: str = "") -> None:
        """`node` wants to send `answer`, made up as `tree` says, for the first time or again.

        Raises `Refused` where nobody waits for it, or another answer is there.
        """
        with self._lock:
            waiting = self._open.get(question)
            if waiting is None or waiting.node != node:
                raise Refused("nobody waits for this answer: it came too late, or was never asked")
            if waiting.answer and (waiting.answer, waiting.tree) != (answer, tree):
                raise Refused("another answer to this question is here: each is answered once")
            waiting.answer, waiting.tree = answer, tree

    def began(self, question: str, parts: Iterable[str]) -> None:
        """These parts of the answer are still to come."""
        with self._lock:
            if waiting := self._open.get(question):
                waiting.missing = set(parts)

    def weigh(self, node: int, part: str, size: int) -> None:
        """A part of `size` bytes is at the door, brought by `node`.

        Raises `Refused` where it is more than the answer that it belongs to may bring.
        """
        with self._lock:
            for waiting in self._open.values():
                if waiting.node != node or part not in (waiting.missing or ()):
                    continue
                before = waiting.weighed.get(part, 0)  # a part that was wrong comes again
                waiting.weighed[part] = max(size, before)
                waiting.room -= max(0, size - before)
                if waiting.room < 0:
                    raise Refused(
                        "the answer is larger than its question lets it be: it holds more than "
                        "the model's tensors and a few numbers"
                    )

    def too_large(self, question: str) -> bool:
        """Whether more came for `question` than its answer may bring."""
        with self._lock:
            waiting = self._open.get(question)
            return waiting is not None and waiting.room < 0

    def arrived(self, part: str) -> bool:
        """One part is here; say whether an answer is whole now."""
        with self._lock:
            waiting = [w.missing for w in self._open.values() if w.missing and part in w.missing]
            for missing in waiting:
                missing.discard(part)
            return any(not missing for missing in waiting)

    def whole(self, question: str) -> bool:
        """Whether there is an answer to `question` and all of it is here."""
        with self._lock:
            waiting = self._open.get(question)
            return waiting is not None and waiting.missing == set()

    def forget(self, question: str) -> str:
        """The answer was read, or nobody waits for it any more; return what it was called."""
        with self._lock:
            waiting = self._open.pop(question, None)
            return waiting.answer if waiting else ""


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
