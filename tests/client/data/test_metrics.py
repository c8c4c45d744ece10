"""Dice, IoU and hd95 against hand-worked numbers and MONAI."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice

from knowmine.client.data.metrics import dice, hd95, iou, mean_over_classes

masks = arrays(bool, (9, 12))
EMPTY, FULL = np.zeros((3, 4), bool), np.ones((3, 4), bool)


def square(top: int, left: int, side: int, shape=(20, 30)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def random_blobs(seed: int) -> np.ndarray:
    """A mask with ragged parts, as thresholded smooth noise has."""
    noise = torch.randn(1, 1, 40, 56, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.avg_pool2d(noise, 7, 1, 3)[0, 0] > 0.05).numpy()


def test_dice_counts_the_overlap_twice():
    """Squares of 16 pixels that share 4: 2 * 4 / 32."""
    assert dice(square(0, 0, 4), square(2, 2, 4)) == 0.25


def test_iou_divides_by_the_union():
    """Squares of 16 pixels that share 4: 4 / 28."""
    assert iou(square(0, 0, 4), square(2, 2, 4)) == pytest.approx(1 / 7)


def test_hd95_of_a_shifted_square_is_the_shift():
    """Both left and right edge lie 3 pixels off, more than 5 % of the outline."""
    assert hd95(square(5, 5, 8), square(5, 8, 8)) == 3.0


def test_hd95_forgives_a_twentieth_of_the_outline():
    """One stray pixel, 1 of 29 outline pixels, is no part of the 95 %."""
    with_stray = square(5, 5, 8)
    with_stray[19, 29] = True
    assert hd95(with_stray, square(5, 5, 8)) == 0.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(EMPTY, EMPTY, (1, 1, 0)), (EMPTY, FULL, (0, 0, 5)), (FULL, EMPTY, (0, 0, 5))],
)
def test_empty_masks_follow_the_rule(a, b, expected):
    """Two empty masks agree; one of two leaves a distance of the diagonal, 5 for 3 by 4."""
    assert (dice(a, b), iou(a, b), hd95(a, b)) == expected


@given(masks, masks)
def test_measures_do_not_mind_which_mask_comes_first(a, b):
    """All three are symmetric."""
    assert [m(a, b) for m in (dice, iou, hd95)] == [m(b, a) for m in (dice, iou, hd95)]


@given(masks, masks)
def test_iou_follows_from_dice(a, b):
    """IoU = Dice / (2 - Dice)."""
    assert iou(a, b) == pytest.approx(dice(a, b) / (2 - dice(a, b)))


@given(masks)
def test_a_mask_agrees_with_itself(a):
    """Whatever it is, empty included."""
    assert (dice(a, a), iou(a, a), hd95(a, a)) == (1, 1, 0)


@pytest.mark.parametrize("seed", range(12))
def test_hd95_is_monais(seed):
    """On ragged masks that touch the border, as MONAI's percentile Hausdorff distance."""
    a, b = random_blobs(seed), random_blobs(seed + 100)
    theirs = compute_hausdorff_distance(
        torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None], True, percentile=95
    )
    assert hd95(a, b) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_dice_is_monais(seed):
    """On the same masks."""
    a, b = random_blobs(seed), random_blobs(seed + 100)
    theirs = compute_dice(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None])
    assert dice(a, b) == pytest.approx(float(theirs))


@given(st.integers(1, 4))
def test_classes_are_averaged_evenly(classes):
    """One class of `classes` is missed, the absent ones agree."""
    truth = np.zeros((4, 4), np.uint8)
    truth[0, 0] = 1
    missed = np.zeros_like(truth)
    assert mean_over_classes(dice, missed, truth, classes) == pytest.approx((classes - 1) / classes)
