"""Keep `status.json` up to date while a run lasts, and read it."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.network.presence import Presence
from knowmine.shared.errors import UsageError
from knowmine.shared.files import write_atomically
from knowmine.shared.trust.certificates import warning_of_expiry

EVERY_S = 2.0
STALE_S = 15.0
"""A running server writes more often than this; an older file means that the server is gone."""


@dataclass
class _Seen:
    """What one site does. started: on the monotonic clock; None while it has no task."""

    task: str = ""
    started: float | None = None
    expected_s: float | None = None
    last_round: int = 0
    last_seconds: dict[str, float] = field(default_factory=dict)
    error: str = ""


class StatusBoard:
    """Writes `status.json` in the run's folder every few seconds, from its own thread.

    It is a `Board` for the transport and a `Watch` for the rounds.

    also: another `Watch`, called with the same rounds.
    """

    def __init__(
        self,
        path: Path,
        federation: str,
        presence: Presence,
        allow_list: AllowList,
        server_certificate: Callable[[], x509.Certificate],
        also: Any = None,
    ) -> None:
        self._path, self._presence, self._allow_list = path, presence, allow_list
        self._server_certificate, self._also = server_certificate, also
        self._lock, self._over = threading.Lock(), threading.Event()
        self._sites: dict[str, _Seen] = {}
        self._run: dict[str, Any] = {
            "federation": federation,
            "status": "waiting",
            "reason": "",
            "round": 0,
            "rounds": None,
            "dice": None,
            "started_at": _now(),
        }
        self._thread = threading.Thread(target=self._keep, name="status", daemon=True)
        self._thread.start()

    def asked(self, site: str, kind: str, expected_s: float | None) -> None:
        """The site received a task."""
        with self._lock:
            seen = self._sites.setdefault(site, _Seen())
            seen.task, seen.started, seen.expected_s = kind, time.monotonic(), expected_s

    def answered(self, site: str, kind: str, seconds: float, error: str) -> None:
        """The site answered, or its time is over."""
        with self._lock:
            seen = self._sites.setdefault(site, _Seen())
            seen.task, seen.started, seen.error = "", None, error
            if not error:
                seen.last_seconds[kind] = round(seconds, 3)
                if kind == "train":
                    seen.last_round = self._run["round"]

    def round_started(self, round_: int, rounds: int) -> None:
        """A round begins."""
        with self._lock:
            self._run |= {"status": "running", "round": round_, "rounds": rounds}
        if self._also:
            self._also.round_started(round_, rounds)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was committed."""
        with self._lock:
            self._run["dice"] = record["dice"]
            for site, reason in record["refused"].items():
                self._sites.setdefault(site, _Seen()).error = reason
        if self._also:
            self._also.round_done(record)

    def end(self, status: str, reason: str) -> None:
        """The run ended; write that as the last state."""
        self._over.set()
        self._thread.join()
        with self._lock:
            self._run |= {"status": status, "reason": reason}
        self._write()

    def now(self) -> dict[str, Any]:
        """The content of `status.json`."""
        here, known = self._presence.here(), self._allow_list.all()
        with self._lock:
            sites = {}
            for name, site in sorted(known.items()):
                seen, arrival = self._sites.get(name, _Seen()), here.get(name)
                started = seen.started
                sites[name] = {
                    "connected": arrival is not None,
                    "since": arrival.since if arrival else None,
                    "version": arrival.version if arrival else None,
                    "task": seen.task,
                    "task_seconds": None if started is None else round(time.monotonic() - started),
                    "task_expected_seconds": seen.expected_s,
                    "last_round": seen.last_round,
                    "last_seconds": dict(seen.last_seconds),
                    "error": seen.error,
                    "revoked": site.revoked_at is not None,
                    "certificate_expires": site.expires().isoformat(timespec="seconds"),
                    "certificate_warning": warning_of_expiry(
                        max(site.loaded_certificates(), key=lambda c: c.not_valid_after_utc),
                        datetime.now(UTC),
                    ),
                }
            own = self._server_certificate()
            return {
                **self._run,
                "updated_at": _now(),
                "server_certificate_expires": own.not_valid_after_utc.isoformat(),
                "server_certificate_warning": warning_of_expiry(own, datetime.now(UTC)),
                "damaged": dict(self._allow_list.damaged),
                "sites": sites,
            }

    def _keep(self) -> None:
        while not self._over.is_set():
            self._write()
            self._over.wait(EVERY_S)

    def _write(self) -> None:
        with suppress(OSError):  # a full disk: the journal reports it
            write_atomically(self._path, (json.dumps(self.now(), indent=1) + "\n").encode())


def read_status(run: Path) -> dict[str, Any]:
    """The status of the run in a folder; "gone" if the server stopped writing without an end.

    Raises `UsageError` if there is no run.
    """
    path = run / "status.json"
    try:
        status: dict[str, Any] = json.loads(path.read_bytes())
        age = (datetime.now(UTC) - datetime.fromisoformat(status["updated_at"])).total_seconds()
    except FileNotFoundError:
        raise UsageError(
            f"no run in {run} (there is no status.json): start one with `knowmine-server run`"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if status["status"] in ("waiting", "running") and age > STALE_S:
        status |= {
            "status": "gone",
            "reason": f"the server last wrote {age:.0f} s ago; start it again to go on",
        }
    return status


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
