"""Bound what a server can make this site hold: the installed model's bytes, and little besides.

```
any response                 SMALL_BYTES
the parts of one question    together what `allow` said
```
Counted as the bytes come in, so a body without end is cut off and never in memory. Compressed
bodies are refused: a few of their bytes can become any number.
"""

import threading
from collections.abc import Callable, Iterator

import httpx

from knowmine.shared.errors import Refused

SMALL_BYTES = 2_000_000
"""Room for all that is not weights: settings, sums, signatures, names of tensors."""


class Intake:
    """Counts what one connection's responses bring.

    parts_path: where the parts of questions come from.
    """

    def __init__(self, parts_path: str) -> None:
        """Nothing but small responses until `allow`."""
        self._path, self._lock = parts_path, threading.Lock()
        self._most = self._room = SMALL_BYTES

    def allow(self, most: int) -> None:
        """The parts that come next may bring so many bytes together."""
        with self._lock:
            self._most = self._room = most

    def look_at(self, response: httpx.Response) -> None:
        """An httpx hook: what is read of this response from here on is counted."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Refused("the server sent a compressed answer; expected it plain")
        assert isinstance(response.stream, httpx.SyncByteStream)
        is_part = response.request.url.path == self._path
        take = self._take if is_part else _once(SMALL_BYTES)
        response.stream = _Counted(response.stream, take)

    def _take(self, size: int) -> None:
        with self._lock:  # parts come on several threads at once
            self._room -= size
            if self._room < 0:
                raise _too_large(self._most)


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


def _once(most: int) -> Callable[[int], None]:
    left = [most]

    def take(size: int) -> None:
        left[0] -= size
        if left[0] < 0:
            raise _too_large(most)

    return take


def _too_large(most: int) -> Refused:
    return Refused(
        f"the server sent more than {most:,} bytes; the installed model's weights and a few "
        "settings need no more: ask the coordinator what it runs, and install the same model"
    )
