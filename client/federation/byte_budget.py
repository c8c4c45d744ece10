"""Bound what a server can make this site hold: the installed model's bytes, and little besides.

```
any response                 SMALL_BYTES
the parts of one question    together what `question` said, until the question is over
```
Counted as the bytes come in, so a body without end is cut off and never in memory. Compressed
bodies are refused: a few of their bytes can become any number.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Self

import httpx

from knowmine.shared.errors import Refused
from knowmine.shared.wire.flower_objects import SMALL_BYTES


class Intake:
    """Counts what one connection's responses bring."""

    def __init__(self) -> None:
        self._last = Room(0)

    def question(self, most: int, patience_s: float) -> "Room":
        """Room for the parts of one question: so many bytes together.

        Raises `httpx.ReadTimeout` where a part of the question before is still open after
        `patience_s`: what it brought is still held, and two questions may not be held at once.
        """
        if not self._last.is_empty(patience_s):
            raise httpx.ReadTimeout("parts of an earlier question are still on their way")
        self._last = Room(most)
        return self._last

    def look_at(self, response: httpx.Response) -> None:
        """An httpx hook: what is read of this response from here on is counted."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Refused(
                "the server's answer came compressed; expected it plain, as it was asked for: "
                "where a proxy on the way compresses answers, have it leave this server's alone"
            )
        assert isinstance(response.stream, httpx.SyncByteStream)
        # Hooks run on the thread that asks, so this is the room of the very question.
        room = _ASKED_IN.get() or Room(SMALL_BYTES)
        response.stream = _Counted(response.stream, room.take)


class Room:
    """What the parts of one question may bring, on whatever threads they come.

    When the question is over, however it ended, nothing more is taken in its name.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._open, self._changed = 0, threading.Condition()
        self._over = False

    @contextmanager
    def part(self) -> Iterator[None]:
        """What this thread asks meanwhile brings a part."""
        with self._changed:
            self._refuse_if_over()
            self._open += 1
        before = _ASKED_IN.set(self)
        try:
            yield
        finally:
            _ASKED_IN.reset(before)
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def take(self, size: int) -> None:
        """Count what came; raise `Refused` where it is too much or too late."""
        with self._changed:
            self._refuse_if_over()
            self._left -= size
            if self._left < 0:
                raise Refused(
                    f"the server sent more than {self._most:,} bytes; the installed model's "
                    "weights and a few settings need no more: ask the coordinator what it runs, "
                    "and install the same model"
                )

    def is_empty(self, patience_s: float) -> bool:
        """Whether no part is on its way, or none is any more within `patience_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._open, patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True

    def _refuse_if_over(self) -> None:
        if self._over:
            raise Refused("a part of a question that is over")


_ASKED_IN: ContextVar[Room | None] = ContextVar("asked_in", default=None)
"""The question whose parts this thread asks for."""


class _Counted(httpx.SyncByteStream):
    """A body whose pieces are counted before anybody keeps them."""

    def __init__(self, body: httpx.SyncByteStream, take: Callable[[int], None]) -> None:
        self._body, self._take = body, take

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._body:
            self._take(len(piece))
            yield piece

    def close(self) -> None:
        self._body.close()
