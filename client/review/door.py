"""Let only one person's browser on this machine reach the review.

1. A request under another host name than this machine's gets 403.
2. The printed address holds a token. Its first use sets a cookie; the token is then void.
3. A request without that cookie gets 403.
4. A request that changes something must carry a header that no other site's page can send.
5. The page may load only its own files (Content-Security-Policy).
"""

import hmac
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Door:
    """An ASGI app in front of another: checks each request, adds the headers to each response."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self.token = secrets.token_urlsafe(32)
        self._cookie_name, self._cookie = f"knowmine-review-{port}", secrets.token_urlsafe(32)
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._used = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        answer = self._answer(request)
        await (answer or self._app)(scope, receive, with_headers)

    def _answer(self, request: Request) -> Response | None:
        """The refusal, or the redirect that sets the cookie; None to pass the request on."""
        # 1.
        if request.headers.get("host") not in self._hosts:
            return PlainTextResponse("403: this page answers on this machine only", 403)
        known = _equal(request.cookies.get(self._cookie_name, ""), self._cookie)
        # 2.
        if (token := request.query_params.get("token")) is not None and request.url.path == "/":
            if not known and (self._used or not _equal(token, self.token)):
                return PlainTextResponse(
                    "403: this address is wrong or was used before. Stop the review (Ctrl-C), "
                    "start it again, and open the address that it prints.",
                    403,
                )
            self._used = True
            answer = RedirectResponse("/", 303)
            answer.set_cookie(self._cookie_name, self._cookie, httponly=True, samesite="strict")
            return answer
        # 3.
        if not known:
            return PlainTextResponse(
                "403: open the address that `knowmine-client review` printed last", 403
            )
        # 4.
        if request.method not in ("GET", "HEAD") and request.headers.get("x-knowmine") != "review":
            return PlainTextResponse("403: this did not come from the review's page", 403)
        return None


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())
