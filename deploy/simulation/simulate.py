"""Many sites on one machine: the real server and the real sites, joined without a network.

The same ServerApp and ClientApp as in a federation; only the `Grid` between them is ours. It
serialises every message as the wire does, so that what works here has nothing shared by
accident, and works for one site at a time. They share one U-Net++ and one SAM, and those whose
images do not fit read them again for each turn (turns.py), so that memory does not grow with their
number.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from knowmine.client.data.dataset import HiddenMasks, SiteData, open_site, split_sites
from knowmine.client.device import Compute, pick_compute, settle
from knowmine.client.federation.app import client_app
from knowmine.client.sam.model import Tunable, load_sam
from knowmine.client.sam.weights import SamWeights, find_weights
from knowmine.client.site.open import cache_of, opened
from knowmine.client.site.site import Site
from knowmine.client.site.worker import SiteWorker
from knowmine.deploy.report.against_truth import gallery_of, judged_of
from knowmine.deploy.report.report import write_report
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.turns import Turns
from knowmine.server.rounds.app import server_app
from knowmine.server.rounds.ending import ending, versions
from knowmine.server.rounds.journal import Journal, refuse_used
from knowmine.server.rounds.rounds import Sites, Watch, run_rounds
from knowmine.server.rounds.summary import summarise
from knowmine.shared.errors import CannotWrite, KnowmineError, RunFailed, UsageError
from knowmine.shared.log import Progress, RunLog, open_log
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.wire.flower_objects import through_the_wire

# flower_objects has told Flower to phone nobody; only now may Flower be imported.
from flwr.app import Context, Error, Message, RecordDict  # isort: skip
from flwr.clientapp import ClientApp  # isort: skip
from flwr.proto.node_pb2 import NodeInfo  # isort: skip
from flwr.serverapp import Grid  # isort: skip
from flwr.supercore.run import Run  # isort: skip
from flwr.supercore.task_identity import TaskIdentity  # isort: skip

RUN_ID = 1


class Display(Progress, Watch, Protocol):
    """What shows a person how far the simulation is."""

    def site_started(self, site: str) -> None:
        """The steps that follow are this site's."""


class LocalGrid(Grid):
    """A Flower grid whose nodes are ClientApps in this process.

    A node does its work when its reply is pulled. Pulled one at a time, as knowmine's server
    does, no more than one update is in memory. An exception in a node becomes an error reply,
    as in Flower; Ctrl-C and a full disk end the run.
    """

    def __init__(self, apps: Mapping[int, ClientApp], started: Callable[[int], None]) -> None:
        self._apps, self._started = dict(apps), started
        self._contexts = {
            node: Context(
                run_id=RUN_ID, node_id=node, node_config={}, state=RecordDict(), run_config={}
            )
            for node in apps
        }
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)
        # Message() reads the identity of its run from the process; Flower's own grids set it so.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = RUN_ID

    def set_run(self, run: Run) -> None:
        """There is one run; nothing to set."""

    @property
    def run(self) -> Run:
        """There is no record of the run outside this process."""
        raise UsageError("a local grid keeps no Flower run; ask the journal instead")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node, as in Flower's older interface."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; none ever leaves."""
        return list(self._apps)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes; their sites name themselves."""
        return [NodeInfo(node_id=node) for node in self._apps]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Do the work of these messages' nodes and return the replies."""
        return [self._work(self._waiting.pop(i)) for i in message_ids if i in self._waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull until all have answered."""
        return self.pull_messages(self.push_messages(messages))

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self._started(node)
        arrived = through_the_wire(message)
        try:
            reply = self._apps[node](message=arrived, context=self._contexts[node])
        except CannotWrite:
            raise  # this machine's disk is every site's disk: stop, and go on when there is room
        except OSError as error:
            raise CannotWrite(
                f"cannot write {error.filename or 'a file'} ({error.strerror}): the finished "
                "rounds are safe; make room and go on with --resume"
            ) from error
        except KnowmineError as error:
            reply = Message(Error(code=2, reason=str(error)), reply_to=arrived)
        except Exception as error:  # noqa: BLE001 - as Flower: a node's bug is its error reply
            reply = Message(
                Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=arrived
            )
        reply.metadata.__dict__["_message_id"] = f"reply-{message.metadata.message_id}"
        return through_the_wire(reply)


def simulate(
    settings: SimulationSettings, run: Path, *, resume: bool, display: Display
) -> dict[str, Any]:
    """Run the simulation in folder `run` and return its summary.

    resume: go on after the last whole round in `run`.
    Raises `UsageError` for data, weights or settings that cannot be used, `RunFailed` when the
    run cannot go on, `Interrupted` on Ctrl-C. Once the run's folder is there, the summary is
    written whatever happens.
    """
    settle(settings.machine.threads)
    compute = pick_compute(settings.machine.device)
    if not resume:
        refuse_used(run)
    weights = _sam_weights(settings, display)
    sam = _Once(weights, settings)
    if weights is not None:
        sam.open()  # a truncated file is found before the first round, not in the second
    # All that can be wrong with data or settings shows before the run's folder is made.
    turns = Turns(_openers(settings, run, sam, compute, display), settings.sites.memory_bytes)
    sites = turns.sites
    dump = settings.model_dump(mode="json")
    with (
        Journal.open(run) if resume else Journal.create(run, dump) as journal,
        open_log(run / "run.log.jsonl") as log,
    ):
        log.event("start", resume=resume, method=settings.plan.method, seed=settings.plan.seed)
        log.event(
            "machine",
            compute=str(compute),
            threads=torch.get_num_threads(),
            sites_in_memory=turns.kept,
        )
        summary: dict[str, Any] = {}

        def end(status: str, reason: str) -> None:
            summary.update(
                summarise(
                    status=status,
                    reason=reason,
                    records=journal.records(),
                    roster=[site.name for site in sites],
                    settings=dump,
                    seed=settings.plan.seed,
                    sam=sam.facts(sites),
                    versions=versions(),
                ),
                left_out={site.name: site.left_out for site in sites if site.left_out},
                warnings={site.name: site.warnings for site in sites if site.warnings},
            )
            journal.write_summary(summary)
            _report(run, summary, sites)

        with ending(run, log, end, f"go on with `knowmine-simulate --resume {run}`"):
            _run(turns, journal, settings, log, display)
    return summary


def _openers(
    settings: SimulationSettings, run: Path, sam: "_Once", compute: Compute, display: Display
) -> Iterator[Callable[[], Site]]:
    """What opens each site; all have the same U-Net++, for only one works at a time."""
    network = build_model(settings.plan.model.model_copy(update={"pretrained": False}), seed=0)
    for data, hidden in open_folders(settings).values():
        yield partial(
            opened,
            data,
            hidden,
            settings.plan.model,
            settings.split,
            settings.sam,
            folder=run / "sites" / data.name,
            open_sam=sam.open,
            compute=compute,
            progress=display,
            network=network,
        )


def open_folders(settings: SimulationSettings) -> dict[str, tuple[SiteData, HiddenMasks]]:
    """Each site's images by name, and the masks that only its scorer may open."""
    common = {**settings.split.arguments(), "seed": settings.plan.seed}
    if settings.sites.data:
        return split_sites(
            settings.sites.data,
            settings.sites.count,
            dirichlet_alpha=settings.sites.alpha,
            **common,
        )
    if not settings.sites.folders:
        raise UsageError(
            "no data: give --data FOLDER (divided into --sites N) or --site NAME=FOLDER for each"
        )
    return {
        name: open_site(name, folder, **common) for name, folder in settings.sites.folders.items()
    }


def _report(run: Path, summary: Mapping[str, Any], sites: Sequence[Site]) -> None:
    try:
        write_report(run, summary, gallery_of(sites), judged_of(sites))
    except OSError as error:
        raise RunFailed(
            f"cannot write the report in {run} ({error.strerror}): the finished rounds are safe; "
            f"make room and go on with `--resume {run}`"
        ) from error


def _run(
    turns: Turns, journal: Journal, settings: SimulationSettings, log: RunLog, display: Display
) -> None:
    """Join sites and server by a local grid and run the ServerApp to its end."""
    for site in turns.sites:
        site.folder.mkdir(parents=True, exist_ok=True)
    by_node = dict(enumerate(turns.sites, start=RUN_ID + 1))
    # What rounding took from a site's update is on disk: as large as a model, at each site.
    apps = {
        node: client_app(lambda context: SiteWorker(by_node[context.node_id]), site.folder / "lost")
        for node, site in by_node.items()
    }

    def started(node: int) -> None:
        turns.begin(by_node[node])
        display.site_started(by_node[node].name)

    grid, plan = LocalGrid(apps, started), settings.plan

    def run(reached: Sites) -> None:
        run_rounds(
            reached,
            journal,
            plan,
            settings.run,
            lambda: weights_of(build_model(plan.model, plan.seed)),
            log=log,
            watch=display,
        )

    server_app(run)(
        grid,
        Context(run_id=RUN_ID, node_id=RUN_ID, node_config={}, state=RecordDict(), run_config={}),
    )


@dataclass
class _Once:
    """SAM, loaded once and shared by all sites."""

    weights: SamWeights | None
    settings: SimulationSettings
    loaded: Tunable | None = None

    def open(self) -> Tunable:
        if self.weights is None:
            raise UsageError(f"a plan with method {self.settings.plan.method!r} uses no SAM")
        if self.loaded is None:
            machine = self.settings.machine
            self.loaded = load_sam(self.weights, device=machine.device, threads=machine.threads)
        return self.loaded

    def facts(self, sites: Iterable[Site]) -> dict[str, Any] | None:
        """What the summary says of SAM: its name, digest and the images it looked at."""
        if self.weights is None:
            return None
        images = sum(site.embedded for site in sites) if self.loaded else 0
        return {"name": self.weights.name, "sha256": self.weights.digest, "images": images}


def _sam_weights(settings: SimulationSettings, display: Display) -> SamWeights | None:
    """SAM's weights, found before any work is done; None for a method that uses none."""
    if not settings.plan.asks_sam:
        return None
    return find_weights(settings.sam.weights, cache_of(settings.sam), Fetching(display))


class Fetching:
    """Shows a download as a step of the display."""

    def __init__(self, display: Progress) -> None:
        self._display, self._done, self._lock = display, 0, threading.Lock()

    def __call__(self, file: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of `file` are here."""
        with self._lock:
            if not self._done:
                self._display.start(f"fetching {file}", total or 0)
            self._display.advance(done - self._done)
            self._done = done
            if total is not None and done >= total:
                self._display.done()
                self._done = 0
