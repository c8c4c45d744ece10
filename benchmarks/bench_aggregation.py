"""Averaging 2, 8 and 32 updates of 26 M float32, against Flower's FedAvg and the memory itself.

    python -m benchmarks.bench_aggregation [--quick]

Both sides begin with what the network hands them: the bytes of one update, parsed by each in
its own way. FedAvg holds all replies and then adds them up; ours adds each as it comes. The
floor is one read of the same bytes (a sum by NumPy). Times in turns in one process; memory in a
process of its own for each, as growth of the peak resident size.
Writes benchmarks/results/aggregation.json and its rows in docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.measuring import HERE, arguments, in_turns, machine, peak_mb, row, write
from knowmine.server.rounds.aggregation import RunningMean
from knowmine.shared.wire import (
    codec,
    packing,
)

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

NUMBERS, TENSOR = 26_000_000, 1_000_000
assert codec.RUN_NAME


def main() -> None:
    """Measure time and memory of both sides."""
    parser = arguments(__doc__, "eight updates, once")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(grown(options.one[0], int(options.one[1])))
        return
    before, rows = machine(), []
    for updates in (8,) if options.quick else (2, 8, 32):
        rows += measured(updates, repeats=1 if options.quick else 3)
    write("aggregation", rows, before, quick=options.quick)


def measured(updates: int, repeats: int) -> list[dict[str, Any]]:
    """Time against FedAvg and against one read of all bytes."""
    model = draw()
    our_bytes = packing.pack(model)
    their_arrays = {name: Array(value) for name, value in model.items()}
    ours, theirs = in_turns(
        repeats,
        lambda: timed(lambda: our_mean(our_bytes, updates)),
        lambda: timed(lambda: fed_avg(their_arrays, updates)),
    )
    floor = [timed(lambda: read(model, updates)) for _ in range(repeats)]
    memory = (fresh("ours", updates), fresh("theirs", updates))
    print(updates, ours, theirs, floor, memory, flush=True)
    name = f"aggregation of {updates} updates of 26 M"
    against = statistics.median(ours) / statistics.median(floor)
    return [
        row(name, ours, theirs, "s", 2, memory_mb=memory),
        row(f"{name}, memory", [memory[0]], [memory[1]], "MB", 8 if updates == 32 else None),
        row(
            f"{name}, against one read of all bytes", ours, floor, "s", 1 / 3,
            note=f"{against:.1f} times the floor",
        ),
    ]  # fmt: skip


def draw() -> dict[str, Any]:
    """A model of 26 M float32 in tensors of a million."""
    numbers = np.random.default_rng(0).normal(size=TENSOR).astype(np.float32)
    return {f"layer{n}.weight": numbers + np.float32(n) for n in range(NUMBERS // TENSOR)}


def our_mean(data: bytes, updates: int) -> Any:
    """Each update as it comes."""
    mean = RunningMean()
    for _ in range(updates):
        mean.add(packing.unpack(data), 8)
    return mean.result()


def fed_avg(arrays: dict[str, Array], updates: int) -> Any:
    """Flower's own function over all replies."""
    replies = [
        RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 8})})
        for _ in range(updates)
    ]
    return aggregate_arrayrecords(replies, "num-examples")


def read(model: dict[str, Any], updates: int) -> float:
    """One read of all bytes and nothing else."""
    return float(sum(value.max() for _ in range(updates) for value in model.values()))


def timed(work: Any) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fresh(side: str, updates: int) -> float:
    """Growth of the peak in a process of its own, MB."""
    command = [sys.executable, "-m", "benchmarks.bench_aggregation", "--one", side, str(updates)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=HERE.parent)
    return float(json.loads(done.stdout))


def grown(side: str, updates: int) -> float:
    """What one side's round takes beyond the programs: replies that differ, as sites' do."""
    before = peak_mb(os.getpid())
    if side == "ours":
        mean = RunningMean()
        for _ in range(updates):
            mean.add(packing.unpack(packing.pack(draw())), 8)
    else:
        replies = [
            RecordDict(
                {
                    "arrays": ArrayRecord({name: Array(value) for name, value in draw().items()}),
                    "metrics": MetricRecord({"num-examples": 8}),
                }
            )
            for _ in range(updates)
        ]
        aggregate_arrayrecords(replies, "num-examples")
    return peak_mb(os.getpid()) - before


if __name__ == "__main__":
    main()
