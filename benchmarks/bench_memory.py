"""Memory: the server over the number of sites, and one site over the number of its images.

    python -m benchmarks.bench_memory [--quick]

Each measurement is a process of its own. The server's figure is the peak of all arrays and bytes
that one round allocates (tracemalloc), in sizes of the model; sites answer by random weights of
the default U-Net++. The site's figure is the peak resident memory of a process that opens a
site of 1000 phantom images, mines 32 of them with SAM and trains two steps.
Writes benchmarks/results/memory.json and its rows in docs/performance.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.measuring import HERE, arguments, machine, row, write

SITES = (2, 8, 32)
IMAGES = 1000


def main() -> None:
    """Measure in fresh processes, then write the result and the table."""
    parser = arguments(__doc__, "servers alone")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIZE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        kind, size = options.one
        print(json.dumps({"server": server, "site": site}[kind](int(size))))
        return
    before, rows = machine(), []
    for sites in SITES:
        seen = fresh("server", sites)
        note = f"{seen['models']:.1f} models"
        rows.append(row(f"server's arrays, {sites} sites", [seen["peak_mb"]], [], "MB", note=note))
    if not options.quick:
        seen = fresh("site", IMAGES)
        rows.append(row(f"a site's process, {IMAGES} images", [seen["peak_mb"]], [], "MB"))
    write("memory", rows, before, quick=options.quick)


def fresh(kind: str, size: int) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_memory", "--one", kind, str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def server(sites: int) -> dict[str, Any]:
    """Peak of one round with `sites` sites, as bytes and as sizes of the model."""
    import numpy as np

    from knowmine.server.journal.journal import Journal
    from knowmine.server.rounds.rounds import run_rounds
    from knowmine.server.rounds.sites import Watch
    from knowmine.server.settings import RunSettings
    from knowmine.shared.log import silent
    from knowmine.shared.protocol import (
        PROTOCOL,
        EvaluateTask,
        Hello,
        Scores,
        TrainTask,
        Update,
    )
    from knowmine.shared.settings import Plan
    from knowmine.shared.trust.countersign import Head
    from knowmine.shared.unetplusplus import build_model, weights_of
    from knowmine.shared.weights import Weights, bytes_of, digest_of_manifest, manifest_of
    from knowmine.shared.wire import codec
    from knowmine.shared.wire.tensors import PackedWeights

    plan = Plan(method="supervised")
    initial = weights_of(build_model(plan.model, 0))
    digest = digest_of_manifest(manifest_of(initial))
    names = [f"site-{n}" for n in range(sites)]

    strangers = list(names)

    class Sites:
        """Sites whose replies are made when they are asked for, as bytes come from a socket."""

        def greet(self) -> Iterator[tuple[str, Hello]]:
            while strangers:
                name = strangers.pop(0)
                yield name, Hello(name, PROTOCOL, digest, 1, 1, 0, 1)

        def here(self) -> set[str]:
            return set(names)

        def wait(self, seconds: float) -> None:
            """Everyone is here."""

        def hold(self, weights: Weights) -> Weights:
            return PackedWeights(weights)

        def heads(self) -> Mapping[str, Head]:
            return {}

        def train(self, tasks: Mapping[str, TrainTask]) -> Iterator[tuple[str, Update]]:
            packed = codec.pack_tasks(tasks)
            for name in packed:
                reply = codec.pack_reply(Update(tasks[name].round, initial, 1, 0, 0.5, 1.0))
                yield name, codec.unpack_update(reply)
                del reply

        def evaluate(self, tasks: Mapping[str, EvaluateTask]) -> Iterator[tuple[str, Scores]]:
            for name in codec.pack_tasks(tasks):
                yield name, Scores(tasks[name].round, 1, 0.5, 0.4, 9.0)

    class Nobody:
        """Watches nothing."""

        def round_started(self, round_: int, rounds: int) -> None:
            """Nothing."""

        def round_done(self, record: Mapping[str, Any]) -> None:
            """Nothing."""

    watch: Watch = Nobody()
    size = bytes_of(initial)
    with tempfile.TemporaryDirectory() as folder, Journal.create(Path(folder) / "run", {}) as run:
        tracemalloc.start()
        run_rounds(
            Sites(),
            run,
            plan,
            RunSettings(rounds=1),
            lambda: {name: np.array(array) for name, array in initial.items()},
            log=silent(),
            watch=watch,
        )
        peak = tracemalloc.get_traced_memory()[1]
    return {"what": "server", "sites": sites, "peak_mb": peak / 1e6, "models": peak / size}


def site(images: int) -> dict[str, Any]:
    """Peak resident memory of a process that works for a site of `images` images."""
    from knowmine.deploy.phantom.draw import make_folder
    from knowmine.deploy.simulation.progress import make_display
    from knowmine.deploy.simulation.settings import SimulationSettings
    from knowmine.deploy.simulation.simulate import simulate
    from knowmine.shared.settings import read_settings

    with tempfile.TemporaryDirectory() as folder:
        make_folder(Path(folder) / "data", images)
        flags = {
            "sites.folders": {"one": str(Path(folder) / "data")},
            "split.labelled": 50,
            "plan.training.steps": 2,
            "plan.mining": {"images": 32, "warmup_rounds": 0},
            "run.rounds": 1,
        }
        settings = read_settings(SimulationSettings, None, flags)
        with make_display("json") as display:
            simulate(settings, Path(folder) / "run", resume=False, display=display)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"what": "site", "images": images, "peak_mb": peak / 1e6}


if __name__ == "__main__":
    main()
