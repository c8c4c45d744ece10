"""Where each second of a whole simulation goes, from cProfile's cumulative times.

    python -m benchmarks.profile_simulation [DATA]

The simulation of bench_simulation (three sites, five rounds), embeddings on disk. The steps in the table
do not overlap; indented ones are parts of the step above. Writes benchmarks/results/profile.json and
the table in docs/performance.md.
"""

import argparse
import cProfile
import json
import os
import pstats
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench_simulation import FULL, PX, given_for, ours
from benchmarks.measuring import HERE, machine, put_table

STEPS = (
    # what, file, function
    ("predict with the U-Net++", "client/training/inference.py", "predict"),
    ("prompts from its probabilities", "client/mining/prompts.py", "ask"),
    ("SAM's embeddings, of labels anew, else from disk", "client/site/site.py", "embeddings"),
    ("SAM's answers", "client/mining/refine.py", "refine"),
    ("– SAM's mask decoder asked, in all of these", "client/sam/model.py", "decode"),
    ("tune SAM's decoder", "client/mining/finetune.py", "tune"),
    ("train", "client/training/loop.py", "train"),
    ("– U-Net++ forward, in all of these", "shared/unetplusplus.py", "forward"),
    ("– backward, of training and tuning", "torch/_tensor.py", "backward"),
    ("– augmentation, of training", "client/training/augmentation.py", "augment"),
    ("score", "client/data/scoring.py", "score_test"),
    ("pictures for the report", "client/storage/report_samples.py", "save_gallery"),
    ("pseudo-labels for a review", "client/storage/pseudo_label_store.py", "save_mined"),
    ("messages, packed and unpacked", "shared/wire/codec.py", "through_the_wire"),
    ("aggregate", "server/rounds/aggregation.py", "add"),
)


def main() -> None:
    """Run once to fill the store of embeddings, then once under the profiler."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    options = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        file = given_for(options.data, Path(folder), FULL)
        ours(file, "paper")
        profiler = cProfile.Profile()
        seconds = profiler.runcall(ours, file, "knowmine")["seconds"]
    times = pstats.Stats(profiler).stats  # type: ignore[attr-defined]  # typeshed hides it
    spent = {what: cumulative(times, path, function) for what, path, function in STEPS}
    whole = sum(took for what, took in spent.items() if not what.startswith("–"))
    spent["all else"] = seconds - whole
    result = {"name": "profile", "machine": before, "load_after": os.getloadavg()[0],
              "command": "python -m benchmarks.profile_simulation DATA",
              "seconds": seconds, "steps": spent}  # fmt: skip
    (HERE / "results" / "profile.json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        f"`{result['command']}` on {before}: {seconds:.1f} s in rounds, images of {PX} px.",
        "",
    ]
    lines += ["| step | seconds | share |", "|---|---|---|"]
    lines += [
        f"| {what} | {took:.1f} | {100 * took / seconds:.0f} % |" for what, took in spent.items()
    ]
    put_table("profile", lines)


def cumulative(times: Any, file: str, function: str) -> float:
    """Seconds in a function and all that it calls."""
    return float(
        sum(
            found[3]
            for (path, _, name), found in times.items()
            if path.endswith(file) and name == function
        )
    )


if __name__ == "__main__":
    main()
