"""The process that stays at a site: it keeps the models loaded and answers the server."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property

from knowmine.client.audit.log import Chain, record_of
from knowmine.client.egress.approval import PENDING
from knowmine.client.egress.porter import Porter
from knowmine.client.federation.app import client_app
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.federation.link import Link
from knowmine.client.paths import ANSWERS, FEEDBACK, leftovers, prepare
from knowmine.client.settings import SITE_LOG, ClientSettings, policy_of
from knowmine.client.site.worker import Remembering, SiteWorker, Worker
from knowmine.shared.lock import FolderLock
from knowmine.shared.log import RunLog, Telling, open_log
from knowmine.shared.mask_decoder import DECODER_BYTES
from knowmine.shared.trust.certificates import warning_of_expiry
from knowmine.shared.weights import bytes_of_manifest


class Resident:
    """One site's process, from its settings.

    missing: what the isolation of the site's processes lacks, in words; it may grow meanwhile.
    open_worker: opens the site when the server first asks, so that the connection is up at once.
    weights_bytes: of that worker's model; not set: of the model in the settings.
    tell: is told of what the log is told.
    """

    def __init__(
        self,
        settings: ClientSettings,
        open_worker: Callable[[], Worker] | None = None,
        missing: Sequence[str] = (),
        tell: Telling | None = None,
        weights_bytes: int | None = None,
    ) -> None:
        """Check what can be checked without the network; raise `UsageError` where it fails."""
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
        if names := leftovers(settings.state):
            log.event("leftovers", level="warning", names=", ".join(names), folder=settings.state,
                      reason="newer ones are in courier/; remove these, or run forget")  # fmt: skip
        if warning := warning_of_expiry(self._keys.certificate):
            log.event("expiry", level="warning", reason=warning)
        self._log = log
        policy, records = self._policy, self._policy.records
        log.event("policy", digest=policy.digest(), approval=policy.approval)
        path = record_of(settings.state)
        # The record first: where it is wrong, nothing may leave, and nobody need be called.
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
                self.working = any(thread.name == "work" for thread in threading.enumerate())
                link.close()

    @cached_property
    def _bytes_to_expect(self) -> int:
        """Of weights, by what is installed here, and of a SAM decoder, which a plan may share.

        The site is not opened for it.
        """
        if self._weights_bytes is not None:
            return self._weights_bytes
        # Imported late: it brings torch, which a process does without whose model is another.
        from knowmine.client.vault.requests import installed_manifest

        return bytes_of_manifest(installed_manifest(self._settings.model)) + DECODER_BYTES

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
