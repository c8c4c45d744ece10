"""The review's web server: one person's machine, one address, one token, nothing from outside.

1. It listens on 127.0.0.1 only.
2. The address that the command prints holds a token; its first use turns it into a cookie.
3. Whatever comes without that cookie, or by another host name, is refused with 403.
4. What changes something must say that it comes from this page (a header no other site can send).
5. The page may load nothing but itself (Content-Security-Policy).
"""

import base64
import binascii
import hmac
import re
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.resources import files
from typing import Any

import uvicorn
from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from knowmine.client.review.cases import ReviewCase, UnknownCase, of_round
from knowmine.client.review.changes import News, told_of
from knowmine.client.review.clicks import Click
from knowmine.client.review.decisions import Decision, Verdict
from knowmine.client.review.session import Overtaken, Review, Shown
from knowmine.client.storage.pseudo_label_store import Gone
from knowmine.shared.errors import KnowmineError, UsageError

HOST = "127.0.0.1"
PORT = 8737
MAX_BODY_BYTES = 8 << 20

_PAGE = {"": "review.html", "review.css": "review.css"}
_PAGE |= {name: name for name in ("review.js", "canvas.js", "server.js")}
_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


_WINDOW = r"^[0-9a-f]{16}$"
"""A browser's window, as it names itself."""


class DecisionAsked(BaseModel):
    """What the page sends with a decision; mask: a PNG in base64. round and image: of what was on
    screen, which may be older than what the list has now.
    """

    verdict: Verdict
    window: str = Field(pattern=_WINDOW)
    round: int = Field(ge=1)
    image: str = Field(pattern=r"^([0-9a-f]{64})?$")
    id: str | None = Field(None, pattern=r"^[0-9a-f]{16}$")
    seen: str | None = None
    mask: str | None = None


class ClicksAsked(BaseModel):
    """What the page sends with a click: all clicks on the object so far, and on which image."""

    image: str
    clicks: list[Click] = Field(min_length=1)


class ReviewServer:
    """Serves `review` until `close`; `url` is what to open."""

    def __init__(self, review: Review, title: str, going: Callable[[], bool], port: int) -> None:
        """Bind the port at once; raise `UsageError` where another process has it."""
        self._review, self._title, self._going = review, title, going
        self._news = News(review)
        self._socket = _bound(port)
        self.port: int = self._socket.getsockname()[1]
        door = Door(_app(self), self.port)
        self.url = f"http://{HOST}:{self.port}/?token={door.token}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                door, log_config=None, lifespan="off", access_log=False, server_header=False
            )
        )

    def run(self) -> None:
        """Serve until Ctrl-C."""
        threading.Thread(target=self._warm_up, name="sam", daemon=True).start()
        self._server.run(sockets=[self._socket])

    def close(self) -> None:
        """Stop serving."""
        self._server.should_exit = True

    def overview(self, since: str) -> dict[str, Any]:
        """What the page is about, and what of its list is new since then."""
        about = {"title": self._title, "role": self._review.role, "going": self._going()}
        return {**about, **self._news.since(since)}

    @property
    def review(self) -> Review:
        """What is served."""
        return self._review

    def _warm_up(self) -> None:
        with suppress(KnowmineError):  # the first click says it to the person
            self._review.warm_up()


class Door:
    """Lets in who has the token, and later the cookie."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        self._app = app
        self.token = secrets.token_urlsafe(32)
        self._cookie_name, self._cookie = f"knowmine-review-{port}", secrets.token_urlsafe(32)
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._used = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
            await send(message)

        answer = self._refused(request)
        await (answer or self._app)(scope, receive, with_headers)

    def _refused(self, request: Request) -> Response | None:
        """The answer that goes out in place of the page's own, if any."""
        if request.headers.get("host") not in self._hosts:
            return PlainTextResponse("403: this page answers on this machine only", 403)
        known = _equal(request.cookies.get(self._cookie_name, ""), self._cookie)
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
        if not known:
            return PlainTextResponse(
                "403: open the address that `knowmine-client review` printed last", 403
            )
        if request.method not in ("GET", "HEAD") and request.headers.get("x-knowmine") != "review":
            return PlainTextResponse("403: this did not come from the review's page", 403)
        return None


def _app(server: ReviewServer) -> Starlette:
    review = server.review

    async def page(request: Request) -> Response:
        name = _PAGE.get(request.path_params.get("name", ""))
        if name is None:
            return PlainTextResponse("404: no such page", 404)
        content = files("knowmine.client.review").joinpath("page", name).read_bytes()
        return Response(content, media_type=_KINDS[name.rsplit(".", 1)[1]])

    # Whatever may look at a disk does so in a thread: one slow folder keeps nobody else waiting.
    async def found(request: Request) -> ReviewCase:
        return await run_in_threadpool(review.case, request.path_params["id"])

    async def overview(request: Request) -> Response:
        since = request.query_params.get("since", "")
        return JSONResponse(await run_in_threadpool(server.overview, since))

    async def picture(request: Request) -> Response:
        case = of_round(await found(request), request.path_params["round"])
        return _png(await run_in_threadpool(review.picture, case))

    async def mask(request: Request) -> Response:
        case = of_round(await found(request), request.path_params["round"])
        return _png(await run_in_threadpool(review.mask, case, request.path_params["which"]))

    async def accepted(request: Request) -> Response:
        return _png(await run_in_threadpool(review.accepted, await found(request)))

    async def sam(request: Request) -> Response:
        case = await found(request)
        asked = ClicksAsked.model_validate_json(await _body(request))
        if asked.image != case.label.digest:
            raise UsageError("the image's file was changed since it was shown: open it once more")
        return _png(await run_in_threadpool(review.click, case, asked.clicks))

    async def draft(request: Request) -> Response:
        case, window = await found(request), request.path_params["window"]
        window = "" if window == "old" else window  # of earlier versions
        if window and not re.fullmatch(_WINDOW, window):
            raise UsageError("no window has that name: load the page again")
        if request.method == "GET":
            return _png(await run_in_threadpool(review.drawn, case, window))
        if request.method == "DELETE":
            await run_in_threadpool(review.forget_draft, case, window)
        else:
            await run_in_threadpool(review.save_draft, case, window, await _body(request))
        return Response(status_code=204)

    async def decide(request: Request) -> Response:
        case = await found(request)
        asked = DecisionAsked.model_validate_json(await _body(request))
        try:
            png = None if asked.mask is None else base64.b64decode(asked.mask, validate=True)
        except binascii.Error:
            raise UsageError("the mask is no base64: load the page again") from None

        def act() -> Decision:
            return review.decide(
                case,
                asked.verdict,
                shown=Shown(asked.round, asked.image),
                seen=asked.seen,
                window=asked.window,
                png=png,
                id_=asked.id,
            )

        return JSONResponse(told_of(case, await run_in_threadpool(act)))

    async def refused(request: Request, error: Exception) -> Response:
        told: dict[str, Any] = {"error": str(error)}
        if isinstance(error, Overtaken):
            told["decision"] = error.decision.model_dump(mode="json")
        return JSONResponse(told, _status_of(error))

    case = "/api/cases/{id:str}"
    errors: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        KnowmineError: refused,
        ValidationError: refused,
    }
    return Starlette(
        routes=[
            Route("/api/review", overview),
            Route(f"{case}/accepted.png", accepted),
            Route(f"{case}/sam", sam, methods=["POST"]),
            Route(f"{case}/drafts/{{window:str}}", draft, methods=["GET", "PUT", "DELETE"]),
            Route(f"{case}/decision", decide, methods=["POST"]),
            Route(f"{case}/{{round:int}}/image.png", picture),
            Route(f"{case}/{{round:int}}/{{which:str}}.png", mask),
            Route("/", page),
            Route("/{name:str}", page),
        ],
        exception_handlers=errors,
    )


def _png(content: bytes | None) -> Response:
    return Response(content, media_type="image/png") if content else Response(status_code=204)


def _status_of(error: Exception) -> int:
    if isinstance(error, Overtaken):
        return 409
    if isinstance(error, Gone):
        return 410
    if isinstance(error, UnknownCase):
        return 404
    return 422 if isinstance(error, UsageError | ValidationError) else 507


async def _body(request: Request) -> bytes:
    """The request's body, refused before it fills the memory."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise UsageError(f"more than {MAX_BODY_BYTES >> 20} MiB at once: load the page again")
    return bytes(content)


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((HOST, port))
        made.listen()
    except OSError as error:
        made.close()
        raise UsageError(
            f"cannot listen on {HOST}:{port} ({error.strerror}): another review or program may "
            "have that port; close it, or choose another with --port (0 takes any that is free)"
        ) from error
    return made


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
