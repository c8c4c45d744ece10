"""Keep one site connected to its server: join, take tasks, send replies, until the goodbye.

```
join ──> take a task <─────────────────┐        connection lost, server restarted: join again
            │                          │        certificate revoked: try again, ever less often
            └─> fetch ─> run ─> send ──┘        the server's goodbye: the end
```
The calls themselves are in `fleet_client.py`.
"""

import math
import random
import ssl
import threading
import time
from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from knowmine.client.federation.fleet_client import CONNECTION_ERRORS, FleetClient, NotJoined
from knowmine.client.federation.keys import SiteKeys, adopt_renewal, renew_certificate
from knowmine.client.federation.threads import Heartbeat, TaskThread
from knowmine.client.federation.tls import detail_of, explained
from knowmine.client.paths import INSTANCE
from knowmine.client.settings import NetworkSettings
from knowmine.shared.errors import Interrupted, Refused, reason_of
from knowmine.shared.files import write_atomically
from knowmine.shared.log import RunLog
from knowmine.shared.trust.certificates import load_certificate, warning_of_expiry
from knowmine.shared.wire import codec

from flwr.app import Error, Message
from flwr.clientapp import ClientApp

SITE_FAILED = 2
"""Flower's code for an error in a ClientApp. The reason beside it is one of `REASONS`."""
SECOND_PROCESS_S = 120.0
"""A new process waits this long for another process of the same site to end."""
LAST_REPLY_S = 30.0
"""The reply to a goodbye is tried this long: the server may be gone, and the run is over anyway."""
EXPIRY_CHECK_S = 6 * 3600.0
"""Seconds between two checks of the date on this site's certificate."""


class Link:
    """One site's connection to its server.

    folder: the site's keys. state: what a restart needs.
    Raises `UsageError` for certificates or keys that cannot be used.
    """

    def __init__(
        self, settings: NetworkSettings, site: str, keys: SiteKeys, folder: Path, state: Path,
        log: RunLog,
    ) -> None:  # fmt: skip
        self._settings, self._site, self._log, self._state = settings, site, log, state
        self._folder, self._certificate = folder, keys.certificate
        self._fleet = FleetClient(settings, keys, folder, log)
        self._weights_bytes: Callable[[], int] = lambda: 0
        self._expiry_checked_at, self._replaced = -math.inf, ""

    def serve(
        self,
        app: ClientApp,
        stop: threading.Event,
        stop_s: float,
        weights_bytes: Callable[[], int],
    ) -> str:
        """Work for the server until its goodbye or until `stop` is set; return how it ended.

        stop_s: how long a task may go on after `stop`. weights_bytes: gives the size of the
        installed model; it is called at the first task with weights, because it may load torch.
        Raises `Refused` if another process works for this site, or if the server is not the one
        of the kit.
        """
        self._weights_bytes = weights_bytes
        pause, second_since = 1.0, 0.0
        while not stop.is_set():
            try:
                self._join()
                pause, second_since = 1.0, 0.0
                if self._work(app, stop, stop_s):
                    return "the run is over"
                continue
            except NotJoined:
                self._log.event("lost", reason="the server does not know this process any more")
                continue
            except httpx.HTTPStatusError as error:
                why = detail_of(error.response)
                if error.response.status_code == httpx.codes.CONFLICT:
                    second_since = second_since or time.monotonic()
                    if self._fleet.joined or time.monotonic() - second_since > SECOND_PROCESS_S:
                        raise Refused(why) from error
            except CONNECTION_ERRORS as error:
                why = self._explained(error)
            self._log.event("unreachable", level="warning", reason=why, pause_s=round(pause))
            stop.wait(pause * random.uniform(0.7, 1.0))
            pause = min(2 * pause, self._settings.retry_s)
        return "stopped"

    def probe(self, payload: bytes) -> tuple[dict[str, Any], float, datetime | None]:
        """Send `payload` to the server; return its reply, the seconds it took, and its clock.

        This does not join. Raises `Refused`, with what a person can do, if there is no good reply.
        """
        started = time.monotonic()
        try:
            response = self._fleet.post(codec.CHECK_PATH, payload)
            seconds = time.monotonic() - started
            if response.is_error:
                raise Refused(detail_of(response))
            reply: dict[str, Any] = response.json()
        except (httpx.HTTPError, ssl.SSLError, ValueError) as error:
            raise Refused(self._explained(error)) from error
        there = response.headers.get("date")
        return reply, seconds, parsedate_to_datetime(there) if there else None

    def server_key(self) -> object:
        """The public key of the certificate that the server showed last; TLS has verified it."""
        return self._fleet.server_key()

    def close(self) -> None:
        """Leave, if that is possible, and end all connections."""
        self._fleet.close()

    def _join(self) -> None:
        remembered = self._state / INSTANCE
        before = remembered.read_text().strip() if remembered.exists() else ""
        self._fleet.join(replaces=before)
        try:
            write_atomically(remembered, self._fleet.instance.encode())
        except OSError as error:  # a full disk: the process after a crash has to wait, no more
            self._log.event("unremembered", level="warning", reason=str(error))
        self._log.event("joined", server=self._settings.server)

    def _work(self, app: ClientApp, stop: threading.Event, stop_s: float) -> bool:
        """Run task after task until the server's goodbye (True) or until `stop` is set."""
        with Heartbeat(self._beat, self._settings.heartbeat_s):
            while not stop.is_set():
                self._renew_certificate()
                started = time.monotonic()
                found = self._fleet.next_task()
                if found is None:
                    if time.monotonic() - started < self._settings.poll_s:
                        stop.wait(self._settings.poll_s)
                    continue
                head, tree = found
                message = self._fetch(head, tree)
                is_last = message.has_content() and codec.is_goodbye(message.content)
                reply = self._reply_to(message, app, stop, stop_s)
                try:
                    patience_s = LAST_REPLY_S if is_last else math.inf
                    self._send(reply, head.metadata.run_id, stop, stop_s, patience_s)
                except NotJoined:
                    if not is_last:
                        raise
                    reason = "the server was restarted"
                    self._log.event("dropped", level="warning", reason=reason)
                if is_last:
                    return True
        return False

    def _fetch(self, head: Message, tree: Any) -> Message:
        """The whole message of a task."""
        return self._fleet.fetch(head, tree, self._weights_bytes)

    def _reply_to(
        self, message: Message, app: ClientApp, stop: threading.Event, stop_s: float
    ) -> Message:
        """Run the task. If it fails, the server gets the kind of error and no more."""
        kind, started = message.metadata.message_type, time.monotonic()
        round_ = codec.round_of(message.content)
        self._log.event("asked", kind=kind, round=round_)
        task = TaskThread(app, message, self._fleet.node.node_id)
        task.start()
        while not task.done.wait(0.2):
            if self._replaced:  # the server takes replies only from the other process
                raise Refused(self._replaced)
            if stop.is_set() and task.done.wait(stop_s) is False:
                task.error = Interrupted("stopped before the task was done")
                break
        seconds = round(time.monotonic() - started, 3)
        if task.error is not None:
            error = f"{type(task.error).__name__}: {task.error}"
            self._log.event(
                "failed", level="error", kind=kind, round=round_, reason=error, seconds=seconds
            )
            return Message(Error(code=SITE_FAILED, reason=reason_of(task.error)), reply_to=message)
        self._log.event("answered", kind=kind, round=round_, seconds=seconds)
        assert task.reply is not None
        return task.reply

    def _send(
        self, reply: Message, run_id: int, stop: threading.Event, stop_s: float, patience_s: float
    ) -> None:
        """Send a reply; if the connection fails, try again until it is there.

        It is tried for `patience_s`, and for `stop_s` after `stop`.
        """
        pause, started, stopped = 0.5, time.monotonic(), math.inf
        while True:
            try:
                self._fleet.send(reply, run_id)
                return
            except httpx.HTTPStatusError as error:
                # The run is over, or the server does not wait for this reply any more.
                reason = detail_of(error.response)
                self._log.event("dropped", level="warning", reason=reason)
                return
            except CONNECTION_ERRORS as error:
                reason = self._explained(error)
                self._log.event("unsent", level="warning", reason=reason, pause_s=round(pause))
            if time.monotonic() - started >= patience_s:
                reason = "the server does not take the last reply"
                self._log.event("dropped", level="warning", reason=reason)
                return
            if stop.is_set():
                stopped = min(stopped, time.monotonic())
                if time.monotonic() - stopped >= stop_s:
                    reason = "stopped before it was sent"
                    self._log.event("dropped", level="warning", reason=reason)
                    return
                time.sleep(min(pause, stop_s))
            else:
                stop.wait(pause)
            pause = min(2 * pause, self._settings.retry_s)

    def _renew_certificate(self) -> None:
        """Shortly before the certificate ends, have the next one pinned and use it."""
        if time.monotonic() - self._expiry_checked_at < EXPIRY_CHECK_S:
            return
        self._expiry_checked_at = time.monotonic()
        if not (warning := warning_of_expiry(load_certificate(self._folder / "tls.crt"))):
            return
        self._log.event("expiry", level="warning", reason=warning)
        pem = renew_certificate(self._folder, self._site)
        response = self._fleet.post(codec.CERTIFICATE_PATH, pem.encode("ascii"))
        if response.is_error:
            self._log.event("not renewed", level="warning", reason=detail_of(response))
            return
        adopt_renewal(self._folder, self._site)
        self._fleet.connect()
        self._log.event("renewed")

    def _beat(self) -> None:
        try:
            self._fleet.beat()
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.CONFLICT:
                self._replaced = detail_of(error.response)
            raise

    def _explained(self, error: Exception) -> str:
        joined = self._fleet.joined
        return explained(error, self._settings, self._certificate, joined=joined)
