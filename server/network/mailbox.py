"""Which tasks are open, which replies are whole, and a bell for the sites that wait for tasks."""

import asyncio
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from knowmine.shared.errors import Refused


@dataclass
class _OpenTask:
    """A task that was sent and whose reply was not read yet.

    most_bytes: what its reply may bring; left_bytes: what is left of that. reply: message id of
    the reply, empty before it is announced; shape: digest of the tree of its parts. missing: parts
    still to come, None before `expect_parts`. counted: bytes of each part so far.
    """

    node: int
    most_bytes: float = math.inf
    left_bytes: float = math.inf
    reply: str = ""
    shape: str = ""
    missing: set[str] | None = None
    counted: dict[str, int] = field(default_factory=dict)


class Uploads:
    """The replies under way. Each open task takes one, in parts, and it is read only when whole.

    If a connection breaks, the partial reply is not read, and its site sends it again from the
    start. max_reply_bytes: what the reply to the next task may bring, all parts together.
    """

    def __init__(self) -> None:
        self.max_reply_bytes = math.inf
        self._lock = threading.Lock()
        self._open: dict[str, _OpenTask] = {}

    def expect(self, task: str, node: int) -> None:
        """Open a task that goes to `node`."""
        with self._lock:
            self._open[task] = _OpenTask(node, self.max_reply_bytes, self.max_reply_bytes)

    def node_of(self, task: str) -> int | None:
        """The node that an open task went to."""
        with self._lock:
            waiting = self._open.get(task)
            return waiting.node if waiting else None

    def most_bytes_of(self, task: str) -> float:
        """How many bytes the reply to an open task may hold once it is read."""
        with self._lock:
            waiting = self._open.get(task)
            return waiting.most_bytes if waiting else 0

    def announce(self, task: str, node: int, reply: str, shape: str = "") -> None:
        """`node` starts to send a reply, for the first time or again.

        Raises `Refused` if the task is not open for this node, or has another reply already.
        """
        with self._lock:
            waiting = self._open.get(task)
            if waiting is None or waiting.node != node:
                raise Refused(
                    "the server does not wait for this reply: it came too late, or its task was "
                    "never sent to this site"
                )
            if waiting.reply and (waiting.reply, waiting.shape) != (reply, shape):
                raise Refused("this task already has another reply: a task takes only one")
            waiting.reply, waiting.shape = reply, shape

    def expect_parts(self, task: str, parts: Iterable[str]) -> None:
        """Note which parts of the reply are still to come."""
        with self._lock:
            if waiting := self._open.get(task):
                waiting.missing = set(parts)

    def count_bytes(self, node: int, part: str, size: int) -> None:
        """Count a part that `node` brings, before it is kept.

        Raises `Refused` if it is more than the reply that it belongs to may bring.
        """
        with self._lock:
            for waiting in self._open.values():
                if waiting.node != node or part not in (waiting.missing or ()):
                    continue
                before = waiting.counted.get(part, 0)  # a damaged part is sent again
                waiting.counted[part] = max(size, before)
                waiting.left_bytes -= max(0, size - before)
                if waiting.left_bytes < 0:
                    raise Refused(
                        "the reply is larger than its task allows: it holds more than the "
                        "model's tensors and a few numbers"
                    )

    def part_arrived(self, part: str) -> bool:
        """Note that a part is stored; return whether a reply is whole now."""
        with self._lock:
            waiting = [w.missing for w in self._open.values() if w.missing and part in w.missing]
            for missing in waiting:
                missing.discard(part)
            return any(not missing for missing in waiting)

    def is_too_large(self, task: str) -> bool:
        """Whether the reply brought more than it may."""
        with self._lock:
            waiting = self._open.get(task)
            return waiting is not None and waiting.left_bytes < 0

    def is_whole(self, task: str) -> bool:
        """Whether there is a reply and all of it is stored."""
        with self._lock:
            waiting = self._open.get(task)
            return waiting is not None and waiting.missing == set()

    def forget(self, task: str) -> str:
        """Close a task; return the message id of its reply, if one was announced."""
        with self._lock:
            waiting = self._open.pop(task, None)
            return waiting.reply if waiting else ""


class Doorbell:
    """Wakes every coroutine that waits on one event loop; any thread may ring it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """The next ring. Take it before looking for a task, so that no ring is missed between."""
        self._loop = asyncio.get_running_loop()
        return self._next

    def ring(self) -> None:
        """Wake all that wait."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        rung, self._next = self._next, asyncio.Event()
        rung.set()
