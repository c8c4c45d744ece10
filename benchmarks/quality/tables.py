"""Make the tables of docs/results.md from benchmarks/quality/results/.

python -m benchmarks.quality.tables
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from benchmarks.quality.experiment import HERE, METHODS, percent, read_experiment

PAGE = HERE.parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- quality -->", "<!-- /quality -->"
BASES = ("supervised", "self-training", "knowmine")
"""Methods that the others are compared with; knowmine only with its variants."""
DRAWS = 10_000
"""Bootstrap draws behind an interval."""

Result: TypeAlias = Mapping[str, Any]
Scores: TypeAlias = Mapping[tuple[int, str], float]
"""By seed and case id."""


def main() -> None:
    """Write the tables between their markers."""
    found = read_results(HERE / "results")
    text = "\n".join(table(name, results, commands(name)) for name, results in found.items())
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")


def read_results(folder: Path) -> dict[str, list[Result]]:
    """All results by experiment. Raises `SystemExit` for runs that cannot be compared."""
    found: dict[str, list[Result]] = {}
    for file in sorted(folder.glob("*/*.json")):
        found.setdefault(file.parent.name, []).append(json.loads(file.read_text()))
    for name, results in found.items():
        refuse_unlike(name, results)
    return found


def refuse_unlike(name: str, results: Iterable[Result]) -> None:
    """End where results differ in more than the seed, the method and a variant's mining settings."""
    first: dict[str, str] = {}
    for result in results:
        plan = {**result["plan"], "method": "", "seed": 0}
        variant = result["method"] if result["method"] not in METHODS else "the methods"
        for group, settings in (("all runs", {**plan, "mining": {}}), (variant, plan)):
            text = json.dumps([result["steps"], settings], sort_keys=True)
            if first.setdefault(group, text) != text:
                raise SystemExit(f"{name}: {result['method']} was run with other settings: {text}")


def commands(name: str) -> str:
    """What makes an experiment's results."""
    names = dict.fromkeys(division.data for division in read_experiment(name).divisions)
    data = " ".join(f"{data}={data.upper()}" for data in names)
    return f"make bench-quality EXPERIMENT={name} DATA='{data}'"


def table(name: str, results: Sequence[Result], command: str) -> str:
    """One experiment: the means of each method, and its gains with their intervals."""
    methods = {result["method"] for result in results}
    bases = [base for base in BASES[: 2 if methods <= {*METHODS} else 3] if base in methods]
    columns = ["labels", "method", "Dice by seed", "IoU", "HD95 px", "lowest site"]
    columns += [f"over {base}" for base in bases]
    one = results[0]
    weights = "ImageNet" if one["pretrained"] else "random"
    lines = [
        f"### {name}",
        "",
        f"{one['sites']} site(s), {one['plan']['model']['image_px']} px, {weights} weights, "
        + f"{one['steps']} steps at each site, {len(one['test_dice'])} scored images.",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for labels in sorted({result["labels"] for result in results}):
        by_method = gathered(result for result in results if result["labels"] == labels)
        for method, of in by_method.items():
            cells = [f"{percent(labels)} %", method]
            cells.append(", ".join(f"{mean(scores([r], 'dice')):.3f}" for r in of))
            cells += [f"{mean(scores(of, 'iou')):.3f}", f"{mean(scores(of, 'hd95')):.1f}"]
            cells.append(lowest_site(of))
            cells += [
                gain(of, by_method[b]) if b in by_method and b != method else "-" for b in bases
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"    {command}", "", ""])


def gathered(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by method in the order of METHODS, variants last, each by seed."""
    place = {method: number for number, method in enumerate(METHODS)}
    by_method: dict[str, list[Result]] = {}
    for result in sorted(
        results, key=lambda r: (place.get(r["method"], len(place)), r["method"], r["seed"])
    ):
        by_method.setdefault(result["method"], []).append(result)
    return by_method


def scores(results: Iterable[Result], measure: str) -> dict[tuple[int, str], float]:
    """Each scored image, by seed and case id."""
    return {(r["seed"], case_id): v for r in results for case_id, v in r[f"test_{measure}"].items()}


def mean(of: Scores) -> float:
    """Mean over images and seeds."""
    return float(np.mean(list(of.values())))


def interval(a: Scores, b: Scores) -> tuple[float, float, float]:
    """Mean of a - b and its 95 % interval, by a bootstrap over images.

    Paired: only images and seeds that both have count. All seeds of an image are drawn together
    because they are not independent. So the interval covers the choice of test images, not the
    scatter between trainings.
    """
    case_ids = sorted({key[1] for key in set(a) & set(b)})
    gains = np.array(
        [np.mean([a[k] - b[k] for k in a if k[1] == case_id and k in b]) for case_id in case_ids]
    )
    draws = np.random.default_rng(0).integers(0, len(gains), (DRAWS, len(gains)))
    low, high = np.percentile(gains[draws].mean(1), [2.5, 97.5])
    return float(gains.mean()), float(low), float(high)


def gain(of: Iterable[Result], base: Iterable[Result]) -> str:
    """Mean gain in Dice with its interval, in words."""
    mean_gain, low, high = interval(scores(of, "dice"), scores(base, "dice"))
    return f"{mean_gain:+.3f} ({low:+.3f} to {high:+.3f})"


def lowest_site(of: Iterable[Result]) -> str:
    """The lowest mean Dice of a site, over seeds; "-" for one site."""
    by_site: dict[str, list[float]] = {}
    for result in of:
        for case_id, site in result["site_of"].items():
            by_site.setdefault(site, []).append(result["test_dice"][case_id])
    if len(by_site) < 2:
        return "-"
    return f"{min(float(np.mean(values)) for values in by_site.values()):.3f}"


if __name__ == "__main__":
    main()
