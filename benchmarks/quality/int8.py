"""What int8 updates cost in Dice: the same federation with whole float32 updates and with int8.

    python -m benchmarks.quality.int8 --data KVASIR [--rounds R] [--seeds S ...]

Three sites, all labels, small images and short rounds, so that it takes minutes: the question is
not how good the model gets but whether rounding moves it. Both sides of a seed have the same
images, draws and order of steps. Writes benchmarks/results/int8.json and the table in
docs/performance.md; a run that was stopped goes on after its last whole round.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measuring import machine, row, write
from knowmine.deploy.simulation.progress import make_display
from knowmine.deploy.simulation.settings import SimulationSettings
from knowmine.deploy.simulation.simulate import simulate
from knowmine.shared.settings import read_settings

GOAL = 0.003
"""Dice that int8 may cost after ten rounds."""


def main() -> None:
    """Run both forms for each seed, then compare their last rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/int8"))
    options = parser.parse_args()
    before = machine()
    found = {
        form: [trained(options, form, seed) for seed in options.seeds] for form in ("int8", "none")
    }
    ours, theirs = ([summary["global"]["dice"] for summary in found[form]] for form in found)
    costs = [theirs - ours for ours, theirs in zip(ours, theirs, strict=True)]
    note = (
        f"goal at most {GOAL}; {statistics.mean(ours):.4f} against {statistics.mean(theirs):.4f}, "
        f"seeds {', '.join(map(str, options.seeds))}"
    )
    name = f"Dice lost to int8 after {options.rounds} rounds"
    our_mb, their_mb = (
        [sum(entry["bytes_up"] for entry in summary["per_round"]) / 1e6 for summary in found[form]]
        for form in found
    )
    rows = [
        row(name, costs, [], "", note=note),
        row("bytes that all sites sent in those rounds", our_mb, their_mb, "MB", 4),
    ]
    write("int8", rows, before, command="python -m benchmarks.quality.int8 --data KVASIR")


def trained(options: argparse.Namespace, form: str, seed: int) -> dict[str, Any]:
    """The summary of one federation, finished now or before."""
    run: Path = options.runs / f"{form}-{seed}"
    if (run / "summary.json").exists():
        kept: dict[str, Any] = json.loads((run / "summary.json").read_text())
        if kept["status"] == "done":
            return kept
    flags = {
        "plan.method": "supervised",
        "plan.seed": seed,
        "plan.model.image_px": 96,
        "plan.training": {"steps": 20, "orientation": "any"},
        "plan.transport.update": form,
        "run.rounds": options.rounds,
        "sites.data": options.data,
        "split.labelled": 1.0,
        "split.test": "splits/val.txt",
    }
    settings = read_settings(SimulationSettings, None, flags)
    with make_display("json") as display:
        return simulate(settings, run, resume=(run / "settings.json").exists(), display=display)


if __name__ == "__main__":
    main()
