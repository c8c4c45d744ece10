"""What SAM's decoder gains by learning what a false alarm is, on pseudo-labels.

    python -m benchmarks.quality.alarms kvasir-10 --data kvasir-seg=KVASIR
    python -m benchmarks.quality.alarms federated-10 --site site-4 --data cvc-clinicdb=CLINICDB

One site of an experiment's split: a U-Net++ learns from its labels for two rounds, SAM's decoder is
tuned on them in several ways, and both look at the images of the first mining round. Hidden masks of
these, which are training images, score the pseudo-labels; nothing is trained on them. A result, with
each image's Dice, goes to results/alarms/; a way that has one is not tried again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.experiment import (
    HERE,
    keep_result,
    pooled,
    read_experiment,
    read_split,
    split_file,
)
from benchmarks.quality.run import folders_of, open_site
from benchmarks.quality.worth import truth_of
from knowmine.client.device import settle
from knowmine.client.mining.finetune import tune
from knowmine.client.mining.fusion import Floats, dice_of, fuse
from knowmine.client.sam.model import Tunable
from knowmine.client.site.round import ask_sam, improve, lessons_of, teaching, todays
from knowmine.client.site.site import Site
from knowmine.client.training.inference import VARIED, predict
from knowmine.shared.errors import UsageError
from knowmine.shared.log import Silent
from knowmine.shared.protocol import TrainTask
from knowmine.shared.settings import Plan
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import load_weights, save_weights

ROUNDS, WARM_UP, STEPS, PX, MINED = 5, 2, 300, 128, 264
WAYS = (
    ((96,), 0.0),
    ((96,), 0.5),
    ((300,), 0.0),
    ((300,), 0.5),
    ((96, 48, 48, 48), 0.5),
)
"""Steps of tuning, stage by stage, and the chance of a false alarm in each lesson. The last is what
`mining.tune_again: 48` has come to in the third round that mines."""
SHARES = (0.0, 0.5, 0.75)
"""The U-Net++'s share in the mixes that are scored."""


def main() -> None:
    """Teach SAM in each way that has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment")
    parser.add_argument("--site", default="pooled", help="of a federated experiment")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--seed", type=int, default=0, help="of the split and all draws")
    parser.add_argument("--tuning-seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--orientation", default="any")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/alarms"))
    options = parser.parse_args()
    settle(options.threads)
    split = read_split(split_file(options.experiment, options.seed))
    if read_experiment(options.experiment).setting == "pooled":
        split = pooled(split)
    plan = Plan.model_validate(
        {
            "seed": options.seed,
            "model": {"image_px": PX},
            "training": {"steps": STEPS, "orientation": options.orientation},
            "mining": {"images": MINED},
        }
    )
    name = f"{options.experiment}-{options.site}-{options.seed}"
    home = options.runs / name
    folders = folders_of(options.data)
    site = open_site("pooled", split[options.site], folders, plan, "knowmine", home / "site")
    kind = todays(site.unlabelled, plan, WARM_UP + 1, ROUNDS)
    truth = truth_of(site, kind)
    unet = seen_by_unet(site, plan, home)

    def dice(masks: Floats) -> dict[str, float]:
        found = np.round(dice_of(masks > 0.5, truth), 5).tolist()
        return dict(zip((case.stem for case in kind.cases), found, strict=True))

    file = HERE / "results" / "alarms" / f"{name}.json"
    found = json.loads(file.read_text()) if file.exists() else {"ways": {}}
    found |= {"name": name, "image_px": PX, "labels": len(site.labelled) + len(site.probe)}
    found |= {"images": len(kind)}
    own = dice(unet)
    if found.setdefault("unet", own) != own:
        raise UsageError(f"{file} is of another U-Net++: remove it, and all ways are tried again")
    for seed in options.tuning_seeds:
        for stages, chance in WAYS:
            way = f"{' + '.join(map(str, stages))} steps, {chance}, seed {seed}"
            if way not in found["ways"]:
                started = time.monotonic()
                sam = tuned(site, plan, stages, chance, seed)
                seconds = round(time.monotonic() - started, 1)
                opinions = ask_sam(site, kind, unet, plan, sam)
                scores = {f"{share}": dice(fuse(opinions, share)) for share in SHARES}
                found["ways"][way] = {"tune_s": seconds, "dice_by_unet_share": scores}
                keep_result(file, found)
            of = found["ways"][way]["dice_by_unet_share"]
            means = {share: round(float(np.mean(list(of[share].values()))), 4) for share in of}
            print(f"{way}: {means}", flush=True)


def seen_by_unet(site: Site, plan: Plan, home: Path) -> NDArray[np.float32]:
    """What a U-Net++ after two rounds on labels alone sees in the images to mine."""
    alone = plan.model_copy(update={"method": "supervised"})
    weights = weights_of(build_model(plan.model, plan.seed))
    for round_ in range(1, WARM_UP + 1):
        file = home / f"w{round_}.safetensors"
        if not file.exists():
            save_weights(file, improve(site, TrainTask(round_, ROUNDS, alone, weights)).weights)
        weights = load_weights(file)
    site.load_model(weights, plan.model, WARM_UP + 1, False)
    kind = todays(site.unlabelled, plan, WARM_UP + 1, ROUNDS)
    return predict(site.model, kind.images, site.compute, views=VARIED[plan.training.orientation])


def tuned(site: Site, plan: Plan, stages: Sequence[int], chance: float, seed: int) -> Tunable:
    """SAM after so many steps on this site's labels, each stage going on from the one before."""
    lessons = lessons_of(site, teaching(site, plan, WARM_UP + 1, ROUNDS))
    sam, generator = site.sam, torch.Generator().manual_seed(seed)
    for steps in stages:
        decoder = tune(
            sam,
            lessons,
            steps=steps,
            false_alarms=chance,
            generator=generator,
            progress=Silent(),
        )
        sam = site.sam.with_decoder(decoder)
    return sam


if __name__ == "__main__":
    main()
