"""Measure how well two masks agree: Dice, IoU and a boundary distance.

Two empty masks agree perfectly: Dice and IoU are 1, the distance is 0. An empty and a non-empty
mask do not agree at all: Dice and IoU are 0, the distance is the image's diagonal.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

Mask: TypeAlias = NDArray[np.bool_]
Measure: TypeAlias = Callable[[Mask, Mask], float]


def dice(a: Mask, b: Mask) -> float:
    """Twice the overlap divided by the sum of sizes (Dice 1945; Sørensen 1948); in [0, 1].

    >>> dice(np.array([True, True, False]), np.array([True, False, False]))
    0.6666666666666666
    """
    size = np.count_nonzero(a) + np.count_nonzero(b)
    return float(2 * np.count_nonzero(a & b) / size) if size else 1.0


def iou(a: Mask, b: Mask) -> float:
    """Overlap divided by union (Jaccard 1901); in [0, 1].

    >>> iou(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def hd95(a: Mask, b: Mask) -> float:
    """95th percentile of the Hausdorff distance between two masks, in pixels.

    a, b: (H, W). The distances of each outline to the other are taken; the result is the larger of
    the two 95th percentiles (Huttenlocher et al. 1993, with the percentile of Taha and Hanbury 2015,
    section 3.3.1; MONAI does the same). The outline is what a 4-neighbour erosion removes, so
    foreground at the image's border belongs to it.
    """
    if not a.any() and not b.any():
        return 0.0
    if not a.any() or not b.any():
        return float(np.hypot(*a.shape))

    # Only the box around both masks matters.
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
    """The mean over classes of a measure of two label maps (0 is background).

    A class that is in neither map counts as perfect agreement.
    """
    return sum(measure(a == value, b == value) for value in range(1, classes + 1)) / classes


def _outline(mask: Mask) -> Mask:
    outline: Mask = mask & ~binary_erosion(mask)
    return outline
