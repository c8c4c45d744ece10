"""How much a lying vault could hide in one legal update: bits within the egress guard's limits.

    python -m benchmarks.bench_covert [--quick]

Nothing here is hidden for real but the last row's bits. For each limit the script counts the
float32 numbers that every trained weight may take: within `max_change` of the weight that was
sent, and, so that all together keep `max_update_norm`, within norm / sqrt(n) of it. That is one
way to hide bits which the guard cannot refuse: the capacity is at least this. The next is a vault that
trains honestly and writes only into the lowest bits of its weights, so that the update's norm
grows by less than one percent. Where the plan sends updates as int8, a weight says one of 255
things, whatever the limits: the last row. To benchmarks/results/covert.json.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import arguments
from knowmine.client.egress.limits import MAX_STEPS, STATISTICS, move_of
from knowmine.client.egress.policy import LOOSEST
from knowmine.shared.checks import MAX_FLOAT
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import Weights, bytes_of
from knowmine.shared.wire.changes import STEPS

RESULT = Path(__file__).parent / "results" / "covert.json"
LIMITS = (
    ("built-in", LOOSEST.max_update_norm, LOOSEST.max_change),
    ("norm 20", 20.0, LOOSEST.max_change),
    ("norm 1, change 0.01", 1.0, 0.01),
)
HONEST_STEP = 0.004
"""Change of a weight in an honest round, drawn from a normal distribution; a norm of about 10."""
PICTURE_BYTES = 30_000
"""A greyscale image of 224 by 224 pixels, as a PNG."""


def main() -> None:
    """Count, print a table, write the result."""
    quick = arguments(__doc__, "the same").parse_args().quick
    model = ModelSettings(pretrained=False)
    weights = weights_of(build_model(model, seed=0))
    trained = {
        name: array
        for name, array in weights.items()
        if array.dtype.kind == "f" and not name.endswith(STATISTICS)
    }
    flat = np.concatenate([array.ravel() for array in trained.values()])
    rest = statistics_bits(weights)
    rows = [row(name, flat, norm, change, rest) for name, norm, change in LIMITS]
    lowest = lowest_bits(trained)
    rows.append(
        {"limits": f"honest, lowest {lowest} bits", "bits": float(lowest * flat.size)}
        | sizes(lowest * flat.size)
    )
    coded = math.log2(2 * STEPS + 1) * flat.size + rest
    rows.append({"limits": "sent as int8", "bits": coded} | sizes(coded))
    result = {
        "trained_weights": int(flat.size),
        "update_bytes": bytes_of(weights),
        "statistics_and_counters_bits": rest,
        "rows": rows,
    }
    if not quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{flat.size:,} trained weights, an update of {bytes_of(weights) / 1e6:.1f} MB")
    for one in rows:
        print(f"{one['limits']:<24}{one['megabytes']:>8.1f} MB {one['pictures']:>7} pictures")


def row(
    name: str, weights: NDArray[np.float32], norm: float, change: float, rest: float
) -> dict[str, Any]:
    """Bits within one pair of limits."""
    within = min(change, norm / math.sqrt(weights.size))
    count = numbers_between(
        weights.astype(np.float64) - within, weights.astype(np.float64) + within
    )
    bits = float(np.log2(count).sum()) + rest
    return {"limits": name, "bits": bits} | sizes(bits)


def sizes(bits: float) -> dict[str, Any]:
    """Bits as megabytes and as pictures."""
    return {"megabytes": round(bits / 8e6, 2), "pictures": int(bits / 8 / PICTURE_BYTES)}


def numbers_between(low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many float32 there are from `low` to `high`, at least one: what one weight can say."""
    least = place_of(np.nextafter(low.astype(np.float32), np.float32(np.inf)))
    most = place_of(np.nextafter(high.astype(np.float32), np.float32(-np.inf)))
    counts: NDArray[np.float64] = np.maximum(most - least + 1, 1).astype(np.float64)
    return counts


def place_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The place of each float32 in the row of them all; both zeros are at 0."""
    bits = values.view(np.int32).astype(np.int64)
    places: NDArray[np.int64] = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return places


def statistics_bits(weights: Weights) -> float:
    """Bits in batch norm's figures, which are bounded by 1e6 alone, and in its counters."""
    top = float(place_of(np.array([MAX_FLOAT], np.float32))[0])
    bits = 0.0
    for name, array in weights.items():
        if array.dtype.kind in "iu":
            bits += array.size * math.log2(MAX_STEPS + 1)
        elif name.endswith("running_var"):
            bits += array.size * math.log2(top + 1)
        elif name.endswith("running_mean"):
            bits += array.size * math.log2(2 * top + 1)
    return bits


def lowest_bits(sent: Weights) -> int:
    """Mantissa bits that can be overwritten before an honest update's norm grows by 1 %."""
    draw = np.random.default_rng(0)
    honest = {
        name: array + draw.normal(0, HONEST_STEP, array.shape).astype(np.float32)
        for name, array in sent.items()
    }
    norm = move_of(honest, sent).norm
    lowest = 0
    for count in range(1, 23):
        mask = np.uint32((1 << count) - 1)
        hidden = {}
        for name, array in honest.items():
            noise = draw.integers(0, int(mask) + 1, array.shape, np.uint32)
            hidden[name] = ((array.view(np.uint32) & ~mask) | noise).view(np.float32)
        if move_of(hidden, sent).norm > 1.01 * norm:
            break
        lowest = count
    return lowest


if __name__ == "__main__":
    main()
