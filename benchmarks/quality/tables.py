"""Make the tables and the plot of docs/results.md from benchmarks/quality/results/.

python -m benchmarks.quality.tables
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np

matplotlib.use("svg")
from matplotlib import pyplot as plt

from benchmarks.quality.experiment import read_experiment
from knowmine.shared.settings import MiningSettings, TrainingSettings

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "results.md"
PLOT = HERE.parents[1] / "docs" / "images" / "quality.svg"
ORDER = (
    *("supervised, alone", "supervised", "self-training", "paper", "knowmine, alone", "knowmine"),
    *("supervised-all", "oracle"),
)
BORROWED = {
    "kvasir-10-small": {"kvasir-75": {"supervised-all": "supervised-all"}},
    "kvasir-25": {"kvasir-75": {"supervised-all": "supervised-all"}},
    "covid-05": {"covid-50": {"supervised-all": "supervised-all"}},
    "ablation-10": {
        "kvasir-10": {
            "supervised": "supervised",
            "self-training": "self-training",
            "knowmine": "no-sharpening",
        }
    },
    "ablation-10-small": {
        "kvasir-10-small": {name: name for name in ("supervised", "self-training", "knowmine")}
    },
    "federated-10": {
        "alone-10": {"supervised": "supervised, alone", "knowmine": "knowmine, alone"}
    },
    "validation-10": {
        f"validation-10-{warm_up}": {
            name: f"{name}, warm-up {warm_up}" for name in ("self-training", "knowmine", "oracle")
        }
        for warm_up in ("one", "two")
    },
    "validation-10-brief": {
        "validation-10-brief-one": {"knowmine": "knowmine, warm-up one"},
        "validation-10-brief-probe": {"knowmine": "knowmine, probe apart longer"},
    },
}
"""Rows that an experiment shows of another on the same test images, and what they are called."""
DRAWS = 10_000
EXPERIMENTS = (
    *("kvasir-10", "ablation-10", "kvasir-25", "kvasir-75", "kvasir-75-random", "covid-05"),
    *(
        "covid-50",
        "covid-infection-25",
        "federated-10",
        "federated-10-large",
        "federated-10-unlabelled",
    ),
    "kvasir-three-sites",
    *("kvasir-10-small", "kvasir-10-long", "ablation-10-small"),
    "covid-05-short",
    *("validation-10", "validation-10-long", "validation-10-brief"),
)
"""As the page tells them."""
SHOWN_ELSEWHERE = {name for sources in BORROWED.values() for name in sources} - set(EXPERIMENTS)
CHOICES = ("ablation", "validation")
"""How experiments begin that compare recipes of knowmine."""
COLOURS = {"knowmine": "#c44e1b", "oracle": "0.65"}
"""Of the plot; other methods are as dark as text."""
BASES = ("supervised, alone", "supervised", "self-training")
COLUMNS = ("method", "Dice by round", "Dice", "worst site", "IoU", "HD95 px")
"""Rounds are the first seed's, Dice is each seed's in turn, what follows is the mean over seeds."""

ALIKE = ("share", "weight", "images", "warmup_rounds", "ramp_rounds")
"""Mining settings that all methods of an experiment must have run with, but for its own variants."""

CONTROLS = ("supervised", "supervised-all", "self-training", "paper", "oracle")
"""Methods that most mining settings are nothing to."""

BEFORE = {**MiningSettings().model_dump(), "varied_views": False, "false_alarms": 0.0}
"""What mining settings that an older result does not name stood for."""

UNLIKE = {"kvasir-three-sites"}
"""Older experiments whose methods differ in more than the method; the page says so."""

Result: TypeAlias = Mapping[str, Any]
Scores: TypeAlias = Mapping[tuple[int, str], float]


def main() -> None:
    """Write the tables between their markers, and the plot."""
    results = [json.loads(file.read_text()) for file in sorted((HERE / "results").glob("*.json"))]
    experiments: dict[str, list[Result]] = {}
    for result in results:
        experiments.setdefault(result["experiment"], []).append(result)
    for name in experiments.keys() - UNLIKE:
        refuse_unlike(name, experiments[name])
    for name, sources in BORROWED.items():
        seeds = {result["seed"] for result in experiments.get(name, [])}
        for source, methods in sources.items():
            if seeds:
                experiments[name] += [
                    {**result, "method": methods[result["method"]]}
                    for result in experiments.get(source, [])
                    if result["method"] in methods and result["seed"] in seeds
                ]
    told = sorted(
        experiments.keys() - SHOWN_ELSEWHERE,
        key=lambda name: EXPERIMENTS.index(name) if name in EXPERIMENTS else len(EXPERIMENTS),
    )
    experiments = {name: experiments[name] for name in told}
    put("summary", summary(experiments))
    put("quality", "\n".join(table(name, of, data_of(name)) for name, of in experiments.items()))
    put("worth", worths(HERE / "results"))
    put("views", views(HERE / "results" / "views"))
    put("alarms", alarms(HERE / "results" / "alarms"))
    put("mined", mined(HERE / "results" / "mined"))
    put("keeping", stages("keeping", ("dice_of_pseudo_labels", "dice_of_the_best_70_percent")))
    put("softness", stages("softness", ("dice_of_unet", "dice_of_mix")))
    put("second-stage", second_stages(HERE / "results" / "second-stage"))
    put("distilled", distilled(HERE / "results" / "distilled"))
    plot(experiments)


def refuse_unlike(name: str, results: Iterable[Result]) -> None:
    """End where an experiment's methods, or a method's seeds, were not run alike."""
    results = list(results)
    for method in {result["method"] for result in results}:
        plans = {
            json.dumps({**BEFORE, **result["plan"]["mining"]}, sort_keys=True)
            for result in results
            if result["method"] == method and method not in CONTROLS
        }
        if len(plans) > 1:
            raise SystemExit(f"{name}: seeds of {method} were run with other settings: {plans}")
    variants = read_experiment(name).variants
    seen: dict[str, str] = {}
    for result in results:
        if result["method"] in variants:
            continue
        plan = result["plan"]
        mining = {key: plan["mining"].get(key) for key in ALIKE}
        training = TrainingSettings.model_validate(plan["training"]).model_dump()
        seen.setdefault(json.dumps([plan["model"], training, mining]), result["method"])
    if len(seen) > 1:
        raise SystemExit(f"{name}: {', '.join(seen.values())} were run with other settings: {seen}")


def put(name: str, text: str) -> None:
    """Put the text between NAME's markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n{text}{end}{rest.split(end)[1]}")


def summary(experiments: Mapping[str, Iterable[Result]]) -> str:
    """Each experiment in a line: Dice of labels alone, and what each method gains over it."""
    shown = ("self-training", "paper", "knowmine", "oracle")
    lines = [f"| experiment | seeds | supervised | {' | '.join(shown)} |", "|---" * 7 + "|"]
    for name, results in experiments.items():
        by_method = gathered(results)
        base = by_method.get("supervised")
        if base is None or name.startswith("ablation"):
            continue
        gains = [_gain(by_method[m], base) if m in by_method else "-" for m in shown]
        cells = [name, str(len(base)), f"{mean(scores(base, 'dice')):.3f}", *gains]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def data_of(name: str) -> str:
    """What `--data` names in this experiment."""
    data = dict.fromkeys(division.data for division in read_experiment(name).divisions)
    return " ".join(f"{own}={own.upper()}" for own in data)


def table(name: str, results: Iterable[Result], data: str) -> str:
    """One experiment: each method's means, its gains with their intervals, and the command."""
    by_method = gathered(results)
    any_result = next(r for of in by_method.values() for r in of if r["experiment"] == name)
    seeds = sorted({r["seed"] for of in by_method.values() for r in of})
    varied = by_method.keys() - set(ORDER)
    bases = [base for base in (*BASES, *(["knowmine"] if varied else ())) if base in by_method]
    columns = (*COLUMNS, *(f"against {base}" for base in bases))
    lines = [
        f"### {name}",
        "",
        (
            f"{any_result['setting']}, {any_result['sites']} site(s), "
            f"{any_result['plan']['model']['image_px']} px, "
            f"{'ImageNet' if any_result['pretrained'] else 'random'} weights, "
            f"{any_result['steps']} steps at each, {any_result['labels']:.0%} of the labels, "
            f"seeds {', '.join(map(str, seeds))}, {len(any_result['test_dice'])} test images."
        ),
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    for method, of in by_method.items():
        rounds = [f"{r['dice']:.3f}".removeprefix("0") for r in of[0]["per_round"]]
        cells = ["-" if of[0]["setting"] == "local" else " ".join(rounds)]
        cells.append(", ".join(f"{mean(scores([r], 'dice')):.3f}" for r in of))
        cells += [_worst(of), f"{mean(scores(of, 'iou')):.3f}"]
        cells.append(f"{mean(scores(of, 'hd95')):.1f}")
        for base in bases:
            cells.append(_gain(of, by_method[base]) if base != method else "-")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    command = f"make bench-quality EXPERIMENT={name} DATA='{data}'"
    return "\n".join([*lines, "", f"    {command}", "", ""])


def second_stages(folder: Path) -> str:
    """Each recipe's Dice on validation images, and its gain over labels alone and self-training."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    recipes = [result for result in found if "recipe" in result]
    by_start: dict[tuple[Any, ...], list[Result]] = {}
    for of in recipes:
        start = (of["name"].split("-all")[0], of["labels"], of["image_px"], *of["steps"])
        by_start.setdefault((*start, of["seed"]), []).append(of)
    tables = []
    for (name, labels, px, first, second, seed), alike in by_start.items():
        head = f"**{name}**: {labels} labels, {px} px, {first} and {second} steps, seed {seed}."
        tables.append(f"{head}\n\n{_of_one_start(alike)}\n")
    return "\n".join(tables)


def worths(folder: Path) -> str:
    """Dice of pseudo-labels by the U-Net++'s share in them, and what the judge knows of it."""
    shares = ("0.00", "0.25", "0.50", "0.75", "1.00")
    head = ("data", "SAM's decoder", *(f"w = {float(w):g}" for w in shares))
    head += ("correlation of judge", "of agreement", "better half", "worse half")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for file in sorted((folder / "worth").glob("*.json")):
        found = json.loads(file.read_text())
        for row in found["rows"]:
            way = f"tuned {row['tune_steps']} steps" if row["tune_steps"] else "frozen"
            cells = [f"{row['dice_by_unet_share'][share]:.3f}" for share in shares]
            cells += [f"{row[key]:.2f}" for key in ("judge", "agreement")]
            cells += [f"{row[key]:.3f}" for key in ("better_half", "worse_half")]
            lines.append(f"| {found['name']} | {way} | {' | '.join(cells)} |")
    alike: dict[str, list[str]] = {}  # second stages that differ in their length alone
    for file in sorted((folder / "second-stage").glob("*-opinions.json")):
        by_share = json.loads(file.read_text())["dice_by_unet_share"]
        dice = " | ".join(f"{by_share[share]:.3f}" for share in shares)
        alike.setdefault(dice, []).append(file.stem.removesuffix("-0-opinions"))
    for dice, names in alike.items():
        lines.append(f"| {', '.join(names)} | tuned 70 steps | {dice} | - | - | - | - |")
    return "\n".join(lines) + "\n"


def views(folder: Path) -> str:
    """What sets of views are worth, and which signs go with the Dice of the mixed mask."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = []
    for title, key, form in (
        ("Dice of the U-Net++ through", "dice_by_views", "{:.3f}"),
        ("correlation with the Dice of the mix", "correlation", "{:.2f}"),
        ("Dice of the best 70 % by", "best_70_percent", "{:.3f}"),
    ):
        names = [of["name"] for of in found]
        lines += [f"| {title} | {' | '.join(names)} |", "|---" * (len(found) + 1) + "|"]
        for row in dict.fromkeys(row for of in found for row in of[key]):
            cells = [form.format(of[key][row]) if row in of[key] else "-" for of in found]
            lines.append(f"| {row.replace('_', ' ')} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def alarms(folder: Path) -> str:
    """Pseudo-labels by how SAM's decoder was tuned: gains of an even mix, means over tuning seeds."""
    head = ["data", "tuning", "false alarms", "seeds", "SAM alone", "even mix"]
    head += ["over the U-Net++", "over none, same seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        unet = {(0, stem): dice for stem, dice in found["unet"].items()}
        lines.append(
            f"| {found['name']} | *U-Net++ alone* | - | - | - | {mean(unet):.3f} | - | - |"
        )
        runs: dict[tuple[str, str], dict[str, Mapping[str, dict[str, float]]]] = {}
        for way, of in found["ways"].items():
            steps, chance, seed = way.split(", ")
            runs.setdefault((steps, chance), {})[seed] = of["dice_by_unet_share"]
        for (steps, chance), by_seed in runs.items():
            none = runs.get((steps, "0.0"), {}) if chance != "0.0" else {}
            alone, mixed = (_over_seeds(by_seed, share) for share in ("0.0", "0.5"))
            shared = by_seed.keys() & none.keys()
            gains = [interval(mixed, unet)]
            if shared:
                ours, theirs = (
                    _over_seeds({seed: of[seed] for seed in shared}, "0.5")
                    for of in (by_seed, none)
                )
                gains.append(interval(ours, theirs))
            told = [f"{g:+.3f} ({low:+.3f} to {high:+.3f})" for g, low, high in gains]
            cells = [found["name"], steps, chance, str(len(by_seed))]
            cells += [f"{mean(alone):.3f}", f"{mean(mixed):.3f}", *told, *["-"] * (2 - len(told))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _over_seeds(
    by_seed: Mapping[str, Mapping[str, dict[str, float]]], share: str
) -> dict[tuple[int, str], float]:
    """Each image's Dice, mean over tuning seeds."""
    stems = next(iter(by_seed.values()))[share]
    return {(0, s): float(np.mean([of[share][s] for of in by_seed.values()])) for s in stems}


def mined(folder: Path) -> str:
    """What both readers and the pseudo-labels made of them were worth in each mining round."""
    lines = ["| run, seed last | round | images | U-Net++ | SAM | pseudo-label |", "|---" * 6 + "|"]
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_text())
        for round_, of in found["rounds"].items():
            dice = [f"{of[reader]:.3f}" for reader in ("unet", "sam", "label")]
            cells = [found["name"], round_, str(of["images"]), *dice]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def stages(script: str, told: Sequence[str], results: Path = HERE / "results") -> str:
    """Second stages on the same pseudo-labels, by what a script of that name made of them.

    told: what else its results say of the pseudo-labels, a row each.
    """
    found = [json.loads(file.read_text()) for file in sorted((results / script).glob("*.json"))]
    found = [of for of in found if "labels" in of["recipes"]]  # else it has not ended yet
    head = [f"{of['name']}, labels alone {_mean_of(of, 'labels'):.3f}" for of in found]
    lines = [f"| recipe | {' | '.join(head)} |", "|---" * (len(found) + 1) + "|"]
    for recipe in dict.fromkeys(recipe for of in found for recipe in of["recipes"]):
        if recipe != "labels":
            cells = [_stage(of, recipe) for of in found]
            lines.append(f"| {recipe} | {' | '.join(cells)} |")
    for row in told:
        cells = [f"{of[row]:.3f}" for of in found]
        lines.append(
            f"| *{row.replace('_', ' ').replace(' percent', ' %')}* | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def _stage(of: Result, recipe: str) -> str:
    """A recipe's Dice, and what it gains over labels alone."""
    if recipe not in of["recipes"]:
        return "-"
    scores, labels = ({(0, k): v for k, v in of["recipes"][r].items()} for r in (recipe, "labels"))
    gain, low, high = interval(scores, labels)
    return f"{_mean_of(of, recipe):.3f}, {gain:+.3f} ({low:+.3f} to {high:+.3f})"


def _mean_of(of: Result, recipe: str) -> float:
    return float(np.mean(list(of["recipes"][recipe].values())))


def distilled(folder: Path) -> str:
    """What learning from SAM's embeddings gave, beside labels for as many steps and for twice."""
    lines = ["| data | labels | way | steps on labels | seconds | Dice | against labels |"]
    lines.append("|---" * 7 + "|")
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]
    for of in found:
        start = (of["name"], of["seed"])
        same = [r for r in found if r["way"] == "labels" and (r["name"], r["seed"]) == start]
        gain = _gain_of_recipe(of, same[0]) if same and same[0] is not of else "-"
        cells = [of["name"], of["labels"], of["way"], of["steps"], of["seconds"]]
        lines.append(f"| {' | '.join(map(str, cells))} | {_validated(of):.3f} | {gain} |")
    return "\n".join(lines) + "\n"


def _of_one_start(recipes: list[Result]) -> str:
    lines = ["| unlabelled | recipe | kept | Dice | against labels | against self-training |"]
    lines.append("|---" * 6 + "|")
    for of in sorted(recipes, key=lambda r: (r["unlabelled"], -_validated(r))):
        gains = []
        # Against self-training under the same views.
        own = "self-training-half-plain" if of["recipe"].endswith("plain") else "self-training"
        for base in ("labels", own):
            # Labels alone are the same whatever the number of unlabelled images.
            same = [
                r
                for r in recipes
                if r["recipe"] == base and (base == "labels" or r["unlabelled"] == of["unlabelled"])
            ]
            gains.append(_gain_of_recipe(of, same[0]) if same and same[0] is not of else "-")
        kept = str(of["mined"]["kept"]) if of["mined"]["kept"] else "-"
        cells = [str(of["unlabelled"]), of["recipe"], kept, f"{_validated(of):.3f}", *gains]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _validated(recipe: Result) -> float:
    return float(np.mean(list(recipe["validation_dice"].values())))


def _gain_of_recipe(of: Result, base: Result) -> str:
    one, other = ({(0, s): d for s, d in r["validation_dice"].items()} for r in (of, base))
    gain, low, high = interval(one, other)
    return f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"


def gathered(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results by method, in the order in which tables show them."""
    by_method: dict[str, list[Result]] = {}
    place = {method: number for number, method in enumerate(ORDER)}
    for result in sorted(
        results, key=lambda r: (place.get(r["method"], len(ORDER)), r["method"], r["seed"])
    ):
        by_method.setdefault(result["method"], []).append(result)
    return by_method


def scores(results: Iterable[Result], measure: str) -> dict[tuple[int, str], float]:
    """Each test image's score, by seed and stem."""
    return {(r["seed"], stem): v for r in results for stem, v in r[f"test_{measure}"].items()}


def mean(of: Scores) -> float:
    """Mean over test images and seeds."""
    return float(np.mean(list(of.values())))


def interval(a: Scores, b: Scores) -> tuple[float, float, float]:
    """Mean of a - b and its 95 % interval, by a bootstrap over test images.

    Paired: only images (and seeds) that both have count. All seeds of an image are drawn
    together, for they are not independent; so the interval is over images, not over training.
    """
    stems = sorted({key[1] for key in set(a) & set(b)})
    gains = np.array(
        [np.mean([a[k] - b[k] for k in a if k[1] == stem and k in b]) for stem in stems]
    )
    draws = np.random.default_rng(0).integers(0, len(gains), (DRAWS, len(gains)))
    low, high = np.percentile(gains[draws].mean(1), [2.5, 97.5])
    return float(gains.mean()), float(low), float(high)


def plot(experiments: Mapping[str, Iterable[Result]]) -> None:
    """Each method's gain over supervised, experiment by experiment; choices are in tables alone."""
    rows = []
    for name, results in experiments.items():
        if name.startswith(CHOICES):
            continue
        by_method = gathered(results)
        base = scores(by_method.get("supervised", []), "dice")
        for method, of in by_method.items():
            if base and not method.startswith("supervised"):
                colour = COLOURS.get(method, "0.4")
                label = f"{name}: {method}"
                rows.append((label, colour, interval(scores(of, "dice"), base)))
    if not rows:
        return
    plt.rcParams["svg.hashsalt"] = "knowmine"  # the same plot is the same file
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.35 * len(rows)), layout="constrained")
    for place, (_, colour, (gain, low, high)) in enumerate(rows):
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(gain, place, "o", color=colour)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("Dice above supervised, 95 % interval over test images")
    figure.savefig(PLOT, metadata={"Date": None})
    plt.close(figure)


def _gain(of: list[Result], base: list[Result]) -> str:
    gain, low, high = interval(scores(of, "dice"), scores(base, "dice"))
    return f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"


def _worst(of: list[Result]) -> str:
    """The lowest of the sites' means, over seeds."""
    by_site: dict[str, list[float]] = {}
    for result in of:
        for stem, site in result["site_of"].items():
            by_site.setdefault(site, []).append(result["test_dice"][stem])
    if len(by_site) < 2:
        return "-"
    return f"{min(float(np.mean(values)) for values in by_site.values()):.3f}"


if __name__ == "__main__":
    main()
