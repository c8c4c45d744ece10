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

from knowmine.client.clicks import Click
from knowmine.client.review import Overtaken, Review, ReviewCase, UnknownCase
from knowmine.client.reviewed import Decision, Verdict
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


class DecisionAsked(BaseModel):
    """What the page sends with a decision; mask: a PNG in base64."""

    verdict: Verdict
    seen: str | None = None
    mask: str | None = None


class ClicksAsked(BaseModel):
    """What the page sends with a click: all clicks on the object so far."""

    clicks: list[Click] = Field(min_length=1)


class ReviewServer:
    """Serves `review` until `close`; `url` is what to open."""

    def __init__(self, review: Review, title: str, going: Callable[[], bool], port: int) -> None:
        """Bind the port at once; raise `UsageError` where another process has it."""
        self._review, self._title, self._going = review, title, going
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

    def overview(self) -> dict[str, Any]:
        """What the page is about."""
        return {"title": self._title, "role": self._review.role, "going": self._going()}

    def cases(self) -> list[dict[str, Any]]:
        """The list of cases with what was decided, worst judged first."""
        decisions = self._review.decisions()
        return [_told(case, decisions.get(case.id)) for case in self._review.cases()]

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
        content = files("knowmine.client").joinpath("review_page", name).read_bytes()
        return Response(content, media_type=_KINDS[name.rsplit(".", 1)[1]])

    async def overview(request: Request) -> Response:
        return JSONResponse({**server.overview(), "cases": await run_in_threadpool(server.cases)})

    async def picture(request: Request) -> Response:
        case = review.case(request.path_params["id"])
        return Response(await run_in_threadpool(review.picture, case), media_type="image/png")

    async def mask(request: Request) -> Response:
        case = review.case(request.path_params["id"])
        png = await run_in_threadpool(review.mask, case, request.path_params["which"])
        return Response(status_code=204) if png is None else Response(png, media_type="image/png")

    async def sam(request: Request) -> Response:
        case = review.case(request.path_params["id"])
        asked = ClicksAsked.model_validate_json(await _body(request))
        png = await run_in_threadpool(review.click, case, asked.clicks)
        return Response(png, media_type="image/png")

    async def draft(request: Request) -> Response:
        case = review.case(request.path_params["id"])
        if request.method == "DELETE":
            await run_in_threadpool(review.forget_draft, case)
        else:
            await run_in_threadpool(review.save_draft, case, await _body(request))
        return Response(status_code=204)

    async def decide(request: Request) -> Response:
        case = review.case(request.path_params["id"])
        asked = DecisionAsked.model_validate_json(await _body(request))
        try:
            png = None if asked.mask is None else base64.b64decode(asked.mask, validate=True)
        except binascii.Error:
            raise UsageError("the mask is no base64: load the page again") from None
        decision = await run_in_threadpool(review.decide, case, asked.verdict, asked.seen, png)
        return JSONResponse(_told(case, decision))

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
            Route(f"{case}/image.png", picture),
            Route(f"{case}/sam", sam, methods=["POST"]),
            Route(f"{case}/draft", draft, methods=["PUT", "DELETE"]),
            Route(f"{case}/decision", decide, methods=["POST"]),
            Route(f"{case}/{{which:str}}.png", mask),
            Route("/", page),
            Route("/{name:str}", page),
        ],
        exception_handlers=errors,
    )


def _told(case: ReviewCase, decision: Decision | None) -> dict[str, Any]:
    """A case as the page knows it."""
    return {
        "id": case.id,
        "stem": case.kept.stem,
        "site": case.place.site,
        "round": case.kept.round,
        "height": case.shown[0],
        "width": case.shown[1],
        "quality": round(case.kept.quality, 3),
        "disagreement": None if case.disagreement is None else round(case.disagreement, 3),
        "worth": round(case.worth, 3),
        "used": case.kept.kept,
        "decision": None if decision is None else decision.model_dump(mode="json"),
    }


def _status_of(error: Exception) -> int:
    if isinstance(error, Overtaken):
        return 409
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
