"""How long a round's mining takes once SAM's embeddings are on disk, at 224 px.

    python -m benchmarks.quality.pace --data KVASIR --weights BASE.safetensors [--images 64]

BASE is a U-Net++ that has learnt something, as a first stage of `benchmarks.quality.second_stage`
leaves it in runs/second-stage/NAME-0/: one that knows nothing asks SAM about noise. The result, in
results/pace/, has seconds an image for predicting and for asking, a tuning step's, and what follows
for 800 images and for `tune_steps`. Run it on a quiet machine.
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.quality.experiment import HERE, keep_result, training_split
from benchmarks.quality.run import open_site
from knowmine.client.device import settle
from knowmine.client.site.round import consult, tune_sam
from knowmine.client.training.inference import VARIED, predict
from knowmine.shared.settings import Plan
from knowmine.shared.weights import load_weights

LABELLED, STEPS = 24, 12


def main() -> None:
    """Tune, predict and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--train-list", default="splits/train.txt")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--name", default="kvasir-224")
    options = parser.parse_args()
    settle()
    plan = Plan.model_validate(
        {
            "model": {"image_px": 224},
            "training": {"orientation": "any"},
            "mining": {"tune_steps": STEPS},
        }
    )
    split = training_split(options.data, options.train_list, "pace", LABELLED, options.images)
    with tempfile.TemporaryDirectory() as home:
        site = open_site("pace", split, {"data": options.data}, plan, "knowmine", Path(home))
        site.load_model(load_weights(options.weights), plan.model, 1, False)
        for kind in (site.labelled, site.unlabelled):
            site.embeddings((kind, row) for row in range(len(kind)))
        started = time.perf_counter()
        tune_sam(site, plan, 1, [site.labelled])
        tuned = time.perf_counter()
        predict(site.model, site.unlabelled.images, site.compute, views=VARIED["any"])
        predicted = time.perf_counter()
        opinions = consult(site, site.unlabelled, plan, 1)
        consulted = time.perf_counter()
        whole = (consulted - predicted) / options.images
        step = (tuned - started) / STEPS
        found = {
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "compute": str(site.compute),
            "images": options.images,
            "prompted": int(opinions.prompted.sum()),
            "predict_s_an_image": round((predicted - tuned) / options.images, 4),
            "predict_and_ask_s_an_image": round(whole, 4),
            "predict_and_ask_s_of_800_images": round(800 * whole, 1),
            "tune_s_a_step": round(step, 3),
            "tune_s": round(step * Plan().mining.tune_steps, 1),
        }
    file = HERE / "results" / "pace" / f"{options.name}.json"
    keep_result(file, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
