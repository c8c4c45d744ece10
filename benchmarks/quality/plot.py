"""Plot Dice against the fraction of labels, a line a method, from benchmarks/quality/results/.

python -m benchmarks.quality.plot kvasir [EXPERIMENT ...]
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from benchmarks.quality.experiment import HERE
from benchmarks.quality.tables import Result, gathered, mean, read_results, scores
from knowmine.shared.errors import UsageError

PLOT = HERE.parents[1] / "docs" / "images" / "quality.svg"
COLOURS = {"supervised": "0.2", "self-training": "#1f77b4", "knowmine": "#c44e1b", "oracle": "0.65"}
"""Methods that the plot shows."""


def main() -> None:
    """Write the plot, a panel an experiment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--out", type=Path, default=PLOT)
    options = parser.parse_args()
    found = read_results(HERE / "results")
    if missing := set(options.experiments) - found.keys():
        raise UsageError(f"no results of {sorted(missing)} in {HERE / 'results'}")
    plot({name: found[name] for name in options.experiments}, options.out)


def plot(experiments: Mapping[str, Sequence[Result]], file: Path) -> None:
    """Means over seeds; a bar from the lowest seed to the highest."""
    plt.rcParams["svg.hashsalt"] = "knowmine"  # the same plot is the same file
    figure, panels = plt.subplots(
        1, len(experiments), figsize=(1 + 4 * len(experiments), 3.6), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for axes, (name, results) in zip(panels[0], experiments.items(), strict=True):
        for method, of in gathered(results).items():
            if method in COLOURS:
                points = [(100 * labels, *seeds) for labels, seeds in by_labels(of).items()]
                x, middle, low, high = zip(*points, strict=True)
                errors = [
                    [m - end for m, end in zip(middle, low, strict=True)],
                    [end - m for m, end in zip(middle, high, strict=True)],
                ]
                style = "--" if method == "oracle" else "-"
                axes.errorbar(
                    x, middle, errors, label=method, color=COLOURS[method], linestyle=style,
                    marker="o", capsize=3,
                )  # fmt: skip
        axes.set_title(name)
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{value:g} %" for value in x])
        axes.minorticks_off()
        axes.set_xlabel("images with labels")
    panels[0][0].set_ylabel("Dice on test images")
    panels[0][0].legend()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def by_labels(results: Sequence[Result]) -> dict[float, tuple[float, float, float]]:
    """Mean, lowest and highest Dice of the seeds, by fraction of labels."""
    found: dict[float, list[float]] = {}
    for result in results:
        found.setdefault(result["labels"], []).append(mean(scores([result], "dice")))
    return {
        labels: (sum(dice) / len(dice), min(dice), max(dice))
        for labels, dice in sorted(found.items())
    }


if __name__ == "__main__":
    main()
