"""Bound what a server can make this site hold: the installed model's bytes, and little more.

```
any response              SMALL_BYTES
the parts of one task     together, what `for_task` allowed, until the task is fetched
```
Bytes are counted as they arrive, so a body without end is cut off and never held in memory.
Compressed bodies are refused: a few of their bytes can unpack to any number.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import httpx

from knowmine.shared.errors import Refused
from knowmine.shared.wire.flower_objects import SMALL_BYTES


class ByteBudget:
    """Counts the bytes of one connection's responses."""

    def __init__(self) -> None:
        self._last = TaskBudget(0)

    def for_task(self, most: int, patience_s: float) -> "TaskBudget":
        """Allow `most` bytes for all parts of one task together.

        Raises `httpx.ReadTimeout` if a part of the task before is still open after `patience_s`.
        Its bytes are still in memory, and two tasks must not be there at once.
        """
        if not self._last.is_idle(patience_s):
            raise httpx.ReadTimeout("parts of an earlier task are still on their way")
        self._last = TaskBudget(most)
        return self._last

    def count(self, response: httpx.Response) -> None:
        """An httpx hook: from here on, the bytes of this response's body are counted."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Refused(
                "the server's response is compressed, although this site asked for plain bytes: "
                "if a proxy on the way compresses responses, exempt this server from that"
            )
        assert isinstance(response.stream, httpx.SyncByteStream)
        # Hooks run on the thread that sends the request, so the variable names its task.
        budget = _CURRENT.get() or TaskBudget(SMALL_BYTES)
        response.stream = _CountedStream(response.stream, budget.take)


class TaskBudget:
    """The bytes that the parts of one task may bring, on any number of threads.

    Use it in a `with`. After its end, however the task ended, it takes nothing more.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._open, self._changed = 0, threading.Condition()
        self._over = False

    @contextmanager
    def part(self) -> Iterator[None]:
        """Count what this thread requests inside the `with` as a part of the task."""
        with self._changed:
            self._refuse_if_over()
            self._open += 1
        before = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(before)
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def take(self, size: int) -> None:
        """Count bytes that arrived; raise `Refused` if they are too many or too late."""
        with self._changed:
            self._refuse_if_over()
            self._left -= size
            if self._left < 0:
                raise Refused(
                    f"the server sent more than {self._most:,} bytes; the installed model's "
                    "weights and a few settings need no more: ask the coordinator which model "
                    "the server runs, and install the same one"
                )

    def is_idle(self, patience_s: float) -> bool:
        """Whether no part is on its way; wait up to `patience_s` for that."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True

    def _refuse_if_over(self) -> None:
        if self._over:
            raise Refused("this part belongs to a task that is over")


_CURRENT: ContextVar[TaskBudget | None] = ContextVar("current_task_budget", default=None)
"""The budget of the task whose parts this thread requests."""


class _CountedStream(httpx.SyncByteStream):
    """A response body whose pieces are counted before they are kept."""

    def __init__(self, body: httpx.SyncByteStream, take: Callable[[int], None]) -> None:
        self._body, self._take = body, take

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            self._take(len(piece))
            yield piece

    def close(self) -> None:
        self._body.close()
