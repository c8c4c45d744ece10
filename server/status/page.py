"""The coordinator's live page and Prometheus metrics, from what a run has on disk; never an image.

Counts of fewer than five test images are left out, and so are the scores that rest on them.
A page of another origin that had its own name point here (DNS rebinding) is not answered.
"""

import ipaddress
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jinja2
import uvicorn
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from knowmine.server.release.model_cards import published
from knowmine.server.status.status import read_status
from knowmine.shared.errors import UsageError

EVENTS = 40
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
}


def figures_of(run: Path) -> dict[str, Any]:
    """All that the page, the metrics and `status --format json` tell of the run in a folder.

    `read_status`, and `history` (a record for each round) and `events` (the last of the log).
    Raises `UsageError` where there is no run.
    """
    history = []
    for file in sorted((run / "rounds").glob("*.json")):
        try:
            record = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue  # being written, or damaged: the journal's affair
        if record.get("round"):
            history.append(_told(record))
    dice = history[-1]["dice"] if history else None
    return {
        **read_status(run),
        "dice": dice,
        "history": history,
        "events": _events(run / "run.log.jsonl"),
    }


def metrics_of(figures: Mapping[str, Any]) -> bytes:
    """The same in Prometheus' text format."""
    registry = CollectorRegistry()

    def gauge(name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"knowmine_{name}", what, labels, registry=registry)

    running = figures["status"] in ("waiting", "running")
    gauge("running", "1 while the server runs.").set(running)
    gauge("round", "Round under way, or the last one.").set(figures["round"])
    if figures["rounds"]:
        gauge("rounds", "Rounds of the run.").set(figures["rounds"])
    connected = gauge("site_connected", "1 while the site is here.", "site")
    last = gauge("site_last_round", "Last round that the site trained in.", "site")
    ends = gauge("certificate_expiry_seconds", "Unix time of the certificate's end.", "site")
    for name, site in figures["sites"].items():
        connected.labels(name).set(site["connected"])
        last.labels(name).set(site["last_round"])
        if not site["revoked"]:
            ends.labels(name).set(datetime.fromisoformat(site["certificate_expires"]).timestamp())
    if server_ends := figures.get("server_certificate_expires"):
        gauge("server_certificate_expiry_seconds", "The same of the server's own.").set(
            datetime.fromisoformat(server_ends).timestamp()
        )
    history = figures["history"]
    if not history:
        return generate_latest(registry)
    sent = gauge("bytes", "Bytes of all rounds so far.", "direction")
    for direction in ("down", "up"):
        sent.labels(direction).set(sum(r[f"bytes_{direction}"] for r in history))
    if history[-1]["dice"] is not None:
        gauge("dice", "Dice of the global model.").set(history[-1]["dice"])
    dice = gauge("site_dice", "Dice on the site's own test images.", "site")
    for name, scores in history[-1]["per_site"].items():
        if scores["dice"] is not None:
            dice.labels(name).set(scores["dice"])
    quality = gauge("site_mining_quality", "Mean judged quality of pseudo-labels.", "site")
    for name, mined in history[-1]["mined_per_site"].items():
        quality.labels(name).set(mined["mean_quality"])
    gauge("round_seconds", "Seconds of the last round.").set(history[-1]["seconds"])
    return generate_latest(registry)


def mining_cards(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each site mined over all rounds, by name; a site that mined nothing has no card.

    last: its last round's figures. course: judged quality by round, as points of an SVG of
    100 x 20.
    """
    mined: dict[str, list[Mapping[str, Any]]] = {}
    for record in history:
        for name, one in record["mined_per_site"].items():
            if one["kept"] + one["dropped"]:
                mined.setdefault(name, []).append(one)
    cards = []
    for name, rounds in sorted(mined.items()):
        kept, dropped = (sum(one[key] for one in rounds) for key in ("kept", "dropped"))
        qualities = [one["mean_quality"] for one in rounds]
        step = 100 / max(1, len(qualities) - 1)
        points = (
            list(enumerate(qualities)) if len(qualities) > 1 else [(n, *qualities) for n in (0, 1)]
        )
        cards.append(
            {
                "name": name,
                "last": rounds[-1],
                "rounds": len(rounds),
                "kept": kept,
                "total": kept + dropped,
                "course": " ".join(f"{i * step:.1f},{20 - 20 * q:.1f}" for i, q in points),
            }
        )
    return cards


class KnownHosts:
    """Answers those who ask for an address or for one of these names, and refuses others with 403.

    A browser that was led here by a foreign name says that name; it cannot be led by an address.
    Starlette's TrustedHostMiddleware would have to be told every address, and knows none of IPv6.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app, self._names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
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

    names: host names by which it may be asked for, beside localhost and addresses.
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

    async def told(request: Request) -> Response:
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
            Route("/status.json", told),
            Route("/metrics", metrics),
            static("page.css", "text/css"),
            static("page.js", "text/javascript"),
        ],
        middleware=[Middleware(KnownHosts, names={"localhost", *names})],
        exception_handlers={UsageError: refused},
    )


def serve_status(run: Path, host: str, port: int, names: Collection[str] = ()) -> None:
    """Serve the page until Ctrl-C; raise `UsageError` where the port is taken."""
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
            f"cannot listen on {host}:{port}: another program has that port; choose another "
            "with --port"
        ) from None
    uvicorn.Server(config).run(sockets=[listening])


def _told(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round's record with small counts left out, and the mean over the sites that are shown."""
    sites = {
        name: {
            "test_images": published(scores["test_images"]),
            "dice": scores["dice"] if published(scores["test_images"]) else None,
        }
        for name, scores in record.get("per_site", {}).items()
    }
    shown = [
        (int(s["test_images"]), float(s["dice"]))
        for s in sites.values()
        if s["test_images"] and s["dice"] is not None
    ]
    images = sum(count for count, _ in shown)
    return {
        "round": record["round"],
        "seconds": record["seconds"],
        "sites": record["sites"],
        # Not the run's own mean: beside the others it would give away a site that is left out.
        "dice": round(sum(dice * count for count, dice in shown) / images, 6) if images else None,
        "bytes_down": record.get("bytes_down", 0),
        "bytes_up": record.get("bytes_up", 0),
        "mined": record["mined"],
        "per_site": sites,
        "mined_per_site": record.get("mined_per_site", {}),
        "refused": record.get("refused", {}),
    }


def _events(log: Path) -> list[dict[str, str]]:
    """The last lines of the log that tell a person something, newest first."""
    told = []
    try:
        lines = log.read_bytes().splitlines()[-400:]
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") not in ("update", "round"):
            keys = ("time", "level", "event", "site", "reason")
            told.append({key: str(event.get(key) or "") for key in keys})
    return told[-EVENTS:][::-1]
