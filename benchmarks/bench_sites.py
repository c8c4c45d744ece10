"""Simulations of 5 M parameters with ten, a hundred and a thousand sites: time and memory.

    python -m benchmarks.bench_sites [--quick]

One round each, one step a site, all with the same six images, and memory set aside for the images of
four sites alone, so that the others read theirs for each turn. Time is that of a site's whole turn
(the model there, training, scoring, the update back); memory the peak of the whole process. Each
count of sites in a process of its own.
Writes benchmarks/results/sites.json and its rows in docs/performance.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench_simulation import peak, simulated
from benchmarks.measuring import HERE, arguments, machine, row, write

IMAGES, PX, KEPT = 6, 64, 4
MANY = (10, 100, 1000)


def main() -> None:
    """Measure each count, against the smallest."""
    parser = arguments(__doc__, "40 sites at most")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(many(options.one)))
        return
    before = machine()
    write("sites", growing((10, 40) if options.quick else MANY), before, quick=options.quick)


def growing(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time and memory with more and more sites, each count in a process of its own."""
    found = {count: fresh(count) for count in counts}
    least, rows = found[counts[0]], []
    for count, seen in found.items():
        print(count, seen, flush=True)
        goal = 0.9 if count > counts[0] else None  # the first is what the others are held against
        rows.append(
            row(f"{count} sites, a site's turn", [seen["seconds"] / count],
                [least["seconds"] / counts[0]], "s", goal, memory_mb=(seen["memory_mb"],
                least["memory_mb"]), note=f"theirs: itself at {counts[0]} sites")
        )  # fmt: skip
        rows.append(
            row(f"{count} sites, memory", [seen["memory_mb"]], [least["memory_mb"]], "MB", goal)
        )
    return rows


def many(count: int) -> dict[str, float]:
    """One round with so many sites."""
    from knowmine.deploy.phantom.draw import make_folder

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        make_folder(data, IMAGES)
        seconds = simulated(
            Path(folder) / "run",
            {
                "plan.method": "supervised",
                "plan.model.image_px": PX,
                "plan.training": {"steps": 1, "batch": 2},
                "run.rounds": 1,
                "sites.folders": {f"site-{n:04}": data for n in range(count)},
                "sites.memory_gb": KEPT * IMAGES * PX * PX * 4 / 1e9,
            },
        )
    return {"seconds": seconds, "memory_mb": peak()}


def fresh(count: int) -> dict[str, Any]:
    """One count in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.bench_sites", "--one", str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parent)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
