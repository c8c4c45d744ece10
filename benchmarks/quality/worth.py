"""What pseudo-labels are worth: frozen and tuned SAM against the truth of unlabelled images.

    python -m benchmarks.quality.worth kvasir-88 --data KVASIR [--labelled 88] [--steps 160]

Everything comes from the training list of a data folder, so that recipes can be chosen without its
test set: some labelled images, and a hundred whose hidden masks only score. For each length of
tuning, results/worth/ gets the Dice of the mix by the U-Net++'s share in it, and how well the judge
orders the images.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.experiment import HERE, training_split
from benchmarks.quality.run import open_site
from knowmine.client.device import settle
from knowmine.client.mining.fusion import Opinions, calibrate, dice_of, features_of, fuse, judge
from knowmine.client.site.round import consult, improve, tune_sam
from knowmine.client.site.site import Kind, Site
from knowmine.shared.protocol import FUSE_WEIGHTS, Calibration, TrainTask
from knowmine.shared.settings import Plan
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import Weights

PROBED, SCORED = 18, 100


def main() -> None:
    """Train a U-Net++ on the labels, then ask SAM in several ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="under which the result is kept")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train-list", default="splits/train.txt")
    parser.add_argument("--labelled", type=int, default=88)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--image-px", type=int, default=160)
    parser.add_argument("--orientation", default="any")
    parser.add_argument("--tune-steps", nargs="+", type=int, default=[0, 24, 48, 96])
    options = parser.parse_args()
    settle()
    split = training_split(
        options.data, options.train_list, "worth", options.labelled, PROBED + SCORED
    )
    plan = Plan.model_validate(
        {
            "model": {"image_px": options.image_px},
            "training": {"steps": options.steps, "orientation": options.orientation},
        }
    )
    with tempfile.TemporaryDirectory() as home:
        site = open_site("worth", split, {"data": options.data}, plan, "knowmine", Path(home))
        warm_up(site, plan)
        rows = []
        for steps, opinions in recipes(site, plan, options.tune_steps):
            rows.append({"tune_steps": steps, **worth(opinions, truth_of(site, site.unlabelled))})
            print(rows[-1], flush=True)
    told = {key: getattr(options, key) for key in ("name", "labelled", "steps", "image_px")}
    file = HERE / "results" / "worth" / f"{options.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**told, "scored": SCORED, "rows": rows}, indent=1) + "\n")


def warm_up(site: Site, plan: Plan) -> None:
    """Train the site's model on its labels, as the first 40 % of a longer run."""
    supervised = plan.model_copy(update={"method": "supervised"})
    weights: Weights = weights_of(build_model(plan.model, plan.seed))
    halved = plan.training.model_copy(update={"steps": max(1, plan.training.steps // 2)})
    supervised = supervised.model_copy(update={"training": halved})
    for round_ in (1, 2):
        weights = improve(site, TrainTask(round_, 5, supervised, weights)).weights


def recipes(site: Site, plan: Plan, tune_steps: list[int]) -> Iterator[tuple[int, Opinions]]:
    """Both models' masks of the unlabelled images, for each length of tuning; 0 is frozen."""
    for count in tune_steps:
        mining = plan.mining.model_copy(
            update={"tune_steps": count, "tune_again": 0, "false_alarms": 0.0}
        )
        its = plan.model_copy(update={"mining": mining})
        for file in site.folder.glob("sam-decoder-*"):
            file.unlink()
        tune_sam(site, its, count + 1, [site.labelled])
        yield count, consult(site, site.unlabelled, its, count + 1)


def worth(opinions: Opinions, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Dice by fuse weight on all but the probed images; what judge and agreement know of it."""
    probe, rest = slice(0, PROBED), slice(PROBED, None)
    dice = {w: dice_of(fuse(opinions, w) > 0.5, truth) for w in FUSE_WEIGHTS}
    sums: Calibration = calibrate(_part(opinions, probe), truth[probe])
    others, true = _part(opinions, rest), dice[0.5][rest]
    judged = judge(others, sums, 0.5)
    better = judged >= np.median(judged)
    found = {
        "judge": np.corrcoef(judged, true)[0, 1],
        "agreement": np.corrcoef(features_of(others)[:, 1], true)[0, 1],
        "better_half": true[better].mean(),
        "worse_half": true[~better].mean(),
    }
    return {
        "dice_by_unet_share": {
            f"{w:.2f}": round(float(d[rest].mean()), 4) for w, d in dice.items()
        },
        **{name: round(float(value), 4) for name, value in found.items()},
    }


def truth_of(site: Site, kind: Kind) -> NDArray[np.bool_]:
    """The hidden masks (N, 1, S, S) of the first class."""
    px = site.settings.image_px
    masks = [site.scorer.truth(case.stem, px) for case in kind.cases]
    if any(mask is None for mask in masks):
        raise SystemExit("worth: every image of the training list needs a mask to be scored by")
    return torch.from_numpy(np.stack([m == 1 for m in masks if m is not None]))[:, None].numpy()


def _part(of: Opinions, rows: slice) -> Opinions:
    return Opinions(
        of.unet[rows], of.sam[rows], of.prompted[rows], of.sam_iou[rows], of.sam_stability[rows]
    )


if __name__ == "__main__":
    main()
