"""Quality is estimated from what the calibration set shows, by sums that sites can pool."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.client.mining.fusion import Predictions, dice_of, fuse
from knowmine.client.mining.quality import (
    calibrate,
    estimate_quality,
    expected_dice,
    features_of,
    select,
    slopes,
)
from knowmine.shared.protocol import FEATURES, FUSE_WEIGHTS, Calibration
from tests.client.mining.drawn import EMPTY, FEW, PX, any_predictions, half, predictions

# --------------------------------------------------------------------------- features


@FEW
@given(any_predictions())
def test_features_are_fractions(drawn):
    """Each is in [0, 1] for any masks: the server refuses other sums."""
    features = features_of(drawn[0])
    assert features.shape == (len(drawn[0]), len(FEATURES))
    assert features.min() >= 0 and features.max() <= 1 + 1e-6


def test_features_by_hand():
    """Four rows and two: Dice 2 * 16 / 48, area ratio one half. The mean is .95 in two rows, which
    are above one half, and .45 in two: (2 * 15.2 + 1) / (15.2 + 7.2 + 16 + 1).
    """
    (features,) = features_of(predictions([half(0.9)], [half(1.0, top=2)]))
    assert features == pytest.approx([1, 2 / 3, 0.9, 0.8, 0.5, 31.4 / 39.4])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(half(1.0), 1.0), (half(0.6), 39.4 / 52.2), (half(0.4), 1 / 13.8), (half(0.05), 1.0)],
)
def test_a_mask_expects_a_dice_of_itself(mask, expected):
    """32 pixels of .6: (2 * 19.2 + 1) / (19.2 + 32 + 1). Of .4 none is inside; .05 is noise."""
    assert expected_dice(mask[None]) == pytest.approx([expected])


def test_an_absent_class_does_not_lower_the_expectation():
    """Of two classes one is certain and one is absent; both are likely right."""
    both = np.concatenate([half(1.0), EMPTY])[None]
    assert expected_dice(both) == pytest.approx([1.0])


# -------------------------------------------------------------------------- calibrate


def joined(a, b):
    return Predictions(
        *(
            np.concatenate([getattr(a, name), getattr(b, name)])
            for name in ("unet", "sam", "prompted", "sam_iou", "sam_stability")
        )
    )


@FEW
@given(any_predictions(), any_predictions())
def test_sums_of_two_sites_are_the_sums_of_their_union(one, other):
    """So a federation estimates quality as a single site with all images would."""
    pooled = calibrate(one[0], one[1]) + calibrate(other[0], other[1])
    union = calibrate(joined(one[0], other[0]), np.concatenate([one[1], other[1]]))
    assert (pooled.images, pooled.empty, pooled.empty_predicted, pooled.empty_right) == (
        union.images,
        union.empty,
        union.empty_predicted,
        union.empty_right,
    )
    assert pooled.fused + pooled.gram + pooled.target == pytest.approx(
        union.fused + union.gram + union.target
    )


def test_fused_sums_show_which_weight_is_best():
    """SAM alone is right; up to the even mean the mask is above one half."""
    sums = calibrate(predictions([EMPTY + 0.1], [half(1.0)]), half(1.0)[None] > 0)
    assert sums.fused == (1.0, 1.0, 1.0, 0.0, 0.0)


def test_empty_images_are_counted():
    """Three are predicted empty and two of them are; a third empty image gets a lesion."""
    seen = [EMPTY, EMPTY, EMPTY, half(), half()]
    truth = np.stack([EMPTY, EMPTY, half(), EMPTY, half()]) > 0
    prompted = [False, False, False, True, True]
    sums = calibrate(predictions(seen, seen, prompted), truth)
    assert (sums.images, sums.empty, sums.empty_predicted, sums.empty_right) == (5, 3, 3, 2)


def test_only_prompted_images_are_in_the_gram_matrix():
    """Its first entry counts them."""
    seen = [EMPTY, half()]
    sums = calibrate(predictions(seen, seen, [False, True]), np.stack(seen) > 0)
    assert (sums.images, sums.gram[0]) == (2, 1.0)


def test_no_calibration_images_give_no_sums():
    """A site may have none."""
    none = np.zeros((0, 1, PX, PX), np.float32)
    empty = Predictions(none, none, np.zeros(0, bool), *np.zeros((2, 0), np.float32))
    assert calibrate(empty, none > 0) == Calibration()


# ------------------------------------------------------------------------------ estimate

ALIKE = predictions([half(0.9)], [half(1.0)])


def test_without_a_calibration_set_the_prior_estimates():
    """The expected Dice of the fused mask: .95 in four rows, or the U-Net++'s .9."""
    for weight in (0.5, 1.0):
        expected = expected_dice(fuse(ALIKE, weight))
        assert estimate_quality(ALIKE, Calibration(), weight) == pytest.approx(expected)


@pytest.mark.parametrize("count", [0.0, 1e-300, -3.0])
def test_sums_of_no_image_change_nothing(count):
    """Whatever else they hold."""
    sums = Calibration(3, (1.0,) * 5, (count, *(0.5,) * 35), (0.5,) * 30)
    assert estimate_quality(ALIKE, sums, 0.5) == pytest.approx(
        estimate_quality(ALIKE, Calibration(), 0.5)
    )


def test_the_prior_rates_masks_that_differ_lower():
    """Masks that agree have a mean near 0 and 1."""
    both = predictions([half(0.9)] * 2, [half(1.0), half(1.0, top=1)])
    alike, apart = estimate_quality(both, Calibration(), 0.5)
    assert alike > apart + 0.3


def test_the_calibration_set_outweighs_the_prior():
    """On 200 images both models agree and are half right: 2 * 16 / (32 + 16) = 2/3."""
    many = predictions([half(0.9)] * 200, [half(1.0)] * 200)
    truth = np.stack([half(1, top=2)] * 200) > 0
    assert estimate_quality(ALIKE, calibrate(many, truth), 0.5) == pytest.approx([2 / 3], abs=0.01)


def test_each_weight_has_its_own_estimate():
    """SAM alone is right, the U-Net++ half right: the more of SAM, the better the mask."""
    many = predictions([half(0.9)] * 200, [half(1.0, top=2)] * 200)
    sums = calibrate(many, np.stack([half(1, top=2)] * 200) > 0)
    found = [estimate_quality(many, sums, weight)[0] for weight in (0.0, 1.0)]
    assert found == pytest.approx([1.0, 2 / 3], abs=0.01)


def test_a_feature_that_hardly_changes_gets_no_slope():
    """SAM's IoU follows the true Dice by millionths: its slope is not in the thousands."""
    unet = [half(0.6 + 0.04 * i, top=1 + i % 4) for i in range(8)]
    truth = np.stack([half()] * 8) > 0
    seen = predictions(unet, unet)
    iou = (0.9 + 1e-6 * dice_of(seen.unet > 0.5, truth)).astype(np.float32)
    found = slopes(calibrate(replace(seen, sam_iou=iou), truth), 0.5)
    assert found is not None
    assert abs(dict(zip(FEATURES, found, strict=True))["sam_iou"]) < 0.01


def test_the_feature_that_predicts_gets_the_slope():
    """Masks are as good as SAM's IoU, whatever their expected Dice."""
    rng = np.random.default_rng(0)
    truth, worth = np.stack([half()] * 200) > 0, rng.uniform(0.2, 1, 200)
    masks = [half(0.9, top=1 + int(3 * w)) for w in worth]
    iou = dice_of(np.stack(masks) > 0.5, truth).astype(np.float32)
    seen = Predictions(np.stack(masks), np.stack(masks), np.ones(200, bool), iou, iou * 0 + 0.5)
    assert estimate_quality(seen, calibrate(seen, truth), 0.5) == pytest.approx(iou, abs=0.03)


def test_few_calibration_images_move_the_estimate_a_little():
    """Two images do less than two hundred."""
    truth = half(1, top=2)[None] > 0
    once = calibrate(ALIKE, truth)
    prior, few = (
        estimate_quality(ALIKE, Calibration(), 0.5),
        estimate_quality(ALIKE, once + once, 0.5),
    )
    assert 2 / 3 < few[0] < prior[0]


def test_an_empty_mask_is_as_good_as_empty_masks_were():
    """(2 right + 2 * 4.2 / 10) / (2 + 2): two of two, and nearly half of all are empty."""
    empty = predictions([EMPTY], [EMPTY], [False])
    sums = Calibration(images=9, empty=4, empty_predicted=2, empty_right=2)
    assert estimate_quality(empty, sums, 0.5) == pytest.approx([0.71])


def test_an_empty_mask_is_rated_low_if_empty_masks_were_wrong():
    """Ten were empty, none rightly."""
    empty = predictions([EMPTY], [EMPTY], [False])
    sums = Calibration(images=20, empty=0, empty_predicted=10, empty_right=0)
    assert estimate_quality(empty, sums, 0.5)[0] < 0.05


@FEW
@given(any_predictions(), any_predictions(), st.sampled_from(FUSE_WEIGHTS))
def test_quality_is_a_dice(drawn, measured, weight):
    """In [0, 1] even if the regression leaves it."""
    quality = estimate_quality(drawn[0], calibrate(*measured), weight)
    assert quality.min() >= 0 and quality.max() <= 1


# ----------------------------------------------------------------------------- select

QUALITY = np.array([0.9, 0.45, 0.7, 0.95, 0.6])


def test_pseudo_labels_of_low_quality_are_dropped():
    """An estimate of one half is enough."""
    assert select(np.array([0.9, 0.49, 0.5])).kept.tolist() == [True, False, True]


def test_quality_is_weight():
    """0 at .4, one tenth at .45, 1 from .9 on."""
    weights = select(QUALITY).weights
    assert weights == pytest.approx([1.0, 0.1, 0.6, 1.0, 0.4])
