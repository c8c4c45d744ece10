"""How long tuning SAM's decoder takes, and what it is worth, by its steps.

    python -m benchmarks.quality.tuning --data KVASIR [--labelled 60] [--steps 24 48]

No U-Net++ is needed: the decoder learns from labelled training images as a round does it, and is
then asked about other training images through truths made worse by the same rules. Their Dice
before and after says what tuning is worth; the seconds are of tuning alone, embeddings on disk.
Writes results/tuning/NAME.json beside this file. Measure on a quiet machine.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.quality.experiment import HERE, training_split
from benchmarks.quality.run import open_site
from benchmarks.quality.worth import truth_of
from knowmine.client.device import pick_compute, settle
from knowmine.client.mining.finetune import degrade, tune
from knowmine.client.mining.fusion import dice_of
from knowmine.client.mining.prompts import ask
from knowmine.client.mining.refine import refine
from knowmine.client.sam.model import Tunable
from knowmine.client.site.round import lessons_of
from knowmine.client.site.site import Site
from knowmine.shared.log import Silent
from knowmine.shared.settings import Plan


def main() -> None:
    """Tune, ask, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", default="kvasir")
    parser.add_argument("--train-list", default="splits/train.txt")
    parser.add_argument("--labelled", type=int, default=60)
    parser.add_argument("--asked", type=int, default=60)
    parser.add_argument("--steps", nargs="+", type=int, default=[24, 48, 96])
    options = parser.parse_args()
    settle()
    split = training_split(
        options.data, options.train_list, "tuning", options.labelled, options.asked
    )
    rows = []
    with tempfile.TemporaryDirectory() as home:
        site = open_site("tuning", split, {"data": options.data}, Plan(), "knowmine", Path(home))
        lessons = lessons_of(site, [site.labelled])
        worse, before = answers(site, site.sam)
        for steps in options.steps:
            begun = time.perf_counter()
            generator = torch.Generator().manual_seed(0)
            decoder = tune(
                site.sam,
                lessons,
                steps=steps,
                false_alarms=0.0,
                generator=generator,
                progress=Silent(),
            )
            seconds = time.perf_counter() - begun
            _, after = answers(site, site.sam.with_decoder(decoder))
            rows.append({"steps": steps, "seconds": round(seconds, 1), "dice": round(after, 4)})
            print(rows[-1], flush=True)
    found = {
        "labelled": options.labelled,
        "asked": options.asked,
        "machine": f"{torch.get_num_threads()} threads, {pick_compute()}",
        "dice_of_questions": round(worse, 4),
        "dice_frozen": round(before, 4),
        "rows": rows,
    }
    print(found, flush=True)
    file = HERE / "results" / "tuning" / f"{options.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


def answers(site: Site, sam: Tunable) -> tuple[float, float]:
    """Mean Dice of the questions and of SAM's answers, on the unlabelled images."""
    kind, truth = site.unlabelled, truth_of(site, site.unlabelled)
    rng = np.random.default_rng(0)
    worse = np.stack([np.stack([degrade(plane, rng) for plane in planes]) for planes in truth])
    masks = np.zeros_like(worse)
    for row in range(len(kind)):
        frames = site.frames(kind, row)
        (found,) = refine(
            sam,
            site.embeddings([(kind, row)]),
            [ask(worse[row], frames)],
            [frames],
            classes=1,
            by_agreement=True,
            refinements=0,
        )
        masks[row] = found.masks.numpy()
    return float(dice_of(worse > 0.5, truth).mean()), float(dice_of(masks > 0.5, truth).mean())


if __name__ == "__main__":
    main()
