"""Serve the coordinator's live page and Prometheus metrics.

Requests under an unknown host name are refused, against DNS rebinding.
"""

import ipaddress
from collections.abc import Collection
from pathlib import Path
from urllib.parse import urlsplit

import jinja2
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from knowmine.server.status.figures import figures_of, mining_cards
from knowmine.server.status.metrics import metrics_of
from knowmine.shared.errors import UsageError

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


class KnownHosts:
    """Middleware that answers requests for an IP address or for one of `names`; others get a 403.

    In DNS rebinding, a browser sends the name of the foreign site; it cannot send an address.
    Starlette's TrustedHostMiddleware needs a list of all addresses and does not support IPv6.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or refuse one request."""
        app = self._app
        if scope["type"] == "http" and not self._known(Request(scope).headers.get("host", "")):
            app = PlainTextResponse(
                "this page is not served under that name: open it by its address, or start "
                "`status --serve` with --allow-host and the name",
                403,
                headers=HEADERS,
            )
        await app(scope, receive, send)

    def _known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def status_app(run: Path, names: Collection[str] = ()) -> Starlette:
    """The page at /, its figures at /status.json, and /metrics.

    names: host names that are accepted, beside localhost and IP addresses.
    """
    here = Path(__file__)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["score"] = lambda value: "–" if value is None else f"{value:.3f}"
    environment.filters["megabytes"] = lambda count: f"{count / 1e6:.1f} MB"

    async def page(request: Request) -> Response:
        source = here.with_name("page.html").read_text(encoding="utf-8")
        figures = await run_in_threadpool(figures_of, run)
        cards = mining_cards(figures["history"])
        html = environment.from_string(source).render(**figures, cards=cards)
        return Response(html, media_type="text/html", headers=HEADERS)

    async def figures_json(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(figures_of, run), headers=HEADERS)

    async def metrics(request: Request) -> Response:
        text = metrics_of(await run_in_threadpool(figures_of, run))
        return Response(text, media_type="text/plain; version=0.0.4", headers=HEADERS)

    def static(name: str, kind: str) -> Route:
        async def serve(request: Request) -> Response:
            return Response(here.with_name(name).read_bytes(), media_type=kind, headers=HEADERS)

        return Route(f"/{name}", serve)

    async def refused(request: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 503, headers=HEADERS)

    return Starlette(
        routes=[
            Route("/", page),
            Route("/status.json", figures_json),
            Route("/metrics", metrics),
            static("page.css", "text/css"),
            static("page.js", "text/javascript"),
        ],
        middleware=[Middleware(KnownHosts, names={"localhost", *names})],
        exception_handlers={UsageError: refused},
    )


def serve_status(run: Path, host: str, port: int, names: Collection[str] = ()) -> None:
    """Serve the page until Ctrl-C; raise `UsageError` if the port is in use."""
    config = uvicorn.Config(
        status_app(run, {host, *names}),
        host=host,
        port=port,
        log_config=None,
        lifespan="off",
        server_header=False,
    )
    try:
        listening = config.bind_socket()
    except SystemExit:
        raise UsageError(
            f"cannot listen on {host}:{port}: another program uses that port; choose another "
            "with --port"
        ) from None
    uvicorn.Server(config).run(sockets=[listening])
