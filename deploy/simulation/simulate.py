"""START HERE. Simulate a federation: the real server and many real sites in one process.

```
 1 sam       find SAM's weights, or download them                shared_sam.py
 2 sites     divide the images; one U-Net++ and one SAM for all  sites.py, turns.py
 3 journal   make the run's folder, or open it to resume         server/journal/journal.py
 4 rounds    run the server's rounds over a local grid           grid.py, server/rounds/rounds.py
 5 summary   write summary.json and report.html                  report/
```
ServerApp and ClientApp are those of a federation; only the `Grid` between them is different. It
serialises every message, and one site works at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from knowmine.client.device import pick_compute, settle
from knowmine.client.federation.app import client_app
from knowmine.client.site.site import Site
from knowmine.client.site.worker import SiteWorker
from knowmine.deploy.report.against_truth import gallery_of, measured_of
from knowmine.deploy.report.report import write_report
from knowmine.deploy.simulation.grid import RUN_ID, LocalGrid, context_of
from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.shared_sam import SharedSam
from knowmine.deploy.simulation.sites import site_openers
from knowmine.deploy.simulation.turns import Turns
from knowmine.server.journal.ending import ending, versions
from knowmine.server.journal.journal import Journal, refuse_used
from knowmine.server.journal.summary import summarise
from knowmine.server.rounds.app import server_app
from knowmine.server.rounds.rounds import run_rounds
from knowmine.server.rounds.sites import Sites
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import RunLog, open_log
from knowmine.shared.unetplusplus import build_model, weights_of


def simulate(
    settings: SimulationSettings, run: Path, *, resume: bool, display: Display
) -> dict[str, Any]:
    """Run the simulation in folder `run` and return its summary.

    resume: go on after the last whole round in `run`.

    Raises `UsageError` for data, weights or settings that cannot be used, `RunFailed` if the run
    cannot go on, and `Interrupted` on Ctrl-C. Once the run's folder exists, the summary is written
    in every case.
    """
    settle(settings.machine.threads)
    compute = pick_compute(settings.machine.device)
    if not resume:
        refuse_used(run)
    # Mistakes in weights, data and settings show here, before the run's folder is made.
    sam = SharedSam.find(settings, display)
    turns = Turns(site_openers(settings, run, sam, compute, display), settings.sites.memory_bytes)
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
            summary.update(_summary(status, reason, settings, journal, sam, turns.sites))
            journal.write_summary(summary)
            _report(run, summary, turns.sites)

        with ending(run, log, end, f"go on with `knowmine-simulate --resume {run}`"):
            _run_rounds(turns, journal, settings, log, display)
    return summary


def _run_rounds(
    turns: Turns, journal: Journal, settings: SimulationSettings, log: RunLog, display: Display
) -> None:
    """Join sites and server by a local grid, and run the ServerApp to its end."""
    for site in turns.sites:
        site.state.folder.mkdir(parents=True, exist_ok=True)
    by_node = dict(enumerate(turns.sites, start=RUN_ID + 1))
    # The rounding residual of a site's update is as large as a model, so it is kept on disk.
    apps = {
        node: client_app(
            lambda context: SiteWorker(by_node[context.node_id]), site.state.folder / "residual"
        )
        for node, site in by_node.items()
    }

    def started(node: int) -> None:
        turns.begin(by_node[node])
        display.site_started(by_node[node].name)

    plan = settings.plan

    def rounds(sites: Sites) -> None:
        run_rounds(
            sites,
            journal,
            plan,
            settings.run,
            lambda: weights_of(build_model(plan.model, plan.seed)),
            log=log,
            watch=display,
        )

    server_app(rounds)(LocalGrid(apps, started), context_of(RUN_ID))


def _summary(
    status: str,
    reason: str,
    settings: SimulationSettings,
    journal: Journal,
    sam: SharedSam,
    sites: Sequence[Site],
) -> dict[str, Any]:
    """What `RUN/summary.json` holds: a server's summary, and remarks on each site's images."""
    return {
        **summarise(
            status=status,
            reason=reason,
            records=journal.records(),
            roster=[site.name for site in sites],
            settings=settings.model_dump(mode="json"),
            seed=settings.plan.seed,
            sam=sam.facts(sites),
            versions=versions(),
        ),
        "left_out": {site.name: site.left_out for site in sites if site.left_out},
        "warnings": {site.name: site.images.warnings for site in sites if site.images.warnings},
    }


def _report(run: Path, summary: dict[str, Any], sites: Sequence[Site]) -> None:
    try:
        write_report(run, summary, gallery_of(sites), measured_of(sites))
    except OSError as error:
        raise RunFailed(
            f"cannot write the report in {run} ({error.strerror}): the finished rounds are safe; "
            f"make room and go on with `--resume {run}`"
        ) from error
