"""A site's process: it keeps the models loaded and works for the server until the run ends."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property

from knowmine.client.audit.log import Chain
from knowmine.client.egress.policy import policy_of
from knowmine.client.egress.porter import Porter
from knowmine.client.federation.app import client_app
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.federation.link import Link
from knowmine.client.federation.threads import TaskThread
from knowmine.client.paths import ANSWERS, FEEDBACK, PENDING, audit_log_of, prepare
from knowmine.client.settings import SITE_LOG, ClientSettings
from knowmine.client.site.worker import Remembering, SiteWorker, Worker
from knowmine.shared.files import FolderLock
from knowmine.shared.log import RunLog, Telling, open_log
from knowmine.shared.trust.certificates import warning_of_expiry
from knowmine.shared.weights import bytes_of_manifest


class Resident:
    """One site's process, from its settings.

    open_worker: opens the site at the first task, so that the connection is up before that.
    missing: what the isolation of the site's processes lacks, in words; it may grow meanwhile.
    tell: receives every event of the log.
    weights_bytes: size of the worker's model; by default of the model in the settings.
    working: whether a task was still running when `run` returned.
    """

    def __init__(
        self,
        settings: ClientSettings,
        open_worker: Callable[[], Worker] | None = None,
        missing: Sequence[str] = (),
        tell: Telling | None = None,
        weights_bytes: int | None = None,
    ) -> None:
        """Check what needs no network; raise `UsageError` if something is wrong."""
        self._settings = settings
        self._open_worker = open_worker or self._open_site
        self._missing = missing
        self._tell = tell
        self._keys = SiteKeys.load(settings.keys, settings.site)
        self._policy = policy_of(settings)
        self._weights_bytes = weights_bytes
        self.working = False

    def run(self, stop: threading.Event) -> str:
        """Take part until the run is over or `stop` is set; return how it ended."""
        settings = self._settings
        self._own = prepare(settings.state)
        lock = FolderLock(settings.state)
        try:
            with open_log(settings.state / SITE_LOG, self._tell) as log:
                return self._serve(log, stop)
        finally:
            lock.release()

    def _serve(self, log: RunLog, stop: threading.Event) -> str:
        settings = self._settings
        log.event("start", site=settings.site, server=settings.network.server)
        if warning := warning_of_expiry(self._keys.certificate):
            log.event("expiry", level="warning", reason=warning)
        self._log = log
        policy, records = self._policy, self._policy.records
        log.event("policy", digest=policy.digest(), approval=policy.approval)
        path = audit_log_of(settings.state)
        # The audit log comes first: if it is damaged, nothing may leave, and no connection is needed.
        with Chain.open(path, self._keys.audit, site=settings.site, records=records) as chain:
            link = Link(settings.network, settings.site, self._keys, settings.keys, self._own, log)
            pending = settings.state / PENDING
            porter = Porter(policy, chain, pending, stop, server_key=link.server_key)
            try:
                app = client_app(lambda _: self._worker, self._own / FEEDBACK, lambda _: porter)
                how = link.serve(app, stop, settings.stop_s, lambda: self._bytes_to_expect)
                log.event("end", reason=how)
                return how
            finally:
                self.working = TaskThread.is_running()
                link.close()

    @cached_property
    def _bytes_to_expect(self) -> int:
        """Bytes of the installed model's weights; the site is not opened for this."""
        if self._weights_bytes is not None:
            return self._weights_bytes
        # Imported late: it loads torch, which a process with another model does not need.
        from knowmine.client.vault.requests import installed_manifest

        return bytes_of_manifest(installed_manifest(self._settings.model))

    @cached_property
    def _worker(self) -> Worker:
        worker = Remembering(self._open_worker(), self._own / ANSWERS)
        self._log.event("isolation", level="warning" if self._missing else "info",
                        missing=list(self._missing))  # fmt: skip
        return worker

    def _open_site(self) -> Worker:
        # Imported late: torch takes seconds, and the connection should not wait for it.
        from knowmine.client.site.open import open_site_of

        return SiteWorker(open_site_of(self._settings))
