"""ServerApp and ClientApp for `flwr run` on any Flower federation.

`app/pyproject.toml` names `server` and `client` below. On a stock SuperNode, `--node-config`
describes the site (`NodeSettings`). In Flower's simulation engine, a site is one part of the data
in the run's settings, divided as knowmine-simulate does.
"""

import hashlib
import logging
import time
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knowmine.deploy.flower.settings import NodeSettings
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.shared.errors import RunFailed, UsageError, reason_of
from knowmine.shared.log import plain
from knowmine.shared.settings import read_settings
from knowmine.shared.wire import quiet_flower  # noqa: F401 - before Flower is imported

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:  # torch takes seconds, so it is loaded only when there is work
    from knowmine.client.data.dataset import HiddenMasks, SiteData
    from knowmine.client.site.site import Site
    from knowmine.server.rounds.sites import Sites

APP = Path(__file__).with_name("app")
"""The folder to give to `flwr run`."""

POLL_S = 0.25
SITE_FAILED = 2
"""Flower's code for an error in a ClientApp; the reason that goes with it is one of `REASONS`."""

Config = Mapping[str, Any]
server = ServerApp()
client = ClientApp()


# ── server ─────────────────────────────────────────────────────────────────────────────────────


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds in the folder `out`, or go on with an unfinished run there."""
    from knowmine.client.device import settle
    from knowmine.deploy.simulation.progress import make_display
    from knowmine.server.journal.ending import ending
    from knowmine.server.journal.resuming import begin_or_resume, write_closing
    from knowmine.server.rounds.app import server_app
    from knowmine.server.rounds.rounds import run_rounds
    from knowmine.shared.log import open_log
    from knowmine.shared.unetplusplus import build_model, weights_of

    settings, run = _run_settings(context.run_config), Path(_named("out", context.run_config))
    plan, dump = settings.plan, plain(settings.model_dump(mode="json"))
    settle(settings.machine.threads)
    with (
        begin_or_resume(run, dump, dump) as journal,
        open_log(run / "run.log.jsonl") as log,
        make_display("text") as display,
    ):

        def end(status: str, reason: str) -> None:
            write_closing(journal, status, reason, plan.seed)

        def rounds(sites: "Sites") -> None:
            run_rounds(
                sites,
                journal,
                plan,
                settings.run,
                lambda: weights_of(build_model(plan.model, plan.seed)),
                log=log,
                watch=display,
            )

        log.event("start", method=plan.method, seed=plan.seed)
        with ending(run, log, end, "go on with the same `flwr run`"):
            _wait(grid, context.run_config)
            server_app(rounds)(grid, context)


def _run_settings(config: Config) -> SimulationSettings:
    return read_settings(SimulationSettings, Path(_named("settings", config)), {})


def _named(key: str, config: Config) -> str:
    if not config.get(key):
        raise UsageError(f"{key} is missing: add --run-config '{key}=\"/path\"' to flwr run")
    return str(config[key])


def _wait(grid: Grid, config: Config) -> None:
    """Wait until as many nodes are online as the run needs."""
    wanted, patience_s = int(config["sites"]), float(config["patience-s"])
    deadline = time.monotonic() + patience_s
    while (online := len(list(grid.get_node_ids()))) < wanted:
        if time.monotonic() > deadline:
            raise RunFailed(
                f"{online} of {wanted} nodes are online after {patience_s:.0f} s: start the "
                "others and repeat the same `flwr run`, or set a lower number with sites=N"
            )
        time.sleep(POLL_S)


# ── site ───────────────────────────────────────────────────────────────────────────────────────


@client.query()
@client.train()
@client.evaluate()
def answer(message: Message, context: Context) -> Message:
    """The site's reply; the server learns only the kind of an error, never its text."""
    try:
        return _site_app()(message=message, context=context)
    except Exception as error:
        # Logged at the node only: Flower would send the text, with paths, to the server.
        logging.getLogger(__name__).exception("the site could not answer")
        return Message(Error(code=SITE_FAILED, reason=reason_of(error)), reply_to=message)


@cache
def _site_app() -> ClientApp:
    from knowmine.client.federation.app import client_app
    from knowmine.client.site.worker import SiteWorker

    return client_app(
        lambda context: SiteWorker(
            open_site_of(_items(context.node_config), _items(context.run_config))
        )
    )


def _items(config: Config) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted(config.items()))


@lru_cache(maxsize=1)
def open_site_of(
    node_items: tuple[tuple[str, Any], ...], run_items: tuple[tuple[str, Any], ...]
) -> "Site":
    """The node's site; the process opens it once."""
    from knowmine.client.device import pick_compute, settle
    from knowmine.client.site.open import opened, sam_opener

    config, run_config = dict(node_items), dict(run_items)
    settings: NodeSettings | SimulationSettings
    if "partition-id" in config:
        settings = _run_settings(run_config)
        model, state = settings.plan.model, Path(_named("out", run_config)) / "sites"
        data, hidden = _part(settings, config["partition-id"], config["num-partitions"])
    else:
        settings = node_settings(config)
        model, state = settings.model, settings.state / _digest(run_config.get("out"))
        data, hidden = _own(settings)
    machine, sam = settings.machine, settings.sam
    settle(machine.threads)

    folder = state / data.name
    folder.mkdir(parents=True, exist_ok=True)
    return opened(
        data,
        hidden,
        model,
        settings.split,
        sam,
        folder=folder,
        open_sam=sam_opener(sam, machine, model.image_px),
        compute=pick_compute(machine.device),
    )


def node_settings(config: Config) -> NodeSettings:
    """Settings from `--node-config`: keys of `NodeSettings`, and `settings`, a file with more keys."""
    keys = dict(config)
    file = keys.pop("settings", None)
    return read_settings(NodeSettings, Path(file) if file else None, keys)


def _own(settings: NodeSettings) -> "tuple[SiteData, HiddenMasks]":
    from knowmine.client.data.dataset import open_site

    return open_site(settings.site, settings.data, **settings.split.arguments(), seed=settings.seed)


def _part(settings: SimulationSettings, part: int, parts: int) -> "tuple[SiteData, HiddenMasks]":
    """One site of a simulation with as many sites as there are nodes."""
    from knowmine.deploy.simulation.sites import open_folders

    sites = settings.sites
    if sites.data:
        sites = sites.model_copy(update={"count": parts})
    found = list(open_folders(settings.model_copy(update={"sites": sites})).values())
    if len(found) != parts:
        raise UsageError(
            f"the settings name {len(found)} sites and there are {parts} nodes: make them equal"
        )
    return found[part]


def _digest(out: object) -> str:
    """A folder name for a run; a resumed run has the same."""
    return hashlib.sha256(str(out).encode()).hexdigest()[:16]
