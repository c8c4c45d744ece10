"""Make pseudo-labels for unlabelled images: predict, prompt, segment, fuse, estimate, select.

```
 1 predict   the U-Net++'s probabilities                            training/inference.py
 2 prompt    a box, points and a mask for each component            prompts.py
 3 segment   SAM's best mask for each prompt                        segment.py
 4 gate      SAM stays out unless it helps on the calibration set   fusion.py
 5 fuse      the mean of both models' masks                         fusion.py
 6 estimate  the Dice of each fused mask                            quality.py
 7 select    drop poor masks, weigh the rest                        quality.py
```
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from knowmine.client.data.image_set import ImageSet
from knowmine.client.device import Compute
from knowmine.client.mining.fusion import Floats, Gate, Predictions, dice_of, fuse, gate
from knowmine.client.mining.prompts import prompts_for
from knowmine.client.mining.quality import Selection, calibrate, estimate_quality, select
from knowmine.client.mining.segment import segment
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.session import SamSession
from knowmine.client.training.inference import MIRRORED, VARIED, predict
from knowmine.client.training.loop import Examples
from knowmine.shared.log import Progress
from knowmine.shared.protocol import Calibration, Mined
from knowmine.shared.settings import Plan

SAM_BATCH = 8
"""Images whose prompts SAM decodes in one call."""


class Models(Protocol):
    """The models that mining runs: the U-Net++, SAM, and the device of both."""

    network: nn.Module
    sam: SamSession
    compute: Compute


@dataclass(frozen=True)
class PseudoLabels:
    """What was mined from N images.

    masks: (N, C, S, S) float32 in [0, 1], model frame. quality: (N,), the predicted Dice of each.
    """

    images: ImageSet
    predictions: Predictions
    gate: Gate
    masks: Floats
    quality: NDArray[np.float64]
    selection: Selection

    def examples(self) -> Examples:
        """The kept pseudo-labels, ready to train on."""
        kept = self.selection.kept
        targets = torch.from_numpy((self.masks[kept] * 255 + 0.5).astype(np.uint8))
        images = self.images.images[torch.from_numpy(np.flatnonzero(kept))]
        return Examples(images, targets, torch.from_numpy(self.selection.weights[kept]))

    def report(self) -> Mined:
        """Counts and means, the only part that leaves the site."""
        seen = self.predictions
        return Mined(
            kept=int(self.selection.kept.sum()),
            dropped=int((~self.selection.kept).sum()),
            empty=int((~seen.prompted).sum()),
            gate=self.gate.word,
            fuse_weight=self.gate.fuse_weight,
            mean_agreement=float(dice_of(seen.unet > 0.5, seen.sam > 0.5).mean()),
            mean_quality=float(self.quality.mean()),
        )


Miner: TypeAlias = Callable[[ImageSet, Models, Plan, Calibration, int, Progress], PseudoLabels]
"""The type of `mine`; an experiment may pass another function."""


def mine(
    images: ImageSet,
    models: Models,
    plan: Plan,
    sums: Calibration,
    calibration_images: int,
    progress: Progress,
) -> PseudoLabels:
    """Pseudo-labels for `images`, one or more.

    sums: the calibration sums to gate SAM and to estimate quality by. calibration_images: calibration
    images of this site; with too few of them, `sums` are the federation's.
    """
    seen = predict_both(images, models, plan, progress)  # 1 to 3
    all_kept = Selection(np.ones(len(images), bool), np.ones(len(images), np.float32))
    full_quality = np.ones(len(images))
    if plan.method == "self-training":
        return PseudoLabels(images, seen, Gate("unused", 1.0), seen.unet, full_quality, all_kept)
    if plan.method == "paper":
        hard = (seen.sam > 0.5).astype(np.float32)
        return PseudoLabels(images, seen, Gate("unused", 0.0), hard, full_quality, all_kept)
    decision = _gate(plan, sums, calibration_images)  # 4
    masks = fuse(seen, decision.fuse_weight)  # 5
    quality = estimate_quality(seen, sums, decision.fuse_weight)  # 6
    return PseudoLabels(images, seen, decision, masks, quality, select(quality))  # 7


def measure(images: ImageSet, models: Models, plan: Plan, progress: Progress) -> Calibration:
    """How good pseudo-labels made with these models are on `images`, whose truth is known."""
    if not len(images):
        return Calibration()
    return calibrate(predict_both(images, models, plan, progress), images.truth.numpy())


def predict_both(images: ImageSet, models: Models, plan: Plan, progress: Progress) -> Predictions:
    """Steps 1 to 3: both models' masks; the U-Net++'s alone if the plan uses no SAM."""
    progress.start("predicting", len(images))
    unet = predict(
        models.network,
        images.images,
        models.compute,
        progress.advance,
        views=VARIED[plan.training.orientation] if plan.method == "knowmine" else MIRRORED,
    )
    progress.done()
    if plan.uses_sam:
        return prompt_sam(images, unet, models.sam, plan, progress)
    ones = np.ones(len(images), np.float32)
    found: NDArray[np.bool_] = np.any(unet > 0.5, axis=(1, 2, 3))
    return Predictions(unet, unet, found, ones, ones)


def prompt_sam(
    images: ImageSet, unet: Floats, sam: SamSession, plan: Plan, progress: Progress
) -> Predictions:
    """Steps 2 and 3: SAM's masks beside the U-Net++'s probabilities `unet` (N, C, S, S).

    The paper's recipe prompts with boxes and points and takes SAM's masks as they are. knowmine
    adds the probabilities as mask prompts, and keeps the U-Net++'s masks where SAM was not prompted.
    """
    is_knowmine = plan.method == "knowmine"
    px = unet.shape[-1]
    sam_px = sam.model.input_px
    frames = [Frames(height, width, px, sam_px) for height, width in images.sizes]
    prompts = [prompts_for(p, f, dense=is_knowmine) for p, f in zip(unet, frames, strict=True)]
    prompted = np.array([one.prompts is not None for one in prompts], bool)
    masks = np.zeros_like(unet)
    iou, stability = np.zeros((2, len(images)), np.float32)
    rows = np.flatnonzero(prompted).tolist()
    progress.start("segmenting with SAM", len(rows))
    for start in range(0, len(rows), SAM_BATCH):
        batch = rows[start : start + SAM_BATCH]
        found = segment(
            sam.model,
            sam.embeddings((images, row) for row in batch),
            [prompts[row] for row in batch],
            [frames[row] for row in batch],
            classes=plan.model.classes,
            by_agreement=is_knowmine,
        )
        for row, one in zip(batch, found, strict=True):
            masks[row], iou[row], stability[row] = one.masks, one.iou, one.stability
            if is_knowmine:
                uncovered = prompts[row].uncovered(unet[row], one.valid.numpy())
                masks[row][uncovered] = unet[row][uncovered]
        progress.advance(len(batch))
    progress.done()
    return Predictions(unet, masks, prompted, iou, stability)


def _gate(plan: Plan, sums: Calibration, calibration_images: int) -> Gate:
    if plan.mining.sam == "always":
        return Gate("unused", 0.5)
    if plan.mining.sam == "never":
        return Gate("unused", 1.0)
    return gate(sums, calibration_images)
