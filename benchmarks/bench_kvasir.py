"""Four methods on Kvasir-SEG as three sites: the same labels, steps, augmentation and seed.

    python -m benchmarks.bench_kvasir --data KVASIR [--runs runs/kvasir] [--seed 0]

Each method is one `knowmine-simulate` run, gone on with where it was stopped. Writes
benchmarks/results/kvasir-three-sites.json and the table between its markers in docs/results.md.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULT = HERE / "results" / "kvasir-three-sites.json"
PAGE = HERE.parent / "docs" / "results.md"
METHODS = ("supervised", "self-training", "paper", "knowmine")
BEGIN, END = "<!-- kvasir-three-sites -->", "<!-- /kvasir-three-sites -->"


def main() -> None:
    """Run what is not there yet, then write the result and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="Kvasir-SEG: images/, masks/, splits/val.txt")
    parser.add_argument("--runs", type=Path, default=Path("runs/kvasir"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.data is None:
        print("bench_kvasir: left out; it needs --data KVASIR")
        return
    for method in options.methods:
        run(method, options.data, options.runs / f"{method}-{options.seed}", options.seed)
    result = collect(options.runs, options.seed)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    write_table(result)


def run(method: str, data: Path, folder: Path, seed: int) -> None:
    """Run one method in `folder`, or go on with it, unless it is done."""
    summary = folder / "summary.json"
    if summary.exists() and json.loads(summary.read_text())["status"] == "done":
        return
    command = [str(Path(sys.executable).with_name("knowmine-simulate"))]
    if (folder / "settings.json").exists():
        command += ["--resume", str(folder)]
    else:
        command += [str(HERE / "kvasir.yaml"), "--data", str(data), "--method", method]
        command += ["--seed", str(seed), "--out", str(folder)]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def collect(runs: Path, seed: int) -> dict[str, Any]:
    """All methods' figures: the rounds' means, and each test image's Dice in the end."""
    methods = {}
    for method in METHODS:
        folder = runs / f"{method}-{seed}"
        if not (folder / "summary.json").exists():
            continue
        summary = json.loads((folder / "summary.json").read_text())
        scores: dict[str, float] = {}
        for file in (folder / "sites").glob(f"*/scores-{summary['rounds']:04}.json"):
            scores |= {stem: s["dice"] for stem, s in json.loads(file.read_text()).items()}
        methods[method] = {
            "status": summary["status"],
            "dice": summary["global"]["dice"],
            "iou": summary["global"]["iou"],
            "hd95": summary["global"]["hd95"],
            "per_round": [
                {k: r[k] for k in ("round", "dice", "seconds", "mined")}
                for r in summary["per_round"]
            ],
            "settings": summary["settings"]["plan"],
            "test_dice": dict(sorted(scores.items())),
        }
    return {
        "experiment": "kvasir-three-sites",
        "seed": seed,
        "sites": 3,
        "command": f"python -m benchmarks.bench_kvasir --data KVASIR --seed {seed}",
        "machine": f"{platform.machine()}, {platform.system()}, CPU",
        "methods": methods,
    }


def interval(a: dict[str, float], b: dict[str, float]) -> tuple[float, float]:
    """95 % of the mean difference a - b over test images, by paired bootstrap."""
    stems = sorted(set(a) & set(b))
    differences = np.array([a[stem] - b[stem] for stem in stems])
    draws = np.random.default_rng(0).integers(0, len(stems), (10_000, len(stems)))
    low, high = np.percentile(differences[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def write_table(result: dict[str, Any]) -> None:
    """Put the table between its markers in docs/results.md."""
    methods = result["methods"]
    rounds = max(len(m["per_round"]) for m in methods.values())
    head = "| method | " + " | ".join(f"round {r + 1}" for r in range(rounds))
    lines = [
        head + " | IoU | HD95 px | against supervised |",
        "|---" * (rounds + 4) + "|",
    ]
    base = methods.get("supervised", {}).get("test_dice", {})
    for name, method in methods.items():
        dice = [f"{r['dice']:.3f}" for r in method["per_round"]]
        dice += ["-"] * (rounds - len(dice))
        versus = "-"
        if base and name != "supervised":
            low, high = interval(method["test_dice"], base)
            gain = method["dice"] - methods["supervised"]["dice"]
            versus = f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"
        lines.append(
            f"| {name} | {' | '.join(dice)} | {method['iou']:.3f} | {method['hd95']:.1f} | {versus} |"
        )
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
