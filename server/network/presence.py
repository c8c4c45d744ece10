"""Which sites are connected, and which process works for each of them."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from knowmine.shared.errors import Refused


class NotHere(Refused):
    """A request from a process that has not joined since this server started."""


class AnotherIsHere(Refused):
    """Two processes claim to be one site."""


@dataclass(frozen=True)
class Arrival:
    """A site's process since it joined.

    instance: the process's own random name. since: UTC, ISO 8601; it differs for every process.
    seen: time of its last request, on the clock of `Presence`. left: whether it said goodbye.
    """

    site: str
    instance: str
    version: str
    since: str
    seen: float
    left: bool = False


class Presence:
    """Lets one process work for each site; safe to use from many threads.

    A process that is silent for `silent_s` counts as gone and may be replaced. Before that, only
    a process that knows its predecessor's name may take over: the same machine after a restart. A
    copy of the site's keys on another machine does not know it.
    """

    def __init__(self, silent_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silent_s, self._clock = silent_s, clock
        self._lock = threading.Lock()
        self._arrivals: dict[str, Arrival] = {}

    def check(self, site: str, instance: str, replaces: str) -> None:
        """Raise `AnotherIsHere` if another process works for the site."""
        with self._lock:
            before = self._arrivals.get(site)
            if before and self._is_here(before) and before.instance not in (instance, replaces):
                raise AnotherIsHere(
                    f"another client of site {site!r} is connected since {before.since}: stop it, "
                    "or wait until it has been silent for a while"
                )

    def arrive(self, site: str, instance: str, version: str = "") -> Arrival:
        """Let this process work for the site from now on."""
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            arrival = Arrival(site, instance, version, now, self._clock())
            self._arrivals[site] = arrival
            return arrival

    def note_request(self, site: str, instance: str) -> None:
        """Note that the process sent a request; raise `NotHere` or `AnotherIsHere`."""
        with self._lock:
            known = self._arrivals.get(site)
            if known is None or (known.left and known.instance == instance):
                raise NotHere(f"site {site!r} has to join first")
            if known.instance != instance:
                raise AnotherIsHere(
                    f"another client of site {site!r} took over at {known.since}: only one may run"
                )
            self._arrivals[site] = replace(known, seen=self._clock())

    def leave(self, site: str, instance: str) -> None:
        """Note that the process said goodbye; another may join at once."""
        with self._lock:
            known = self._arrivals.get(site)
            if known and known.instance == instance:
                self._arrivals[site] = replace(known, left=True)

    def forget(self, site: str) -> None:
        """Drop a site that is not admitted any more."""
        with self._lock:
            self._arrivals.pop(site, None)

    def here(self) -> dict[str, Arrival]:
        """The sites that sent a request within `silent_s`, by name."""
        with self._lock:
            return {name: a for name, a in self._arrivals.items() if self._is_here(a)}

    def _is_here(self, arrival: Arrival) -> bool:
        return not arrival.left and self._clock() - arrival.seen <= self._silent_s
