"""Which sites are here, and which process speaks for each."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from knowmine.shared.errors import Refused


class NotHere(Refused):
    """A process speaks that has not introduced itself since this server began."""


class AnotherIsHere(Refused):
    """Two processes claim to be one site."""


@dataclass(frozen=True)
class Arrival:
    """A site's process since it joined.

    instance: the process's own random name. since: UTC, ISO 8601; it changes with every process.
    seen: when it last spoke, on the clock of `Presence`.
    """

    site: str
    instance: str
    version: str
    since: str
    seen: float
    left: bool = False


class Presence:
    """Keeps one process for each site, safe to use from many threads.

    A process that is silent for `silent_s` counts as gone, and so may be replaced. Before that
    only one that knows its predecessor's name may take over: the same site after a restart. A
    copy of the site's keys on another machine does not.
    """

    def __init__(self, silent_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._silent_s, self._clock = silent_s, clock
        self._lock = threading.Lock()
        self._arrivals: dict[str, Arrival] = {}

    def check(self, site: str, instance: str, replaces: str) -> None:
        """Raise `AnotherIsHere` where another process speaks for the site."""
        with self._lock:
            before = self._arrivals.get(site)
            if before and self._is_here(before) and before.instance not in (instance, replaces):
                raise AnotherIsHere(
                    f"another client of site {site!r} is connected since {before.since}: stop it, "
                    "or wait until it has been silent for a while"
                )

    def arrive(self, site: str, instance: str, version: str = "") -> Arrival:
        """From now on this process speaks for the site."""
        with self._lock:
            now = datetime.now(UTC).isoformat(timespec="microseconds")
            arrival = Arrival(site, instance, version, now, self._clock())
            self._arrivals[site] = arrival
            return arrival

    def speak(self, site: str, instance: str) -> None:
        """Note that the process said something; raise `NotHere` or `AnotherIsHere`."""
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
        """The process says goodbye; another may come at once."""
        with self._lock:
            known = self._arrivals.get(site)
            if known and known.instance == instance:
                self._arrivals[site] = replace(known, left=True)

    def forget(self, site: str) -> None:
        """The site is not welcome any more."""
        with self._lock:
            self._arrivals.pop(site, None)

    def here(self) -> dict[str, Arrival]:
        """The sites that spoke within `silent_s`, by name."""
        with self._lock:
            return {name: a for name, a in self._arrivals.items() if self._is_here(a)}

    def _is_here(self, arrival: Arrival) -> bool:
        return not arrival.left and self._clock() - arrival.seen <= self._silent_s
