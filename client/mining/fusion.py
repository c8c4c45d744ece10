"""Fuse the masks of the U-Net++ and SAM, as far as SAM helps on the calibration set."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowmine.shared.protocol import FUSE_WEIGHTS, MIN_CALIBRATION_IMAGES, Calibration

Floats = NDArray[np.float32]

PRIOR_IMAGES, PRIOR_HARM = 16, 0.02
"""The gate's prior: as if SAM alone had cost .02 Dice on 16 images, an even mean a quarter of that.
One image's gain scatters far more than such a harm, so a handful of images cannot rule it out."""


@dataclass(frozen=True)
class Predictions:
    """Both models' masks of N images, model frame.

    unet, sam: (N, C, S, S) float32 in [0, 1]. prompted: (N,) bool, False for an image without a
    component, for which SAM has no prompt. sam_iou, sam_stability: (N,) in [0, 1].
    """

    unet: Floats
    sam: Floats
    prompted: NDArray[np.bool_]
    sam_iou: Floats
    sam_stability: Floats

    def __len__(self) -> int:
        return len(self.unet)


@dataclass(frozen=True)
class Gate:
    """Whether a round uses SAM (a word of `GATES`), and the U-Net++'s weight in the fused masks."""

    word: str
    fuse_weight: float


def fuse(predictions: Predictions, weight: float) -> Floats:
    """Soft masks (N, C, S, S): `weight` times the U-Net++'s, the rest SAM's.

    An image without a prompt keeps the U-Net++'s masks.
    """
    weights = np.where(predictions.prompted, weight, 1.0).astype(np.float32).reshape(-1, 1, 1, 1)
    fused: Floats = weights * predictions.unet + (1 - weights) * predictions.sam
    return fused


def gate(sums: Calibration, calibration_images: int) -> Gate:
    """Whether this round uses SAM, by the calibration images behind `sums`.

    calibration_images: this site's calibration images; with too few of them, `sums` are the federation's.
    SAM stays out with fewer images than MIN_CALIBRATION_IMAGES behind the sums. Few images show
    little, and the best of several weights looks better than it is, so SAM has to outweigh
    PRIOR_IMAGES imagined images on which it harms by the square of its weight: an even mean of two
    models is seldom worse than one of them, SAM alone may well be. SAM never outweighs the U-Net++,
    which has learnt more since the sums were made.
    """
    if sums.images < MIN_CALIBRATION_IMAGES:
        return Gate("uncalibrated", 1.0)
    shrunk = {
        weight: dice - PRIOR_IMAGES * PRIOR_HARM * (1 - weight) ** 2
        for dice, weight in zip(sums.fused, FUSE_WEIGHTS, strict=True)
        if weight >= 0.5
    }
    best = max(shrunk, key=shrunk.__getitem__)
    helps = shrunk[best] > shrunk[1.0]
    word = "pooled" if calibration_images < MIN_CALIBRATION_IMAGES else "on" if helps else "off"
    return Gate(word, best if helps else 1.0)


def dice_of(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Dice (N,) of masks (N, C, S, S), mean over classes; 1 for two empty masks."""
    both = (a & b).sum((2, 3), dtype=np.float64)
    size = a.sum((2, 3), dtype=np.float64) + b.sum((2, 3))
    per_class = np.where(size > 0, 2 * both / np.maximum(size, 1), 1.0)
    dice: NDArray[np.float64] = per_class.mean(1)
    return dice
