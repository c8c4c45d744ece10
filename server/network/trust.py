"""Decide at each TLS handshake who may connect.

The server's certificate and the pinned certificates of the sites are read again whenever their
files change, so admitting, revoking and renewing need no restart.
"""

import logging
import ssl
import threading
from pathlib import Path

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.shared.errors import UsageError
from knowmine.shared.trust.keys import read_secret

log = logging.getLogger(__name__)

Version = tuple[object, ...]


class Trust:
    """The server's side of TLS 1.3, for the sites that are admitted at this moment.

    `context` goes to the web server once. At each handshake its `sni_callback` puts the newest
    context in its place. OpenSSL calls it even if the client names no server. It takes certificate,
    key and trust store from the newest context, but mode and version from `context`.

    An open connection outlives a revocation, so `guard.py` checks the certificate at each request.
    """

    def __init__(self, keys: Path, allow_list: AllowList) -> None:
        """Read server.key and server.crt in `keys`; raise `UsageError` if they cannot be used."""
        self._keys = keys
        self._allow_list = allow_list
        self._lock = threading.Lock()
        self._version = self._seen()
        self._newest = self._build()
        self.context = self._build()
        self.context.sni_callback = self._on_handshake

    def refresh(self) -> bool:
        """Read files that changed; return whether there were any.

        If a changed server certificate cannot be used, that is logged and the one in memory stays
        in use. If the allow-list changed too, this raises: the old list must not stay in use.
        """
        with self._lock:
            seen = self._seen()
            if seen == self._version:
                return False
            try:
                self._newest = self._build()
            except UsageError as error:
                if seen[1] != self._version[1]:
                    raise
                log.warning("the server's old certificate stays in use: %s", error)
            self._version = seen
            return True

    def _on_handshake(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, old: ssl.SSLContext
    ) -> int | None:
        try:
            self.refresh()
        except Exception:
            log.exception("a connection was refused: the server's keys cannot be read")
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        connection.context = self._newest
        return None

    def _seen(self) -> tuple[Version, Version]:
        pair = []
        for name in ("server.key", "server.crt"):
            try:
                state = (self._keys / name).stat()
                pair.append((state.st_ino, state.st_mtime_ns, state.st_size))
            except OSError:
                pair.append((0, 0, 0))
        return tuple(pair), self._allow_list.version()

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        # A pinned certificate is trusted as itself. Without this flag OpenSSL looks for its issuer
        # by name; during a renewal it takes the other of the two and locks the site out.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A resumed session is not verified again, so with tickets a revoked site could come back.
        context.num_tickets = 0
        key, certificate = self._keys / "server.key", self._keys / "server.crt"
        read_secret(key)
        try:
            context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"{certificate} and {key} cannot be used ({error}): provision again"
            ) from error
        for name, site in self._allow_list.sites().items():
            for pem in site.certificates:
                try:
                    context.load_verify_locations(cadata=pem)
                except ssl.SSLError as error:
                    log.warning("site %s: a certificate is not accepted (%s)", name, error)
        for file, reason in self._allow_list.damaged.items():
            log.warning("%s is damaged, so its site is not admitted: %s", file, reason)
        return context
