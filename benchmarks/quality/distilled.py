"""What teaching the encoder SAM's embeddings is worth before the labels, on validation images.

    python -m benchmarks.quality.distilled kvasir-75 --data KVASIR --labelled 510 --unlabelled 170

From the training images alone, divided as `second_stage` does it; encoders begin with random weights
unless --pretrained. *labels*: so many steps on labels. *distilled*: `mining.distil_steps` first, then
the same steps. *labels-longer*: labels for twice the steps, some more time than *distilled* takes. Each
ends in a file in results/distilled/; stopped at any time, the script goes on with the next.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality.experiment import HERE
from benchmarks.quality.run import open_site
from benchmarks.quality.second_stage import draw, validate
from knowmine.client.device import settle
from knowmine.client.site.round import improve
from knowmine.shared.protocol import TrainTask
from knowmine.shared.settings import Plan
from knowmine.shared.unetplusplus import build_model, weights_of

RESULTS = HERE / "results" / "distilled"


def main() -> None:
    """Run what has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="under which the results are kept")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train-list", default="splits/train.txt")
    parser.add_argument("--train-where", metavar="COLUMN=VALUE", help="of index.csv, in its place")
    parser.add_argument("--apart", metavar="COLUMN", help="as in second_stage")
    parser.add_argument("--labelled", type=int, default=88)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--unlabelled", type=int, default=592)
    parser.add_argument("--image-px", type=int, default=96)
    parser.add_argument("--steps", type=int, default=600, help="on labels")
    parser.add_argument("--distil-steps", type=int, default=800)
    parser.add_argument("--orientation", default="any")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/distilled"))
    options = parser.parse_args()
    settle()
    ways = {
        "distilled": ("knowmine", options.steps, options.distil_steps),
        "labels": ("supervised", options.steps, 0),
        "labels-longer": ("supervised", 2 * options.steps, 0),
    }
    for way, chosen in ways.items():
        file = RESULTS / f"{options.name}-{options.seed}-{way}.json"
        if not file.exists():
            found = {"name": options.name, "way": way, **measured(options, *chosen)}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n")
            dice = np.mean(list(found["validation_dice"].values()))
            print(f"{way}: {dice:.4f}, {found['seconds']} s", flush=True)


def measured(
    options: argparse.Namespace, method: str, steps: int, distil_steps: int
) -> dict[str, Any]:
    """One way from the same first weights; its score on each validation image."""
    plan = Plan.model_validate(
        {
            "method": method,
            "seed": options.seed,
            "model": {"image_px": options.image_px, "pretrained": options.pretrained},
            "training": {"steps": steps, "orientation": options.orientation},
            # All labels are learnt from: nothing is kept to probe, for nothing is mined.
            "mining": {"distil_steps": distil_steps, "warmup_rounds": 1},
        }
    )
    split = draw(options)
    split = {**split, "labelled": split["probe"] + split["labelled"], "probe": []}
    home = options.runs / f"{options.name}-{options.seed}"
    site = open_site("distilled", split, {"data": options.data}, plan, method, home)
    started = time.monotonic()
    improve(site, TrainTask(1, 1, plan, weights_of(build_model(plan.model, plan.seed))))
    seconds = round(time.monotonic() - started)
    return {
        "labels": len(site.labelled),
        "unlabelled": len(site.unlabelled),
        "image_px": options.image_px,
        "pretrained": options.pretrained,
        "seed": options.seed,
        "steps": steps,
        "distil_steps": distil_steps,
        "seconds": seconds,
        "validation_dice": {
            case.stem: round(float(dice), 5)
            for case, dice in zip(site.test.cases, validate(site), strict=True)
        },
    }


if __name__ == "__main__":
    main()
