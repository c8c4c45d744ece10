"""Masks are fused as far as SAM helps on the calibration set."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.client.mining.fusion import dice_of, fuse, gate
from knowmine.shared.protocol import FUSE_WEIGHTS, Calibration
from tests.client.mining.drawn import EMPTY, FEW, any_predictions, half, predictions

# ------------------------------------------------------------------------------- fuse


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0.2), (0.25, 0.4), (1.0, 1.0)])
def test_the_weight_is_that_of_the_unet(weight, expected):
    """The U-Net++ predicts 1, SAM .2."""
    fused = fuse(predictions([half(1.0)], [half(0.2)]), weight)
    assert fused[0, 0, 0, 0] == pytest.approx(expected)


def test_without_a_prompt_the_unets_mask_stays():
    """SAM's mask is empty there because it got no prompt."""
    fused = fuse(predictions([half(0.4)] * 2, [EMPTY] * 2, prompted=[True, False]), 0.5)
    assert fused[:, 0, 0, 0] == pytest.approx([0.2, 0.4])


@FEW
@given(any_predictions(), st.sampled_from(FUSE_WEIGHTS))
def test_fused_masks_lie_between_the_two(drawn, weight):
    """A mean of two masks never leaves their range."""
    both, _ = drawn
    rows = both.prompted
    fused, masks = fuse(both, weight)[rows], np.stack([both.unet[rows], both.sam[rows]])
    assert (fused >= masks.min(0) - 1e-6).all() and (fused <= masks.max(0) + 1e-6).all()


# ------------------------------------------------------------------------------- Dice


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(0, 0, 1.0), (0, 4, 0.0), (4, 4, 1.0), (4, 2, 2 / 3)]
)
def test_two_empty_masks_agree(a, b, expected):
    """And an empty one agrees with no other."""
    dice = dice_of(half(1, top=a)[None] > 0, half(1, top=b)[None] > 0)
    assert dice == pytest.approx([expected])


def test_dice_is_the_mean_over_classes():
    """One class is found, the other is missed."""
    found = np.concatenate([half(1), half(1)])[None] > 0
    truth = np.concatenate([half(1), EMPTY])[None] > 0
    assert dice_of(found, truth) == pytest.approx([0.5])


# ------------------------------------------------------------------------------- gate


def test_sam_is_used_if_it_helps():
    """With the weight that was best."""
    found = gate(Calibration(images=8, fused=(5.0, 6.5, 6.8, 6.7, 6.0)), 8)
    assert (found.word, found.fuse_weight) == ("on", 0.5)


@pytest.mark.parametrize("fused", [(5.0, 5.5, 5.8, 6.0, 6.1), (6.0, 6.0, 6.0, 6.0, 6.0)])
def test_sam_is_left_out_if_it_does_not_help(fused):
    """Equal Dice is no help."""
    found = gate(Calibration(images=8, fused=fused), 8)
    assert (found.word, found.fuse_weight) == ("off", 1.0)


@pytest.mark.parametrize(("images", "word"), [(8, "off"), (80, "on")])
def test_a_small_gain_counts_on_many_images(images, word):
    """.008 Dice an image in an even mean; the prior needs 16 * .02 / 4 = .08 in sum."""
    alone, even = 0.8 * images, 0.808 * images
    assert gate(Calibration(images, (0.0, 0.0, even, 0.0, alone)), 8).word == word


def test_sam_never_outweighs_the_unet():
    """However good SAM alone was: the U-Net++ has learnt since."""
    found = gate(Calibration(80, (76.0, 74.0, 70.0, 66.0, 60.0)), 8)
    assert (found.word, found.fuse_weight) == ("on", 0.5)


@pytest.mark.parametrize(("gain", "word"), [(0.002, "off"), (0.003, "on")])
def test_a_quarter_of_sam_needs_a_sixteenth_of_the_proof(gain, word):
    """On eight images .02 in sum."""
    sums = Calibration(8, (0.0, 0.0, 0.0, 8 * (0.8 + gain), 8 * 0.8))
    assert gate(sums, 8).word == word


def test_of_equal_weights_the_wordtakes_less_of_sam():
    """The one nearer to the U-Net++ is chosen."""
    sums = Calibration(images=20, fused=(12.0, 12.0, 16.0, 16.0, 14.0))
    assert gate(sums, 8).fuse_weight == 0.75


@pytest.mark.parametrize("sums", [Calibration(), Calibration(7, (9.0, 0.0, 0.0, 0.0, 0.0))])
def test_too_few_calibration_images_decide_nothing(sums):
    """However good SAM was on them."""
    found = gate(sums, 8)
    assert (found.word, found.fuse_weight) == ("uncalibrated", 1.0)


@pytest.mark.parametrize(("gain", "weight"), [(2.0, 0.5), (-2.0, 1.0)])
def test_a_site_with_few_images_of_its_own_borrows_the_sums(gain, weight):
    """The word says so; the weight is the one of the federation's sums."""
    sums = Calibration(80, (0.0, 0.0, 60.0 + gain, 0.0, 60.0))
    found = gate(sums, 7)
    assert (found.word, found.fuse_weight) == ("pooled", weight)
