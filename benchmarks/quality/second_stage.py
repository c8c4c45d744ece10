"""Choose how pseudo-labels are used: second stages that all start from one model, on validation images.

    python -m benchmarks.quality.second_stage kvasir --data KVASIR [--recipes R ...]

From the training images alone: some labelled, some kept as a validation set that chooses, the rest
unlabelled. One U-Net++ learns from the labels, both models give their opinion of the unlabelled
images once, and every recipe goes on from there with the same images, steps, batch and seed. A
recipe ends in results/second-stage/; stopped at any time, the script goes on with the next recipe.
"""

import argparse
import csv
import io
import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.experiment import HERE, keep_result
from benchmarks.quality.run import open_site, oracle
from benchmarks.quality.worth import truth_of
from knowmine.client.data.folder import read_stems, scan
from knowmine.client.data.sampling import ranked
from knowmine.client.device import settle
from knowmine.client.mining.fusion import (
    Floats,
    Opinions,
    dice_of,
    expected_dice,
    fuse,
    select,
    sharpen,
)
from knowmine.client.site.round import (
    consult,
    improve,
    labels_of,
    learn,
    probe,
    settle_labels,
    teaching,
    todays,
    tune_sam,
)
from knowmine.client.site.round import draw as seed_of
from knowmine.client.site.site import Kind, Site
from knowmine.client.training.inference import predict
from knowmine.client.training.loop import Examples
from knowmine.shared.protocol import FUSE_WEIGHTS, Calibration, Mined, TrainTask, calibration_of
from knowmine.shared.settings import Plan
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import Weights, load_weights, save_weights, write_atomically

RESULTS = HERE / "results" / "second-stage"
PROBED = 0.2
FORMER = {"tune_again": 0, "false_alarms": 0.0, "sharpen": True}
"""When these results were made SAM was tuned once, on questions about lesions alone, and masks were
sharpened."""
DISTORTED = {"strong": 1.0, "cut_mix": 0.5}
PLAIN = {"strong": 0.0, "cut_mix": 0.0, "share": 0.5}
TRUSTED = {"keep_first": 0.7, "keep_last": 0.7}
ALL = {"keep_first": 1.0, "keep_last": 1.0}
RESTART = {"restart": True, "share": 0.5, **TRUSTED, **DISTORTED}
ANEW = {"restart": True, **TRUSTED, **PLAIN}


class Recipe(NamedTuple):
    """A second stage: what makes its pseudo-labels, and what its mining settings change."""

    method: Literal["supervised", "self-training", "knowmine", "oracle"]
    mining: dict[str, Any]


RECIPES = {
    "labels": Recipe("supervised", {}),
    "labels-restart": Recipe("supervised", {"restart": True}),
    "self-training": Recipe("self-training", DISTORTED),
    "knowmine": Recipe("knowmine", DISTORTED),
    "oracle": Recipe("oracle", DISTORTED),
    "knowmine-half": Recipe("knowmine", {"share": 0.5, **TRUSTED, **DISTORTED}),
    "oracle-half": Recipe("oracle", {"share": 0.5, **DISTORTED}),
    "oracle-half-cut-mix": Recipe("oracle", {"share": 0.5, "strong": 0.0, "cut_mix": 0.5}),
    "self-training-half-plain": Recipe("self-training", PLAIN),
    "knowmine-plain": Recipe("knowmine", {**PLAIN, "share": 0.25}),
    "knowmine-quarter-plain": Recipe("knowmine", {**TRUSTED, **PLAIN, "share": 0.25}),
    "knowmine-half-plain": Recipe("knowmine", {**TRUSTED, **PLAIN}),
    "oracle-half-plain": Recipe("oracle", PLAIN),
    "self-training-most": Recipe("self-training", {**PLAIN, "share": 0.75}),
    "knowmine-most": Recipe("knowmine", {**TRUSTED, **PLAIN, "share": 0.75}),
    "knowmine-most-all": Recipe("knowmine", {**ALL, **PLAIN, "share": 0.75}),
    "knowmine-most-all-soft": Recipe("knowmine", {**ALL, **PLAIN, "share": 0.75, "sharpen": False}),
    "oracle-most": Recipe("oracle", {**PLAIN, "share": 0.75}),
    "self-training-restart": Recipe("self-training", RESTART),
    "knowmine-restart": Recipe("knowmine", RESTART),
    "oracle-restart": Recipe("oracle", RESTART),
    "self-training-restart-plain": Recipe("self-training", ANEW),
    "knowmine-restart-plain": Recipe("knowmine", ANEW),
    "oracle-restart-plain": Recipe("oracle", ANEW),
    "knowmine-renew": Recipe("knowmine", {"renew": 0.5, **DISTORTED}),
    "restart-quarter": Recipe("knowmine", {**RESTART, "share": 0.25}),
    "restart-no-selection": Recipe(
        "knowmine", {**RESTART, "keep_first": 1.0, "keep_last": 1.0, "min_quality": 0.0}
    ),
    "restart-no-sharpen": Recipe("knowmine", {**RESTART, "sharpen": False}),
    "restart-no-cut-mix": Recipe("knowmine", {**RESTART, "cut_mix": 0.0}),
    "restart-doubt": Recipe("knowmine", {**RESTART, "doubt": 1.0}),
    "restart-renew": Recipe("knowmine", {**RESTART, "renew": 0.5}),
}


def main() -> None:
    """Run the recipes that have no result yet."""
    options = options_of(__doc__)
    settle()
    plan = plan_of(options)
    name = f"{options.name}-{options.seed}"
    split = draw(options)
    home = options.runs / name
    site = open_site("second-stage", split, {"data": options.data}, plan, "knowmine", home)
    base, calibration, opinions = begin(site, plan, home)
    note_opinions(site, opinions, RESULTS / f"{name}-opinions.json")
    for recipe in options.recipes:
        file = RESULTS / f"{name}-{recipe}.json"
        if not file.exists():
            found = second_stage(site, plan, RECIPES[recipe], base, calibration, opinions, options)
            save_weights(home / f"{recipe}.safetensors", weights_of(site.model))
            found = {"name": options.name, "recipe": recipe, "seed": options.seed, **found}
            keep_result(file, found)
            dice = np.mean(list(found["validation_dice"].values()))
            print(f"{recipe}: {dice:.4f}, {found['seconds']} s, {found['mined']}", flush=True)


def options_of(told: str | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=told)
    parser.add_argument("name", help="under which the results are kept")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train-list", default="splits/train.txt")
    parser.add_argument("--train-where", metavar="COLUMN=VALUE", help="of index.csv, in its place")
    parser.add_argument(
        "--apart", metavar="COLUMN", help="of index.csv, whose groups validation has for itself"
    )
    parser.add_argument("--labelled", type=int, default=88)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--unlabelled", type=int, default=160)
    parser.add_argument("--image-px", type=int, default=96)
    parser.add_argument("--first", type=int, default=150, help="steps on labels alone")
    parser.add_argument("--second", type=int, default=300, help="steps of each recipe")
    parser.add_argument("--orientation", default="any")
    parser.add_argument("--random", action="store_true", help="an encoder that has seen nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--runs", type=Path, default=Path("runs/second-stage"))
    return parser.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """The first stage's plan."""
    return Plan.model_validate(
        {
            "seed": options.seed,
            "model": {"image_px": options.image_px, "pretrained": not options.random},
            "training": {"steps": options.first, "orientation": options.orientation},
            "mining": {"images": 0, "ramp_rounds": 1, "tune_steps": 70, **FORMER},
        }
    )


def draw(options: argparse.Namespace) -> dict[str, Any]:
    """Training images by kind; the validation set stands in the place of test images."""
    table = options.data / "index.csv"
    rows = list(csv.DictReader(table.read_text().splitlines())) if table.exists() else []
    if options.train_where:
        column, _, value = options.train_where.partition("=")
        listed = [row["stem"] for row in rows if row[column] == value]
    elif options.apart:
        listed = [row["stem"] for row in rows]
    else:
        listed = sorted(read_stems(options.data / options.train_list, scan(options.data)))
    stems = ranked(listed, options.seed, "second-stage")
    a = options.labelled
    b = a + options.validation
    if options.apart:
        group_of = {row["stem"]: row[options.apart] for row in rows}
        kept = list[str]()
        for group in ranked(set(group_of.values()), options.seed, "validation"):
            if len(kept) < options.validation:
                kept += [stem for stem in stems if group_of[stem] == group]
        others = [stem for stem in stems if stem not in set(kept)]
        stems, b = [*others[:a], *kept, *others[a:]], a + len(kept)
    probed = round(PROBED * a)
    return {
        "data": "data",
        "probe": stems[:probed],
        "labelled": stems[probed:a],
        "test": stems[a:b],
        "unlabelled": stems[b : b + options.unlabelled],
    }


def begin(site: Site, plan: Plan, home: Path) -> tuple[Weights, Calibration, Opinions]:
    """The first stage on labels alone, the probe set's sums, and both models' opinions."""
    file, sums, seen = home / "base.safetensors", home / "sums.json", home / "opinions.npz"
    if not seen.exists():
        fresh = weights_of(build_model(plan.model, plan.seed))
        base = improve(site, TrainTask(1, 2, plan, fresh)).weights
        save_weights(file, base)
        print(f"first stage: {validate(site).mean():.4f}", flush=True)
        calibration = probe(site, plan, 1)
        print(f"probe: {calibration.fused}", flush=True)
        sums.write_text(json.dumps(calibration.__dict__))
        tune_sam(site, plan, 2, teaching(site, plan, 2, 2))
        opinions = consult(site, todays(site.unlabelled, plan, 2, 2), plan, 2)
        packed = io.BytesIO()
        np.savez_compressed(packed, **opinions.__dict__)
        write_atomically(seen, packed.getvalue())
    with np.load(seen) as arrays:
        return load_weights(file), calibration_of(json.loads(sums.read_text())), Opinions(**arrays)


def second_stage(
    site: Site,
    plan: Plan,
    recipe: Recipe,
    base: Weights,
    calibration: Calibration,
    opinions: Opinions,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """One recipe from the first stage's weights; its score on each validation image."""
    inner = "self-training" if recipe.method == "oracle" else recipe.method
    its = plan.model_copy(
        update={
            "method": inner,
            "training": plan.training.model_copy(update={"steps": options.second}),
            "mining": plan.mining.model_copy(update=recipe.mining),
        }
    )

    def miner(site: Site, task: TrainTask) -> tuple[Examples, Mined]:
        kind = todays(site.unlabelled, its, task.round, task.rounds)
        return settle_labels(site, task, kind, opinions)

    started = time.monotonic()
    task = TrainTask(2, 2, its, base, calibration)
    update = improve(site, task, oracle if recipe.method == "oracle" else miner)
    dice = validate(site)
    return {
        "method": recipe.method,
        "mining": recipe.mining,
        "labels": options.labelled,
        "unlabelled": options.unlabelled,
        "image_px": options.image_px,
        "pretrained": not options.random,
        "steps": [options.first, options.second],
        "seconds": round(time.monotonic() - started),
        "mined": update.mined.__dict__,
        "validation_dice": {
            case.stem: round(float(d), 5) for case, d in zip(site.test.cases, dice, strict=True)
        },
    }


def validate(site: Site) -> NDArray[np.float64]:
    """Dice (N,) of the loaded model on the validation images, in the model frame."""
    seen = predict(site.model, site.test.images, site.compute, site.progress.advance)
    return dice_of(np.asarray(seen) > 0.5, truth_of(site, site.test))


def go_on(site: Site, plan: Plan, base: Weights, mined: Examples) -> dict[str, float]:
    """Learn for `plan`'s steps from `base` on, from labels and what was mined; each validation image's Dice."""
    site.load_model(base, plan.model, 2, False)
    torch.manual_seed(0)
    seed = seed_of(plan.seed, "train", site.name, 2)
    learn(site, TrainTask(2, 2, plan, base), labels_of(site, plan, 2, 2), mined, seed)
    stems = [case.stem for case in site.test.cases]
    return dict(zip(stems, np.round(validate(site), 5).tolist(), strict=True))


def examples_of(kind: Kind, masks: Floats, *, keep: float, sharp: bool, weigh: bool) -> Examples:
    """The best `keep` of the masks, by the Dice that they expect of themselves; weighed by it, or alike."""
    chosen = select(expected_dice(masks), keep, 0.0)
    weights = chosen.weights if weigh else np.ones_like(chosen.weights)
    targets = sharpen(masks) if sharp else masks
    rows = torch.from_numpy(np.flatnonzero(chosen.kept))
    return Examples(
        kind.images[rows],
        torch.from_numpy((targets[chosen.kept] * 255 + 0.5).astype(np.uint8)),
        torch.from_numpy(weights[chosen.kept]),
    )


def note_opinions(site: Site, opinions: Opinions, file: Path) -> None:
    """Write how good each model's masks and their mix are on the unlabelled images."""
    truth = truth_of(site, site.unlabelled)
    dice = {f"{w:.2f}": float(dice_of(fuse(opinions, w) > 0.5, truth).mean()) for w in FUSE_WEIGHTS}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": len(opinions), "dice_by_unet_share": dice}) + "\n")


if __name__ == "__main__":
    main()
