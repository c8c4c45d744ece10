"""How well two masks agree: Dice, IoU and a boundary distance, on masks of any origin.

The rule for empty masks: two empty masks agree perfectly (Dice and IoU 1, distance 0); an empty
and a non-empty one not at all (Dice and IoU 0, distance the image's diagonal).
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask: TypeAlias = NDArray[np.bool_]
Measure: TypeAlias = Callable[[Mask, Mask], float]


def dice(a: Mask, b: Mask) -> float:
    """Twice the overlap over the sum of sizes (Dice 1945; Sørensen 1948). Symmetric, in [0, 1].

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / size) if size else 1.0


def iou(a: Mask, b: Mask) -> float:
    """Overlap over union (Jaccard 1901). Symmetric, in [0, 1].

    >>> iou(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def soft_dice(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Dice of two arrays in [0, 1], products for overlap (Milletari et al. 2016, plain sums).

    Equals `dice` where both are 0 or 1. Two equal soft arrays may score below 1.
    """
    size = float(a.sum(dtype=np.float64) + b.sum(dtype=np.float64))
    overlap = float(np.multiply(a, b, dtype=np.float64).sum())
    return 2 * overlap / size if size else 1.0


def hd95(a: Mask, b: Mask) -> float:
    """Distance in pixels within which 95 % of either mask's outline lies from the other's.

    a, b: (H, W). The 95th percentile of each outline's distances to the other, and of the two
    the larger (Huttenlocher et al. 1993, with the percentile of Taha and Hanbury 2015, section
    3.3.1; as MONAI counts it). An outline is what a 4-neighbour erosion takes off, so pixels at
    the image's border belong to it.
    """
    if not a.any() and not b.any():
        return 0.0
    if not a.any() or not b.any():
        return float(np.hypot(*a.shape))

    # Outside the box around both masks there is nothing to measure.
    both = a | b
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    outline_a, outline_b = _outline(a[box]), _outline(b[box])

    to_b = distance_transform_edt(~outline_b)[outline_a]
    to_a = distance_transform_edt(~outline_a)[outline_b]
    return float(max(np.percentile(to_b, 95), np.percentile(to_a, 95)))


def mean_over_classes(
    measure: Measure, a: NDArray[np.uint8], b: NDArray[np.uint8], classes: int
) -> float:
    """The measure of each class of two label maps (0 is background), averaged over classes.

    A class that neither map has counts as agreed on.
    """
    return sum(measure(a == value, b == value) for value in range(1, classes + 1)) / classes


def _outline(mask: Mask) -> Mask:
    outline: Mask = mask & ~binary_erosion(mask)
    return outline
