"""Two opinions are fused, judged by sums that sites can pool, and selected."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.client.mining.fusion import (
    Opinions,
    calibrate,
    dice_of,
    expected_dice,
    features_of,
    fuse,
    gate,
    judge,
    select,
    share_to_keep,
    sharpen,
    slopes,
)
from knowmine.shared.protocol import FEATURES, FUSE_WEIGHTS, Calibration
from knowmine.shared.settings import MiningSettings

PX = 8
FEW = settings(max_examples=25)


def half(value=0.9, top=PX // 2):
    """(1, PX, PX): `value` in the upper rows, 0 below."""
    mask = np.zeros((1, PX, PX), np.float32)
    mask[:, :top] = value
    return mask


NOTHING = half(0.0)


def opinions(unet, sam, prompted=None, iou=0.9, stability=0.8):
    """Of lists of masks (C, PX, PX)."""
    n = len(unet)
    return Opinions(
        np.stack(unet),
        np.stack(sam),
        np.ones(n, bool) if prompted is None else np.array(prompted),
        np.full(n, iou, np.float32),
        np.full(n, stability, np.float32),
    )


def floats(*values):
    return np.array(values, np.float32)


@st.composite
def any_opinions(draw):
    """Up to six images of two classes, of any probabilities, with their truth."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n = draw(st.integers(1, 6))
    # To high powers most are near 0 or all are near 1: empty and full masks are among them.
    power = draw(st.sampled_from([0.05, 1, 20]))
    unet, sam = (rng.random((2, n, 2, PX, PX)) ** power).astype(np.float32)
    scores = rng.random((2, n)).astype(np.float32)
    truth = rng.random((n, 2, PX, PX)) ** power > 0.5
    return Opinions(unet, sam, rng.random(n) < 0.7, *scores), truth


# ------------------------------------------------------------------------------- fuse


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0.2), (0.25, 0.4), (1.0, 1.0)])
def test_the_weight_is_the_unets_share(weight, expected):
    """One says 1, SAM says .2."""
    fused = fuse(opinions([half(1.0)], [half(0.2)]), weight)
    assert fused[0, 0, 0, 0] == pytest.approx(expected)


def test_where_sam_was_not_asked_the_unet_stands_alone():
    """SAM's empty mask is silence, not an opinion."""
    fused = fuse(opinions([half(0.4)] * 2, [NOTHING] * 2, prompted=[True, False]), 0.5)
    assert fused[:, 0, 0, 0] == pytest.approx([0.2, 0.4])


@FEW
@given(any_opinions(), st.sampled_from(FUSE_WEIGHTS))
def test_fused_masks_lie_between_the_two(drawn, weight):
    """A mean never leaves what it is the mean of."""
    both, _ = drawn
    fused = fuse(both, weight)
    asked = both.prompted
    low, high = np.minimum(both.unet, both.sam), np.maximum(both.unet, both.sam)
    assert (fused[asked] >= low[asked] - 1e-6).all() and (fused[asked] <= high[asked] + 1e-6).all()


# ---------------------------------------------------------------------------- sharpen


def test_sharpening_by_hand():
    """.8^2 / (.8^2 + .2^2) = .64 / .68."""
    assert sharpen(floats(0.8))[0] == pytest.approx(0.64 / 0.68)


@pytest.mark.parametrize("fixed", [0.0, 0.5, 1.0])
def test_sharpening_leaves_certainty_and_doubt(fixed):
    """0, one half and 1 stay what they are."""
    assert sharpen(floats(fixed))[0] == fixed


@FEW
@given(st.floats(0, 1, width=32))
def test_sharpening_treats_yes_and_no_alike(y):
    """The sharpened complement is the complement of the sharpened."""
    one, other = sharpen(floats(y)), sharpen(1 - floats(y))
    assert one[0] + other[0] == pytest.approx(1, abs=1e-6)


@FEW
@given(st.floats(0, 1, width=32))
def test_sharpening_moves_away_from_one_half(y):
    """Never towards it, and never across."""
    sharp = float(sharpen(floats(y))[0])
    assert abs(sharp - 0.5) >= abs(y - 0.5) - 1e-6 and (sharp - 0.5) * (y - 0.5) >= 0


# --------------------------------------------------------------------------- features


@FEW
@given(any_opinions())
def test_features_are_shares(drawn):
    """Each in [0, 1], whatever the masks: the server refuses sums that say otherwise."""
    features = features_of(drawn[0])
    assert features.shape == (len(drawn[0]), len(FEATURES))
    assert features.min() >= 0 and features.max() <= 1 + 1e-6


def test_features_by_hand():
    """Four rows and two: Dice 2 * 16 / 48, area ratio one half. The mix is .95 in two rows, which are
    cut in, and .45 in two: (2 * 15.2 + 1) / (15.2 + 7.2 + 16 + 1).
    """
    (features,) = features_of(opinions([half(0.9)], [half(1.0, top=2)]))
    assert features == pytest.approx([1, 2 / 3, 0.9, 0.8, 0.5, 31.4 / 39.4])


@pytest.mark.parametrize(
    ("mask", "expected"),
    [(half(1.0), 1.0), (half(0.6), 39.4 / 52.2), (half(0.4), 1 / 13.8), (half(0.05), 1.0)],
)
def test_a_mask_expects_a_dice_of_itself(mask, expected):
    """32 pixels of .6: (2 * 19.2 + 1) / (19.2 + 32 + 1). Of .4 none is cut in; .05 is noise."""
    assert expected_dice(mask[None]) == pytest.approx([expected])


def test_a_class_that_is_not_seen_lowers_no_expectation():
    """Of two classes one is sure and one is absent; both are likely right."""
    both = np.concatenate([half(1.0), NOTHING])[None]
    assert expected_dice(both) == pytest.approx([1.0])


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
    truth = np.concatenate([half(1), NOTHING])[None] > 0
    assert dice_of(found, truth) == pytest.approx([0.5])


# -------------------------------------------------------------------------- calibrate


def joined(a, b):
    return Opinions(
        *(
            np.concatenate([getattr(a, name), getattr(b, name)])
            for name in ("unet", "sam", "prompted", "sam_iou", "sam_stability")
        )
    )


@FEW
@given(any_opinions(), any_opinions())
def test_sums_of_two_sites_are_the_sums_of_their_union(one, other):
    """So a federation's judge is the one that a single site with all images would have."""
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
    """SAM alone is right; at an even share its 1 still carries, at three quarters no more."""
    sums = calibrate(opinions([NOTHING + 0.1], [half(1.0)]), half(1.0)[None] > 0)
    assert sums.fused == (1.0, 1.0, 1.0, 0.0, 0.0)


def test_empty_images_are_counted():
    """Three seen as empty, of which two are; a third empty one is taken for a lesion."""
    seen = [NOTHING, NOTHING, NOTHING, half(), half()]
    truth = np.stack([NOTHING, NOTHING, half(), NOTHING, half()]) > 0
    prompted = [False, False, False, True, True]
    sums = calibrate(opinions(seen, seen, prompted), truth)
    assert (sums.images, sums.empty, sums.empty_predicted, sums.empty_right) == (5, 3, 3, 2)


def test_the_judge_learns_from_prompted_images_alone():
    """The first entry of X^T X counts them."""
    seen = [NOTHING, half()]
    sums = calibrate(opinions(seen, seen, [False, True]), np.stack(seen) > 0)
    assert (sums.images, sums.gram[0]) == (2, 1.0)


def test_no_probe_images_no_sums():
    """A site without a probe set has nothing to say."""
    none = np.zeros((0, 1, PX, PX), np.float32)
    empty = Opinions(none, none, np.zeros(0, bool), *np.zeros((2, 0), np.float32))
    assert calibrate(empty, none > 0) == Calibration()


# ------------------------------------------------------------------------------- gate


def test_sam_speaks_where_it_helps():
    """With the share that was best."""
    verdict = gate(Calibration(images=8, fused=(5.0, 6.5, 6.8, 6.7, 6.0)), 8)
    assert (verdict.gate, verdict.fuse_weight) == ("on", 0.5)


@pytest.mark.parametrize("fused", [(5.0, 5.5, 5.8, 6.0, 6.1), (6.0, 6.0, 6.0, 6.0, 6.0)])
def test_sam_is_silent_where_it_does_not_help(fused):
    """A draw is no help."""
    verdict = gate(Calibration(images=8, fused=fused), 8)
    assert (verdict.gate, verdict.fuse_weight) == ("off", 1.0)


@pytest.mark.parametrize(("images", "gate_"), [(8, "off"), (80, "on")])
def test_a_small_gain_is_believed_of_many_images(images, gate_):
    """.008 Dice an image at an even share; the prior asks for 16 * .02 / 4 = .08 in sum."""
    alone, even = 0.8 * images, 0.808 * images
    assert gate(Calibration(images, (0.0, 0.0, even, 0.0, alone)), 8).gate == gate_


def test_sam_never_outweighs_the_unet():
    """However well it did alone: the U-Net++ has learnt since."""
    verdict = gate(Calibration(80, (76.0, 74.0, 70.0, 66.0, 60.0)), 8)
    assert (verdict.gate, verdict.fuse_weight) == ("on", 0.5)


@pytest.mark.parametrize(("gain", "gate_"), [(0.002, "off"), (0.003, "on")])
def test_a_quarter_of_sam_needs_a_sixteenth_of_the_proof(gain, gate_):
    """On eight images .02 in sum."""
    sums = Calibration(8, (0.0, 0.0, 0.0, 8 * (0.8 + gain), 8 * 0.8))
    assert gate(sums, 8).gate == gate_


def test_the_gates_prior_favours_the_smaller_share_of_sam():
    """Two weights do equally well; the one nearer to the U-Net++ is chosen."""
    sums = Calibration(images=20, fused=(12.0, 12.0, 16.0, 16.0, 14.0))
    assert gate(sums, 8).fuse_weight == 0.75


@pytest.mark.parametrize("sums", [Calibration(), Calibration(7, (9.0, 0.0, 0.0, 0.0, 0.0))])
def test_too_few_probe_images_decide_nothing(sums):
    """However well SAM did on them."""
    verdict = gate(sums, 8)
    assert (verdict.gate, verdict.fuse_weight) == ("unjudged", 1.0)


# ------------------------------------------------------------------------------ judge

ALIKE = opinions([half(0.9)], [half(1.0)])


def test_without_a_probe_the_prior_judges():
    """By the Dice that the fused mask expects of itself: .95 in four rows, or the U-Net++'s .9."""
    for weight in (0.5, 1.0):
        expected = expected_dice(fuse(ALIKE, weight))
        assert judge(ALIKE, Calibration(), weight) == pytest.approx(expected)


@pytest.mark.parametrize("count", [0.0, 1e-300, -3.0])
def test_sums_of_no_image_teach_nothing(count):
    """Whatever else they say."""
    sums = Calibration(3, (1.0,) * 5, (count, *(0.5,) * 35), (0.5,) * 30)
    assert judge(ALIKE, sums, 0.5) == pytest.approx(judge(ALIKE, Calibration(), 0.5))


def test_the_prior_doubts_what_differs():
    """Masks that agree make a mix that is sure of itself."""
    both = opinions([half(0.9)] * 2, [half(1.0), half(1.0, top=1)])
    alike, apart = judge(both, Calibration(), 0.5)
    assert alike > apart + 0.3


def test_the_probe_set_outweighs_the_prior():
    """Two hundred times both models agreed and were half right: 2 * 16 / (32 + 16) = 2/3."""
    many = opinions([half(0.9)] * 200, [half(1.0)] * 200)
    truth = np.stack([half(1, top=2)] * 200) > 0
    assert judge(ALIKE, calibrate(many, truth), 0.5) == pytest.approx([2 / 3], abs=0.01)


def test_the_judge_knows_the_mask_of_each_weight():
    """SAM alone is right, the U-Net++ half right: the more SAM speaks, the better the label."""
    many = opinions([half(0.9)] * 200, [half(1.0, top=2)] * 200)
    sums = calibrate(many, np.stack([half(1, top=2)] * 200) > 0)
    judged = [judge(many, sums, weight)[0] for weight in (0.0, 1.0)]
    assert judged == pytest.approx([1.0, 2 / 3], abs=0.01)


def test_what_hardly_changes_learns_no_slope():
    """SAM's word goes with the true Dice, but by millionths: no slope of thousands is made of that."""
    unet = [half(0.6 + 0.04 * i, top=1 + i % 4) for i in range(8)]
    truth = np.stack([half()] * 8) > 0
    seen = opinions(unet, unet)
    told = (0.9 + 1e-6 * dice_of(seen.unet > 0.5, truth)).astype(np.float32)
    learnt = slopes(calibrate(replace(seen, sam_iou=told), truth), 0.5)
    assert learnt is not None
    assert abs(dict(zip(FEATURES, learnt, strict=True))["sam_iou"]) < 0.01


def test_the_judge_learns_which_sign_tells():
    """Masks are as good as SAM says, whatever they expect of themselves: its word gets the slope."""
    rng = np.random.default_rng(0)
    truth, worth = np.stack([half()] * 200) > 0, rng.uniform(0.2, 1, 200)
    masks = [half(0.9, top=1 + int(3 * w)) for w in worth]
    told = dice_of(np.stack(masks) > 0.5, truth).astype(np.float32)
    seen = Opinions(np.stack(masks), np.stack(masks), np.ones(200, bool), told, told * 0 + 0.5)
    assert judge(seen, calibrate(seen, truth), 0.5) == pytest.approx(told, abs=0.03)


def test_few_probe_images_move_the_judge_a_little():
    """Two images do less than two hundred."""
    truth = half(1, top=2)[None] > 0
    once = calibrate(ALIKE, truth)
    prior, few = judge(ALIKE, Calibration(), 0.5), judge(ALIKE, once + once, 0.5)
    assert 2 / 3 < few[0] < prior[0]


def test_nothing_is_as_good_as_it_has_been():
    """(2 right + 2 * 4.2 / 10) / (2 + 2): two of two, and nearly half of all are empty."""
    empty = opinions([NOTHING], [NOTHING], [False])
    sums = Calibration(images=9, empty=4, empty_predicted=2, empty_right=2)
    assert judge(empty, sums, 0.5) == pytest.approx([0.71])


def test_nothing_is_doubted_where_it_was_wrong():
    """Ten times nothing was seen, never rightly."""
    empty = opinions([NOTHING], [NOTHING], [False])
    sums = Calibration(images=20, empty=0, empty_predicted=10, empty_right=0)
    assert judge(empty, sums, 0.5)[0] < 0.05


@FEW
@given(any_opinions(), any_opinions(), st.sampled_from(FUSE_WEIGHTS))
def test_quality_is_a_dice(drawn, probed, weight):
    """In [0, 1] even where the regression goes further."""
    quality = judge(drawn[0], calibrate(*probed), weight)
    assert quality.min() >= 0 and quality.max() <= 1


# ----------------------------------------------------------------------------- select

QUALITY = np.array([0.9, 0.45, 0.7, 0.95, 0.6])


def test_the_best_share_is_kept():
    """Three of five."""
    assert select(QUALITY, 0.6, 0.0).kept.tolist() == [True, False, True, True, False]


def test_the_floor_drops_whatever_the_rank():
    """All were asked for."""
    assert select(QUALITY, 1.0, 0.65).kept.tolist() == [True, False, True, True, False]


def test_quality_is_weight():
    """Nothing at .4, one tenth at .45, fully from .9 on."""
    weights = select(QUALITY, 1.0, 0.0).weights
    assert weights == pytest.approx([1.0, 0.1, 0.6, 1.0, 0.4])


def test_of_equals_the_first_are_kept():
    """So that a rerun keeps the same."""
    assert select(np.full(4, 0.8), 0.5, 0.5).kept.tolist() == [True, True, False, False]


@pytest.mark.parametrize(("round_", "share"), [(3, 0.5), (4, 0.6), (5, 0.7), (6, 0.8)])
def test_the_share_grows_from_first_to_last(round_, share):
    """Two rounds of six warm up."""
    mining = MiningSettings(warmup_rounds=2, keep_first=0.5, keep_last=0.8)
    assert share_to_keep(mining, round_, 6) == pytest.approx(share)


def test_the_share_has_grown_when_rounds_on_labels_alone_begin():
    """One of six consolidates, so the fifth is the last that mines."""
    mining = MiningSettings(warmup_rounds=2, keep_first=0.5, keep_last=0.8, consolidate_rounds=1)
    assert share_to_keep(mining, 5, 6) == 0.8


def test_a_single_mining_round_keeps_the_first_share():
    """There is no last one to grow to."""
    mining = MiningSettings(warmup_rounds=1, keep_first=0.5, keep_last=0.8)
    assert share_to_keep(mining, 2, 2) == 0.5
