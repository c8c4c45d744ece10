"""What views of an image are worth in pseudo-labels, and which signs tell a good one from a bad.

    python -m benchmarks.quality.views kvasir-128 --data KVASIR

Starts from the first stage of `benchmarks.quality.second_stage NAME` with the same options: a
U-Net++ that has learnt from labels alone. It looks at unlabelled images, whose hidden masks only
score, through sets of views; SAM, tuned on the labels, is asked with the last set. A result goes to
results/views/.
"""

import json

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.experiment import HERE, keep_result
from benchmarks.quality.run import open_site
from benchmarks.quality.second_stage import draw, options_of, plan_of
from benchmarks.quality.worth import truth_of
from knowmine.client.device import settle
from knowmine.client.mining.fusion import dice_of, features_of, fuse
from knowmine.client.site.round import consult, teaching, tune_sam
from knowmine.client.training.inference import MIRRORED, VARIED, View, predict
from knowmine.shared.protocol import FEATURES
from knowmine.shared.weights import load_weights

SCORED = 150
TURNED = tuple(View(turns) for turns in range(4))
SETS = {
    "the image": MIRRORED[:1],
    "mirrored": MIRRORED,
    "mirrored both ways": (*MIRRORED, View(2), View(2, mirrored=True)),
    "turned by quarters": TURNED,
    "larger": (View(scale=1.2),),
    "varied": VARIED["any"],
    "turned, as it is and larger": (*TURNED, *(view._replace(scale=1.2) for view in TURNED)),
}
"""What the U-Net++ is shown; upright images take those that are not turned."""


def main() -> None:
    """Look through each set of views, then ask SAM and judge."""
    options = options_of(__doc__)
    settle()
    plan = plan_of(options)
    home = options.runs / f"{options.name}-{options.seed}"
    site = open_site("views", draw(options), {"data": options.data}, plan, "knowmine", home)
    site.load_model(load_weights(home / "base.safetensors"), plan.model, 1, False)
    kind = site.unlabelled.at(list(range(min(SCORED, len(site.unlabelled)))))
    truth = truth_of(site, kind)

    def score(masks: NDArray[np.float32]) -> float:
        return round(float(dice_of(masks > 0.5, truth).mean()), 4)

    upright = options.orientation == "upright"
    sets = {**SETS, "varied": VARIED[options.orientation]}
    dice = {
        name: score(predict(site.model, kind.images, site.compute, views=views))
        for name, views in sets.items()
        if not (upright and any(view.turns for view in views))
    }
    tune_sam(site, plan, 2, teaching(site, plan, 2, 2))
    opinions = consult(site, kind, plan, 2)
    # What the U-Net++ sees nothing in has no signs: SAM is not asked about it.
    asked = opinions.prompted
    mixed = dice_of(fuse(opinions, 0.5) > 0.5, truth)[asked]
    signs = features_of(opinions)[asked]
    found = {
        "name": options.name,
        "scored": len(kind),
        "image_px": options.image_px,
        "dice_by_views": dice,
        "prompted": int(asked.sum()),
        "mixed": round(float(mixed.mean()), 4),
        "correlation": {
            sign: round(float(np.corrcoef(signs[:, column], mixed)[0, 1]), 3)
            for column, sign in enumerate(FEATURES)
            if column
        },
        "best_70_percent": {
            sign: round(
                float(mixed[np.argsort(-signs[:, column])][: len(mixed) * 7 // 10].mean()), 4
            )
            for column, sign in enumerate(FEATURES)
            if column
        },
    }
    file = HERE / "results" / "views" / f"{options.name}.json"
    keep_result(file, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
