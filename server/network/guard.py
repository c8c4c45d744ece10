"""Check every request of the closed federation before Flower sees it.

1. the connection's certificate is pinned for a site that is admitted now
2. the body is not larger than allowed
3. the Flower node key is the site's own
4. the process is the one that works for the site
"""

import base64
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.network.presence import AnotherIsHere, NotHere, Presence
from knowmine.shared.errors import Refused
from knowmine.shared.trust.certificates import to_der
from knowmine.shared.wire.codec import INSTANCE_HEADER, REPLACES_HEADER, VERSION_HEADER

CHECK_EVERY_S = 1.0
"""The allow-list is checked for changes at most this often."""


class Members:
    """Which certificate and node key belong to which site, by the allow-list of this moment.

    key_bytes: a node key in the transport's form.
    """

    def __init__(
        self, allow_list: AllowList, key_bytes: Callable[[ec.EllipticCurvePublicKey], bytes]
    ) -> None:
        self._allow_list, self._key_bytes = allow_list, key_bytes
        self._lock = threading.Lock()
        self._version: object = None
        self._checked_at = -CHECK_EVERY_S
        self._by_certificate: dict[bytes, str] = {}
        self._node_keys: dict[str, bytes] = {}

    def site_of(self, certificate_der: bytes) -> str | None:
        """The admitted site that this certificate is pinned for."""
        self._follow()
        return self._by_certificate.get(certificate_der)

    def node_keys(self) -> dict[str, bytes]:
        """The node key of each admitted site."""
        self._follow()
        return self._node_keys

    def _follow(self) -> None:
        with self._lock:
            if time.monotonic() - self._checked_at < CHECK_EVERY_S:
                return
            self._checked_at = time.monotonic()
            if (version := self._allow_list.version()) == self._version:
                return
            sites = self._allow_list.sites()
            self._by_certificate = {
                to_der(certificate): name
                for name, site in sites.items()
                for certificate in site.loaded_certificates()
            }
            self._node_keys = {name: self._bytes(site.node_key) for name, site in sites.items()}
            self._version = version

    def _bytes(self, line: str) -> bytes:
        key = load_ssh_public_key(line.encode())
        return self._key_bytes(key) if isinstance(key, ec.EllipticCurvePublicKey) else b""


class SeesCertificate(HttpToolsProtocol):
    """uvicorn's connection, which also keeps the certificate that it was opened with."""

    def connection_made(self, transport: Any) -> None:
        """Put the peer's certificate (DER) into the state of each request."""
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls else None
        self.app_state = {**self.app_state, "certificate": certificate}


@dataclass(frozen=True)
class Sender:
    """Who a request is from, as `request.state.sender`. The last two matter only for joining."""

    site: str
    instance: str
    replaces: str
    version: str


class Guard:
    """ASGI middleware with the checks above; the fourth is left to the route that joins.

    before_joining: paths that a process may request before it has joined.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        members: Members,
        presence: Presence,
        before_joining: frozenset[str],
        key_header: str,
        max_bytes: int,
    ) -> None:
        self._app, self._members, self._presence = app, members, presence
        self._before_joining, self._key_header = before_joining, key_header
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it here."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        status, reason = self._check(scope, headers)
        if status:
            await JSONResponse({"detail": reason}, status)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_bytes:
                raise ClientDisconnect
            return message

        async def unless_too_large(message: Message) -> None:
            if seen <= self._max_bytes:
                await send(message)

        # The app responds to the disconnect by itself; `unless_too_large` drops that response.
        with suppress(ClientDisconnect):
            await self._app(scope, counted, unless_too_large)
        # An idle connection keeps its last request, and with it a part of a model.
        scope["state"].clear()
        if seen > self._max_bytes:
            await JSONResponse({"detail": self._too_large()}, 413)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        certificate = scope["state"].get("certificate")
        site = self._members.site_of(certificate) if certificate else None  # 1
        if site is None:
            return 403, "this certificate was not admitted, or it was revoked"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_bytes:  # 2
            return 413, self._too_large()
        try:
            shown = base64.b64decode(headers.get(self._key_header, ""), validate=True)
        except ValueError:
            shown = b""
        if shown != self._members.node_keys().get(site):  # 3
            return 403, f"this is not the node key of site {site!r}"
        sender = Sender(
            site,
            headers.get(INSTANCE_HEADER, "")[:64],
            headers.get(REPLACES_HEADER, "")[:64],
            headers.get(VERSION_HEADER, "")[:32],
        )
        scope["state"]["sender"] = sender
        try:  # 4
            if scope["path"] not in self._before_joining:
                self._presence.note_request(site, sender.instance)
        except Refused as error:
            return status_of(error), str(error)
        return 0, ""

    def _too_large(self) -> str:
        return f"a request may hold at most {self._max_bytes} bytes"


def status_of(error: Refused) -> int:
    """The HTTP status of a refusal."""
    if isinstance(error, NotHere):
        return 401
    return 409 if isinstance(error, AnotherIsHere) else 403
