"""Whose masks to learn from, and how sure they should be: second stages of one model.

    python -m benchmarks.quality.softness kvasir-128 --data KVASIR --image-px 128 --first 600 --second 900 --unlabelled 592

From training images alone, drawn as by `benchmarks.quality.second_stage` with the same options. One
U-Net++ learns from the labels (`--first` steps), SAM is tuned on them, and both look at the
unlabelled images as in a round. Each recipe goes on from there for `--second` steps, three quarters
of each batch pseudo-labelled or as it says, and is scored on validation images. Results go to
results/softness/; stopped at any time, the script goes on with the next recipe.
"""

import io
import json
import time
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.experiment import HERE, keep_result
from benchmarks.quality.run import open_site
from benchmarks.quality.second_stage import draw, examples_of, go_on, options_of, plan_of
from benchmarks.quality.worth import truth_of
from knowmine.client.device import settle
from knowmine.client.mining.finetune import tune
from knowmine.client.mining.fusion import Floats, dice_of, fuse
from knowmine.client.site.round import ask_sam, improve, lessons_of
from knowmine.client.site.round import draw as seed_of
from knowmine.client.site.site import Site
from knowmine.client.training.inference import VARIED, predict
from knowmine.shared.log import Silent
from knowmine.shared.protocol import TrainTask
from knowmine.shared.settings import MiningSettings, Plan
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import Weights, load_weights, save_weights, write_atomically


class Recipe(NamedTuple):
    """The U-Net++'s part of the mix, or None for labels alone; whether masks are sharpened; whether
    each counts by the Dice that it expects of itself, or all alike; how much of each batch they are.
    """

    unet: float | None
    sharpen: bool = False
    weigh: bool = True
    share: float = 0.75


RECIPES = {
    "mix": Recipe(0.5),
    "mix, sharpened": Recipe(0.5, sharpen=True),
    "U-Net++": Recipe(1.0),
    "mix, all alike": Recipe(0.5, weigh=False),
    "mix, half of each batch": Recipe(0.5, share=0.5),
    "labels": Recipe(None),
}


def main() -> None:
    """Run the recipes that have no result yet."""
    options = options_of(__doc__)
    settle()
    today = MiningSettings(images=0)
    plan = plan_of(options).model_copy(update={"mining": today})
    home = options.runs / f"softness-{options.name}-{options.seed}"
    site = open_site("second-stage", draw(options), {"data": options.data}, plan, "knowmine", home)
    base = first_stage(site, plan)
    site.load_model(base, plan.model, 1, False)
    unet, sam = opinions_of(site, plan)
    truth = truth_of(site, site.unlabelled)
    mix: Floats = np.mean([unet, sam], axis=0, dtype=np.float32)
    file = HERE / "results" / "softness" / f"{options.name}-{options.seed}.json"
    found = json.loads(file.read_text()) if file.exists() else {"recipes": {}}
    found |= {
        "name": options.name,
        "seed": options.seed,
        "steps": [options.first, options.second],
        "unlabelled": len(unet),
        "dice_of_unet": _mean_dice(unet, truth),
        "dice_of_mix": _mean_dice(mix, truth),
    }
    for name, recipe in RECIPES.items():
        if name not in found["recipes"]:
            started = time.monotonic()
            its = plan.model_copy(
                update={
                    "training": plan.training.model_copy(update={"steps": options.second}),
                    "mining": plan.mining.model_copy(update={"share": recipe.share}),
                }
            )
            mined = examples_of(
                site.unlabelled,
                unet if recipe.unet == 1.0 else mix,
                keep=0.0 if recipe.unet is None else 1.0,
                sharp=recipe.sharpen,
                weigh=recipe.weigh,
            )
            scores = go_on(site, its, base, mined)
            found["recipes"][name] = scores
            keep_result(file, found)
            mean = np.mean(list(scores.values()))
            print(f"{name}: {mean:.4f}, {time.monotonic() - started:.0f} s", flush=True)


def first_stage(site: Site, plan: Plan) -> Weights:
    """A U-Net++ that has learnt from the labels alone, kept in the site's folder."""
    file = site.folder / "base.safetensors"
    if not file.exists():
        fresh = weights_of(build_model(plan.model, plan.seed))
        save_weights(file, improve(site, TrainTask(1, 2, plan, fresh)).weights)
    return load_weights(file)


def opinions_of(site: Site, plan: Plan) -> tuple[Floats, Floats]:
    """What the loaded U-Net++ and a SAM tuned on the labels see in the unlabelled images."""
    file, kind = site.folder / "opinions.npz", site.unlabelled
    if not file.exists():
        unet = predict(
            site.model, kind.images, site.compute, views=VARIED[plan.training.orientation]
        )
        decoder = tune(
            site.sam,
            lessons_of(site, [site.labelled, site.probe]),
            steps=plan.mining.tune_steps,
            false_alarms=plan.mining.false_alarms,
            generator=torch.Generator().manual_seed(seed_of(plan.seed, "tune", site.name)),
            progress=Silent(),
        )
        seen = ask_sam(site, kind, unet, plan, site.sam.with_decoder(decoder))
        packed = io.BytesIO()
        np.savez_compressed(packed, unet=unet, sam=fuse(seen, 0.0))
        write_atomically(file, packed.getvalue())
    with np.load(file) as arrays:
        return arrays["unet"], arrays["sam"]


def _mean_dice(masks: Floats, truth: NDArray[np.bool_]) -> float:
    return round(float(dice_of(masks > 0.5, truth).mean()), 4)


if __name__ == "__main__":
    main()
