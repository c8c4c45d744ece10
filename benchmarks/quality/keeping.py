"""How many of the mined images to keep: second stages of one model on the same pseudo-labels.

    python -m benchmarks.quality.keeping kvasir-128 --data KVASIR --image-px 128 --unlabelled 592 ...

Starts from the first stage of `benchmarks.quality.second_stage NAME` with the same options. The
U-Net++ looks at the unlabelled images through eight turned and mirrored views, as they are and a
quarter larger; SAM, tuned for 200 steps on the labels, is asked with their mean; the pseudo-label is
the even mix. Each recipe goes on from there for `--second` steps, three quarters of each batch
pseudo-labelled, and is scored on validation images. Results go to results/keeping/.
"""

import json
import time
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.quality.experiment import HERE, keep_result
from benchmarks.quality.run import open_site
from benchmarks.quality.second_stage import draw, examples_of, go_on, options_of, plan_of
from benchmarks.quality.worth import truth_of
from knowmine.client.device import settle
from knowmine.client.mining.finetune import tune
from knowmine.client.mining.fusion import Floats, dice_of, expected_dice, fuse, select
from knowmine.client.site.round import ask_sam, lessons_of, teaching
from knowmine.client.site.site import Site
from knowmine.client.training.inference import View, predict
from knowmine.shared.log import Silent
from knowmine.shared.settings import Plan
from knowmine.shared.weights import load_weights

VIEWS = tuple(
    View(turns, mirrored, scale)
    for scale in (1.0, 1.25)
    for turns in range(4)
    for mirrored in (False, True)
)
TUNE_STEPS = 200


class Recipe(NamedTuple):
    """Which pseudo-labels are kept, whether they are sharpened, and whether they are the truth."""

    keep: float
    sharpen: bool = True
    true: bool = False


RECIPES = {
    "labels": Recipe(0.0),
    "best 70 %": Recipe(0.7),
    "all": Recipe(1.0),
    "all, not sharpened": Recipe(1.0, sharpen=False),
    "true masks": Recipe(1.0, sharpen=False, true=True),
}


def main() -> None:
    """Make the pseudo-labels once, then run the recipes that have no result yet."""
    options = options_of(__doc__)
    settle()
    plan = plan_of(options)
    its = plan.model_copy(
        update={
            "training": plan.training.model_copy(update={"steps": options.second}),
            "mining": plan.mining.model_copy(update={"share": 0.75}),
        }
    )
    home = options.runs / f"{options.name}-{options.seed}"
    site = open_site("second-stage", draw(options), {"data": options.data}, plan, "knowmine", home)
    base = load_weights(home / "base.safetensors")
    site.load_model(base, plan.model, 1, False)
    mixed = pseudo_labels(site, plan)
    truth = truth_of(site, site.unlabelled)
    file = HERE / "results" / "keeping" / f"{options.name}-{options.seed}.json"
    found = json.loads(file.read_text()) if file.exists() else {"recipes": {}}
    dice = dice_of(mixed > 0.5, truth)
    best = select(expected_dice(mixed), 0.7, 0.0).kept
    found |= {
        "name": options.name,
        "steps": [options.first, options.second],
        "unlabelled": len(mixed),
        "dice_of_pseudo_labels": round(float(dice.mean()), 4),
        "dice_of_the_best_70_percent": round(float(dice[best].mean()), 4),
    }
    for name, recipe in RECIPES.items():
        if name not in found["recipes"]:
            started = time.monotonic()
            mined = examples_of(
                site.unlabelled,
                truth.astype(np.float32) if recipe.true else mixed,
                keep=recipe.keep,
                sharp=recipe.sharpen,
                weigh=not recipe.true,
            )
            scores = go_on(site, its, base, mined)
            found["recipes"][name] = scores
            keep_result(file, found)
            mean = np.mean(list(scores.values()))
            print(f"{name}: {mean:.4f}, {time.monotonic() - started:.0f} s", flush=True)


def pseudo_labels(site: Site, plan: Plan) -> Floats:
    """The even mix (N, C, S, S) of the U-Net++ and a SAM that was tuned on the site's labels."""
    lessons = lessons_of(site, teaching(site, plan, 2, 2))
    generator = torch.Generator().manual_seed(1)
    decoder = tune(
        site.sam,
        lessons,
        steps=TUNE_STEPS,
        false_alarms=0.0,
        generator=generator,
        progress=Silent(),
    )
    sam, kind = site.sam.with_decoder(decoder), site.unlabelled
    seen = predict(site.model, kind.images, site.compute, views=VIEWS)
    return fuse(ask_sam(site, kind, seen, plan, sam), 0.5)


if __name__ == "__main__":
    main()
