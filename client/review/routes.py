"""Answer the requests of the review's page."""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from knowmine.client.review import pictures
from knowmine.client.review.cases import ReviewCase, UnknownCase, in_round
from knowmine.client.review.changes import ChangeFeed, entry_of
from knowmine.client.review.clicks import Click
from knowmine.client.review.decisions import Decision, Verdict
from knowmine.client.review.mask_png import png_of
from knowmine.client.review.session import Overtaken, Review, Shown
from knowmine.client.storage.pseudo_label_store import Gone
from knowmine.shared.errors import KnowmineError, UsageError

MAX_BODY_BYTES = 8 << 20

_PAGE = {"": "review.html", "review.css": "review.css"}
_PAGE |= {
    f"{name}.js": f"{name}.js"
    for name in ("review", "state", "messages", "list", "case", "decide", "canvas", "server")
}
_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}

_WINDOW = r"^[0-9a-f]{16}$"
"""The name that a browser window gives itself."""
_DIGEST = r"^[0-9a-f]{64}$"


class DecisionRequest(BaseModel):
    """A decision from the page.

    round, image: of what was on screen, which may be older than the list. seen: id of the last
    decision that the person knew about. mask: PNG in base64.
    """

    verdict: Verdict
    window: str = Field(pattern=_WINDOW)
    round: int = Field(ge=1)
    image: str = Field(pattern=_DIGEST)
    id: str | None = Field(None, pattern=r"^[0-9a-f]{16}$")
    seen: str | None = None
    mask: str | None = None


class ClicksRequest(BaseModel):
    """All clicks so far on one object, and the SHA-256 of the image on screen."""

    image: str
    clicks: list[Click] = Field(min_length=1)


def review_app(review: Review, title: str, running: Callable[[], bool]) -> Starlette:
    """The web application of a review. title: of the run; running: whether it has not ended."""
    answers = _Answers(review, title, running)
    case = "/api/cases/{id:str}"
    errors: dict[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
        KnowmineError: _refused,
        ValidationError: _refused,
    }
    return Starlette(
        routes=[
            Route("/api/review", answers.overview),
            Route(f"{case}/accepted.png", answers.accepted),
            Route(f"{case}/sam", answers.sam, methods=["POST"]),
            Route(f"{case}/drafts/{{window:str}}", answers.draft, methods=["GET", "PUT", "DELETE"]),
            Route(f"{case}/decision", answers.decide, methods=["POST"]),
            Route(f"{case}/{{round:int}}/image.png", answers.image),
            Route(f"{case}/{{round:int}}/{{which:str}}.png", answers.mask),
            Route("/", _page),
            Route("/{name:str}", _page),
        ],
        exception_handlers=errors,
    )


class _Answers:
    """One method per address. Disk and SAM run in threads, so a slow one delays no other request."""

    def __init__(self, review: Review, title: str, running: Callable[[], bool]) -> None:
        self._review, self._title, self._running = review, title, running
        self._feed = ChangeFeed(review)

    async def overview(self, request: Request) -> Response:
        def answer(since: str) -> dict[str, Any]:
            about = {"title": self._title, "role": self._review.role, "running": self._running()}
            return about | self._feed.since(since)

        since = request.query_params.get("since", "")
        return JSONResponse(await run_in_threadpool(answer, since))

    async def image(self, request: Request) -> Response:
        case = in_round(await self._case(request), request.path_params["round"])
        return _png(await run_in_threadpool(pictures.image_png, self._review.cases, case))

    async def mask(self, request: Request) -> Response:
        case = in_round(await self._case(request), request.path_params["round"])
        which = request.path_params["which"]
        return _png(
            await run_in_threadpool(pictures.model_mask_png, self._review.cases, case, which)
        )

    async def accepted(self, request: Request) -> Response:
        case = await self._case(request)

        def answer() -> bytes | None:
            return pictures.accepted_png(case, self._review.decision(case))

        return _png(await run_in_threadpool(answer))

    async def sam(self, request: Request) -> Response:
        case = await self._case(request)
        asked = ClicksRequest.model_validate_json(await _body(request))
        if asked.image != case.label.digest:
            raise UsageError("the image's file was changed since it was shown: open the case again")

        def answer() -> bytes:
            return png_of(self._review.sam.mask(case, asked.clicks))

        return _png(await run_in_threadpool(answer))

    async def draft(self, request: Request) -> Response:
        case, window = await self._case(request), request.path_params["window"]
        if not re.fullmatch(_WINDOW, window):
            raise UsageError("no window has that name: load the page again")
        if request.method == "GET":
            return _png(await run_in_threadpool(pictures.draft_png, case, window))
        if request.method == "DELETE":
            await run_in_threadpool(self._review.discard_draft, case, window)
        else:
            await run_in_threadpool(self._review.save_draft, case, window, await _body(request))
        return Response(status_code=204)

    async def decide(self, request: Request) -> Response:
        case = await self._case(request)
        asked = DecisionRequest.model_validate_json(await _body(request))
        try:
            png = None if asked.mask is None else base64.b64decode(asked.mask, validate=True)
        except binascii.Error:
            raise UsageError("the mask is not base64: load the page again") from None

        def answer() -> Decision:
            return self._review.decide(
                case,
                asked.verdict,
                shown=Shown(asked.round, asked.image),
                seen=asked.seen,
                window=asked.window,
                png=png,
                id_=asked.id,
            )

        return JSONResponse(entry_of(case, await run_in_threadpool(answer)))

    async def _case(self, request: Request) -> ReviewCase:
        return await run_in_threadpool(self._review.cases.get, request.path_params["id"])


async def _page(request: Request) -> Response:
    name = _PAGE.get(request.path_params.get("name", ""))
    if name is None:
        return PlainTextResponse("404: no such page", 404)
    content = files("knowmine.client.review").joinpath("page", name).read_bytes()
    return Response(content, media_type=_MEDIA_TYPES[name.rsplit(".", 1)[1]])


async def _refused(request: Request, error: Exception) -> Response:
    answer: dict[str, Any] = {"error": str(error)}
    if isinstance(error, Overtaken):
        answer["decision"] = error.decision.model_dump(mode="json")
    return JSONResponse(answer, _status_of(error))


def _status_of(error: Exception) -> int:
    if isinstance(error, Overtaken):
        return 409
    if isinstance(error, Gone):
        return 410
    if isinstance(error, UnknownCase):
        return 404
    return 422 if isinstance(error, UsageError | ValidationError) else 507


def _png(content: bytes | None) -> Response:
    return Response(content, media_type="image/png") if content else Response(status_code=204)


async def _body(request: Request) -> bytes:
    """The request's body; refused before it fills the memory."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY_BYTES:
            raise UsageError(f"more than {MAX_BODY_BYTES >> 20} MiB at once: load the page again")
    return bytes(content)
