"""Estimate the Dice of each pseudo-label, from what the calibration set shows.

The calibration set are labelled images that the model has not been trained on. What is learnt on
them are sums that sites can pool: see `shared.protocol.Calibration`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowmine.client.mining.fusion import Floats, Predictions, dice_of, fuse
from knowmine.shared.protocol import FEATURES, FUSE_WEIGHTS, Calibration

MIN_QUALITY = 0.5
"""Pseudo-labels with a lower predicted Dice are dropped. Chosen, not measured."""
PRIOR = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
"""Slopes of the estimate before it has seen a calibration image: the mask's own expected Dice, the
strongest single feature (docs/findings.md)."""
PRIOR_STRENGTH = 16.0
"""Calibration images that outweigh the prior's slopes; its level counts as one image."""
NOISE = 0.1
"""Probabilities below this say nothing about a mask's quality."""
SPREAD = 1e-3
"""Least variance of a feature, so that one that never changes gets no slope."""


@dataclass(frozen=True)
class Selection:
    """Which pseudo-labels are kept, (N,) bool, and the weight of each, (N,) float32."""

    kept: NDArray[np.bool_]
    weights: Floats


def select(quality: NDArray[np.float64]) -> Selection:
    """Keep the pseudo-labels with an estimate (N,) of MIN_QUALITY or more.

    Each kept one is weighted by its estimate: 0 at .4, 1 from .9 on.
    """
    weights = ((quality - 0.4) / 0.5).clip(0, 1).astype(np.float32)
    return Selection(quality >= MIN_QUALITY, weights)


def estimate_quality(
    predictions: Predictions, sums: Calibration, weight: float
) -> NDArray[np.float64]:
    """Predicted Dice (N,) in [0, 1] of each pseudo-label that is fused with `weight`.

    Linear in the features, with slopes from the calibration sums. An image without a component is
    rated by how often an empty prediction was right on the calibration set.
    """
    found = slopes(sums, weight)
    if found is None:
        quality = expected_dice(fuse(predictions, weight))
    else:
        quality = features_of(predictions) @ found
    # Beta-binomial mean: two pseudo-counts at the fraction of images without a lesion.
    fraction = (sums.empty + 0.2) / (sums.images + 1)
    empty = (sums.empty_right + 2 * fraction) / (sums.empty_predicted + 2)
    estimate: NDArray[np.float64] = np.where(predictions.prompted, quality, empty).clip(0, 1)
    return estimate


def calibrate(predictions: Predictions, truth: NDArray[np.bool_]) -> Calibration:
    """Sums over calibration images with known `truth` (N, C, S, S) bool.

    `gram` and `target` hold prompted images alone: the others have no agreement to measure.
    """
    if not len(predictions):
        return Calibration()
    by_weight = [dice_of(fuse(predictions, w) > 0.5, truth) for w in FUSE_WEIGHTS]
    prompted = predictions.prompted
    x = features_of(predictions)[prompted]
    empty = ~truth.any((1, 2, 3))
    return Calibration(
        images=len(predictions),
        fused=tuple(float(d.sum()) for d in by_weight),
        gram=tuple(float(v) for v in (x.T @ x).ravel()),
        target=tuple(float(v) for dice in by_weight for v in x.T @ dice[prompted]),
        empty=int(empty.sum()),
        empty_predicted=int((~prompted).sum()),
        empty_right=int((empty & ~prompted).sum()),
    )


def slopes(sums: Calibration, weight: float) -> NDArray[np.float64] | None:
    """Coefficients (len(FEATURES),) of the estimate: a ridge regression towards PRIOR.

    Features are centred and scaled by their sums, so that the penalty of a slope does not depend on
    how little a feature varies. The level, that is the mean quality, is the calibration images'
    own, beside one imagined image of the prior's. None without a prompted calibration image.
    """
    count = sums.gram[0] if sums.gram else 0.0
    if count < 1:
        return None
    gram = np.array(sums.gram).reshape(len(FEATURES), -1) / count
    target = np.array(sums.target).reshape(len(FUSE_WEIGHTS), -1) / count
    means, products = gram[0, 1:], target[FUSE_WEIGHTS.index(weight)]
    covariance = gram[1:, 1:] - np.outer(means, means)
    spread = covariance.diagonal().clip(0) + SPREAD
    unexplained = products[1:] - products[0] * means - covariance @ PRIOR
    penalty = np.diag(PRIOR_STRENGTH / count * spread)
    slope = PRIOR + np.linalg.lstsq(covariance + penalty, unexplained)[0]
    level = (count * products[0] + means @ PRIOR) / (count + 1)
    return np.concatenate([[level - means @ slope], slope])


def features_of(predictions: Predictions) -> NDArray[np.float64]:
    """(N, len(FEATURES)) float64: what the estimate knows of each image's pseudo-label."""
    unet, sam = predictions.unet > 0.5, predictions.sam > 0.5
    areas = np.sort(np.stack([unet.sum((1, 2, 3)), sam.sum((1, 2, 3))]), axis=0)
    return np.stack(
        [
            np.ones(len(predictions)),
            dice_of(unet, sam),
            predictions.sam_iou.astype(np.float64),
            predictions.sam_stability.astype(np.float64),
            areas[0] / np.maximum(areas[1], 1),
            expected_dice(fuse(predictions, 0.5)),
        ],
        axis=1,
    )


def expected_dice(masks: Floats) -> NDArray[np.float64]:
    """(N,): the Dice that soft masks (N, C, S, S) expect of themselves, thresholded at one half.

    If each pixel is foreground with the mask's probability y, the thresholded mask M has an
    expected Dice of about 2 sum_M y / (sum y + |M|). Probabilities below NOISE do not count, for an
    image has many such pixels. One pixel smooths it, as in the loss, so that an empty class expects
    1. Mean over classes.
    """
    cut = masks > 0.5
    inside = (masks * cut).sum((2, 3), dtype=np.float64)
    size = (masks * (masks > NOISE)).sum((2, 3), dtype=np.float64) + cut.sum((2, 3))
    expected: NDArray[np.float64] = ((2 * inside + 1) / (size + 1)).mean(1)
    return expected
