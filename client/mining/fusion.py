"""Fuse what the U-Net++ and SAM see, judge it, and keep what can be trusted.

Everything that is learnt here is learnt on the probe set (labelled images that are never
trained on), as sums that sites can pool: see `shared.protocol.Calibration`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowmine.shared.protocol import FEATURES, FUSE_WEIGHTS, Calibration
from knowmine.shared.settings import MiningSettings

Floats = NDArray[np.float32]

PRIOR = np.array([0.0, 0.0, 0.0, 0.0, 1.0])
"""Slopes of the judge before it has seen a probe image: the Dice that a mask expects of itself, the
strongest single sign (docs/results.md)."""
PRIOR_STRENGTH = 16.0
"""Probe images that outweigh the prior's slopes; its level counts as one image."""
NOISE = 0.1
"""Probabilities below this say nothing of a mask's quality."""
SPREAD = 1e-3
"""Variance that each feature has at least, so that one that never changes learns no slope."""


PRIOR_IMAGES, PRIOR_HARM = 16, 0.02
"""The gate's prior: as if SAM alone had cost .02 Dice on 16 images, an even mix a quarter of that.
One image's gain scatters far more than a harm of that size, so a handful cannot rule it out. Even
mixes with a tuned SAM gained .012 to .02 on hundreds of images (docs/results.md)."""


@dataclass(frozen=True)
class Opinions:
    """Two models' masks of N images, model frame.

    unet, sam: (N, C, S, S) float32 in [0, 1]. prompted: (N,) bool, False where the U-Net++ saw
    nothing, so that SAM was not asked. sam_iou, sam_stability: (N,) in [0, 1].
    """

    unet: Floats
    sam: Floats
    prompted: NDArray[np.bool_]
    sam_iou: Floats
    sam_stability: Floats

    def __len__(self) -> int:
        return len(self.unet)


@dataclass(frozen=True)
class Verdict:
    """How this round uses SAM: the gate's word and the U-Net++'s share in the fused masks."""

    gate: str
    fuse_weight: float


@dataclass(frozen=True)
class Selection:
    """Which pseudo-labels are kept, (N,) bool, and what each counts, (N,) float32."""

    kept: NDArray[np.bool_]
    weights: Floats


def fuse(opinions: Opinions, weight: float) -> Floats:
    """Soft masks (N, C, S, S): `weight` of the U-Net++ and the rest of SAM.

    Where SAM was not asked, the U-Net++ stands alone.
    """
    share = np.where(opinions.prompted, weight, 1.0).astype(np.float32).reshape(-1, 1, 1, 1)
    fused: Floats = share * opinions.unet + (1 - share) * opinions.sam
    return fused


def sharpen(masks: Floats) -> Floats:
    """Push soft masks towards 0 and 1 without losing the doubt at one half.

    y^2 / (y^2 + (1 - y)^2), the two-class form of MixMatch's sharpening at temperature one half
    (Berthelot et al. 2019, equation 7).
    """
    yes, no = masks**2, (1 - masks) ** 2
    sharp: Floats = yes / (yes + no)
    return sharp


def features_of(opinions: Opinions) -> NDArray[np.float64]:
    """(N, len(FEATURES)) float64: what the judge knows of each image's pseudo-label."""
    unet, sam = opinions.unet > 0.5, opinions.sam > 0.5
    areas = np.sort(np.stack([unet.sum((1, 2, 3)), sam.sum((1, 2, 3))]), axis=0)
    return np.stack(
        [
            np.ones(len(opinions)),
            dice_of(unet, sam),
            opinions.sam_iou.astype(np.float64),
            opinions.sam_stability.astype(np.float64),
            areas[0] / np.maximum(areas[1], 1),
            expected_dice(fuse(opinions, 0.5)),
        ],
        axis=1,
    )


def expected_dice(masks: Floats) -> NDArray[np.float64]:
    """(N,): the Dice that soft masks (N, C, S, S) expect of themselves, cut at one half.

    If each pixel is foreground with the probability that the mask says, the cut mask M has an
    expected Dice of about 2 sum_M y / (sum y + |M|): 1 where all are 0 or 1. Probabilities below
    NOISE do not count, for an image has many such pixels; one pixel smooths it, as in the loss, so
    that a class of which nothing is seen expects 1. Mean over classes, as the Dice that it foretells.
    """
    cut = masks > 0.5
    inside = (masks * cut).sum((2, 3), dtype=np.float64)
    size = (masks * (masks > NOISE)).sum((2, 3), dtype=np.float64) + cut.sum((2, 3))
    expected: NDArray[np.float64] = ((2 * inside + 1) / (size + 1)).mean(1)
    return expected


def calibrate(opinions: Opinions, truth: NDArray[np.bool_]) -> Calibration:
    """Sums over probe images with known `truth` (N, C, S, S) bool.

    Each count belongs to one image; the judge's sums hold prompted images alone, since the
    others have nothing to agree with and are judged by how often "nothing" is right.
    """
    if not len(opinions):
        return Calibration()
    by_weight = [dice_of(fuse(opinions, w) > 0.5, truth) for w in FUSE_WEIGHTS]
    asked = opinions.prompted
    x = features_of(opinions)[asked]
    truly_empty = ~truth.any((1, 2, 3))
    return Calibration(
        images=len(opinions),
        fused=tuple(float(d.sum()) for d in by_weight),
        gram=tuple(float(v) for v in (x.T @ x).ravel()),
        target=tuple(float(v) for dice in by_weight for v in x.T @ dice[asked]),
        empty=int(truly_empty.sum()),
        empty_predicted=int((~asked).sum()),
        empty_right=int((truly_empty & ~asked).sum()),
    )


def gate(sums: Calibration, min_images: int) -> Verdict:
    """Whether SAM may speak this round, by the probe images behind `sums`.

    With fewer than `min_images` SAM stays out of the masks: "unjudged" is not a guess. Few
    images say little, and the best of several weights looks better than it is; so SAM has to
    outweigh PRIOR_IMAGES imagined ones on which it does harm, by the square of its share: an even
    mix of two readers is seldom worse than one of them, SAM alone may well be. SAM never outweighs
    the U-Net++, which has learnt more since the sums were made than SAM has.
    """
    if sums.images < min_images:
        return Verdict("unjudged", 1.0)
    shrunk = {
        weight: dice - PRIOR_IMAGES * PRIOR_HARM * (1 - weight) ** 2
        for dice, weight in zip(sums.fused, FUSE_WEIGHTS, strict=True)
        if weight >= 0.5
    }
    best = max(shrunk, key=shrunk.__getitem__)
    return Verdict("on", best) if shrunk[best] > shrunk[1.0] else Verdict("off", 1.0)


def judge(opinions: Opinions, sums: Calibration, weight: float) -> NDArray[np.float64]:
    """Expected Dice (N,) in [0, 1] of each pseudo-label that is fused with `weight`.

    Linear in the features, as the probe images' sums say it; an image in which the U-Net++ saw
    nothing is as good as "nothing" has been right there.
    """
    learnt = slopes(sums, weight)
    if learnt is None:
        quality = expected_dice(fuse(opinions, weight))
    else:
        quality = features_of(opinions) @ learnt
    # Beta-binomial mean: two pseudo-counts at the share of images without a lesion.
    share = (sums.empty + 0.2) / (sums.images + 1)
    nothing = (sums.empty_right + 2 * share) / (sums.empty_predicted + 2)
    judged: NDArray[np.float64] = np.where(opinions.prompted, quality, nothing).clip(0, 1)
    return judged


def slopes(sums: Calibration, weight: float) -> NDArray[np.float64] | None:
    """The judge's linear model (len(FEATURES),), a ridge regression towards PRIOR.

    Features are centred and scaled by what the probe images say, from their sums alone: what a
    slope costs must not hang on how little a feature varies. The level, that is the mean quality,
    is the probe images' own, beside one imagined image of the prior's. None without a prompted
    probe image.
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


def select(quality: NDArray[np.float64], share: float, floor: float) -> Selection:
    """Keep the best `share` of the pseudo-labels that are judged above `floor`.

    What is kept counts by its quality: nothing at .4, fully from .9 on.
    """
    wanted = round(share * len(quality))
    best = np.argsort(-quality, kind="stable")[:wanted]
    kept = np.zeros(len(quality), bool)
    kept[best] = True
    kept &= quality >= floor
    return Selection(kept, ((quality - 0.4) / 0.5).clip(0, 1).astype(np.float32))


def share_to_keep(settings: MiningSettings, round_: int, rounds: int) -> float:
    """The share to keep in round `round_` of `rounds`: it grows evenly over those that mine.

    >>> grows = MiningSettings(warmup_rounds=1, keep_first=0.5, keep_last=0.8)
    >>> [share_to_keep(grows, round_, 4) for round_ in (2, 3, 4)]
    [0.5, 0.65, 0.8]
    """
    first, last = settings.warm_up(rounds) + 1, rounds - settings.consolidate_rounds
    if last <= first:
        return settings.keep_first
    place = (round_ - first) / (last - first)
    return round(settings.keep_first + place * (settings.keep_last - settings.keep_first), 6)


def dice_of(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Dice (N,) of masks (N, C, S, S), mean over classes; 1 where both are empty."""
    both = (a & b).sum((2, 3), dtype=np.float64)
    size = a.sum((2, 3), dtype=np.float64) + b.sum((2, 3))
    per_class = np.where(size > 0, 2 * both / np.maximum(size, 1), 1.0)
    dice: NDArray[np.float64] = per_class.mean(1)
    return dice
