"""The U-Net++'s probabilities become prompts that lie where the lesion lies."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from knowmine.client.mining.prompts import (
    CLEAR,
    LOGIT,
    MAX_COMPONENTS,
    MIN_AREA,
    box_of,
    components,
    points_of,
    prompts_for,
)
from knowmine.client.sam.frames import Frames

ALL: Any = np.s_[:]
"""Every prompt has a valid mask."""
PX = 64
SIZES = st.tuples(st.integers(60, 500), st.integers(60, 500)).filter(
    lambda size: max(size) <= 4 * min(size)
)
FEW = settings(max_examples=25)


def boxes_of(prompts):
    """The boxes, which every prompt has."""
    assert prompts.boxes is not None
    return prompts.boxes


def plane(*boxes, px=PX, inside=0.95, outside=0.02):
    """Probabilities (px, px) with a rectangle for each (x0, y0, x1, y1), ends excluded."""
    drawn = np.full((px, px), outside, np.float32)
    for x0, y0, x1, y1 in boxes:
        drawn[y0:y1, x0:x1] = inside
    return drawn


def seen(mask):
    """The probabilities (1, PX, PX) of a good U-Net++ for a mask (H, W), original frame."""
    warped = Image.fromarray(mask.astype(np.float32)).resize((PX, PX), Image.Resampling.BILINEAR)
    return np.asarray(warped)[None].clip(0.01, 0.99)


def to_original(xy, frames):
    """Points (..., 2) of the SAM frame in pixels of the original, computed independently."""
    return (np.asarray(xy) + 0.5) * max(frames.height, frames.width) / 1024 - 0.5


@st.composite
def lesions(draw):
    """An image's size, and a lesion of a quarter to half of each side, anywhere in it."""
    size = draw(SIZES)
    mask = np.zeros(size, bool)
    ends = []
    for side in size:
        length = draw(st.integers(side // 4, side // 2))
        start = draw(st.integers(0, side - length))
        ends.append((start, start + length))
    mask[slice(*ends[0]), slice(*ends[1])] = True
    (y0, y1), (x0, x1) = ends
    return Frames(size[0], size[1], PX), mask, (x0, y0, x1 - 1, y1 - 1)


@st.composite
def blobs(draw):
    """Random cloudy probabilities of two classes, near 0 and 1 in places, with their frames."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    clouds = ndimage.gaussian_filter(rng.normal(size=(2, PX, PX)), (0, 3, 3))
    level = draw(st.floats(-1.0, 2.0))
    probabilities = 1 / (1 + np.exp(-8 * (clouds / clouds.std() - level)))
    height, width = draw(SIZES)
    return probabilities.astype(np.float32), Frames(height, width, PX)


# --------------------------------------------------------------------- where prompts lie


@FEW
@given(lesions())
def test_the_box_contains_the_lesion(drawn):
    """Drawn in an original of any shape, found in the SAM frame."""
    frames, mask, (x0, y0, x1, y1) = drawn
    prompts = prompts_for(seen(mask), frames).prompts
    assert prompts is not None
    left, top, right, bottom = to_original(boxes_of(prompts).view(2, 2), frames).ravel()
    assert left <= x0 and top <= y0 and right >= x1 and bottom >= y1


@FEW
@given(lesions())
def test_the_box_is_not_much_larger_than_the_lesion(drawn):
    """A margin of a twentieth on each side, and a pixel of the model's for rounding."""
    frames, mask, (x0, y0, x1, y1) = drawn
    prompts = prompts_for(seen(mask), frames).prompts
    assert prompts is not None
    box = to_original(boxes_of(prompts).view(2, 2), frames)
    width, height = box[1] - box[0]
    assert width <= 1.1 * (x1 - x0 + 1) + 2 * frames.width / PX
    assert height <= 1.1 * (y1 - y0 + 1) + 2 * frames.height / PX


@FEW
@given(lesions())
def test_the_positive_point_is_inside_the_lesion(drawn):
    """In pixels of the original."""
    frames, mask, _ = drawn
    prompts = prompts_for(seen(mask), frames).prompts
    assert prompts is not None and prompts.point_labels[0, 0] == 1
    x, y = to_original(prompts.points[0, 0], frames).round().astype(int)
    assert mask[y, x]


@FEW
@given(lesions())
def test_negative_points_are_outside_the_lesion(drawn):
    """In the image all the same, never in the padding."""
    frames, mask, _ = drawn
    prompts = prompts_for(seen(mask), frames).prompts
    assert prompts is not None
    negatives = prompts.points[prompts.point_labels == 0]
    for x, y in to_original(negatives, frames).round().astype(int):
        assert not mask[y, x]


def test_x_comes_first():
    """A lesion at the top right of a wide image: x is large, y small."""
    mask = np.zeros((100, 400), bool)
    mask[10:40, 300:380] = True
    prompts = prompts_for(seen(mask), Frames(100, 400, PX)).prompts
    assert prompts is not None
    # 1024 / 400 = 2.56 SAM pixels to a pixel: 768 to 972.8 by 25.6 to 102.4.
    x0, y0, x1, y1 = boxes_of(prompts)[0].tolist()
    assert (x0, y0, x1, y1) == pytest.approx((768, 25.6, 972.8, 102.4), abs=20)


def test_the_mask_prompt_lies_where_the_box_lies():
    """Its positive part fills the box at a quarter of the scale."""
    prompts = prompts_for(plane((20, 10, 50, 20))[None], Frames(200, 400, PX)).prompts
    assert prompts is not None and prompts.masks is not None
    ys, xs = np.nonzero(prompts.masks[0, 0].numpy() > 0)
    tight = np.array([20, 10, 50, 20]) / PX * [256, 128, 256, 128]
    assert np.abs([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] - tight).max() <= 1


def test_padding_is_clearly_outside():
    """The lower half of a wide image's SAM frame is padding."""
    prompts = prompts_for(plane((0, 40, 64, 64))[None], Frames(200, 400, PX)).prompts
    assert prompts is not None and prompts.masks is not None
    assert (prompts.masks[..., 128:, :] == -LOGIT).all()


def test_a_box_at_the_border_stays_inside():
    """The margin is cut off where the image ends."""
    box = box_of(plane((0, 0, 20, 64)) > 0.5)
    assert box.tolist() == [-0.5, -0.5, 20.5, 63.5]


def test_the_margin_is_a_twentieth_of_each_side():
    """From 9.5 to 29.5 by 19.5 to 59.5, widened by 1 and by 2."""
    assert box_of(plane((10, 20, 30, 60)) > 0.5).tolist() == [8.5, 17.5, 30.5, 61.5]


def test_a_lesion_that_fills_the_image_has_no_negative_points():
    """There is no background for them; -1 marks a missing point."""
    _, labels = points_of(np.ones((PX, PX), bool), plane((0, 0, 64, 64)))
    assert labels.tolist() == [1, -1, -1]


def test_the_positive_point_of_a_ring_is_on_the_ring():
    """Not in its hole."""
    ring = plane((10, 10, 50, 50))
    ring[20:40, 20:40] = 0.02
    (component,) = components(ring)
    xy, _ = points_of(component, ring)
    x, y = xy[0].astype(int)
    assert component[y, x]


def test_the_positive_point_prefers_high_probability():
    """The left end is large and uncertain, the right end small and certain."""
    uncertain = plane((10, 20, 40, 50), inside=0.6)
    uncertain[30:40, 30:40] = 0.95
    (component,) = components(uncertain)
    xy, _ = points_of(component, uncertain)
    x, y = xy[0].astype(int)
    assert uncertain[y, x] > 0.8


def test_negative_points_are_apart():
    """Two on one spot would add nothing."""
    drawn = plane((24, 24, 40, 40))
    xy, labels = points_of(drawn > 0.5, drawn)
    assert labels.tolist() == [1, 0, 0] and np.hypot(*(xy[1] - xy[2])) > 6


@FEW
@given(seed=st.integers(0, 2**32 - 1), coarse=st.floats(0.3, 9), above=st.floats(0.3, 0.99))
def test_the_positive_point_is_the_deepest_of_the_whole_image(seed, coarse, above):
    """It is searched in the lesion's box, and is the one of the whole image."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((PX, PX)), coarse)
    lesion = noise > np.quantile(noise, above)
    depth = ndimage.distance_transform_edt(np.pad(lesion, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    xy, _ = points_of(lesion, lesion.astype(np.float32))
    assert tuple(xy[0]) == (x, y)


# -------------------------------------------------------------- what is prompted at all


def test_an_empty_prediction_gives_no_prompts():
    """No prompts, no regions, no classes."""
    found = prompts_for(plane()[None], Frames(100, 200, PX))
    assert found.prompts is None and found.regions.shape == (0, PX, PX) and not len(found.classes)


@pytest.mark.parametrize(("px", "count"), [(128, 1), (224, 0)])
def test_a_speck_is_not_a_lesion(px, count):
    """20 pixels are more than a thousandth of 128 x 128 (16.4), less than of 224 x 224 (50.2)."""
    assert len(components(plane((10, 10, 15, 14), px=px))) == count


def test_components_come_largest_first():
    """In any order in the image."""
    drawn = plane((2, 2, 6, 6), (10, 2, 30, 20), (40, 40, 50, 50))
    assert [part.sum() for part in components(drawn)] == [360, 100, 16]


def test_components_are_capped():
    """Seven squares; the two smallest are noise."""
    drawn = plane(*((2, 9 * i, 5 + i, 9 * i + 3 + i) for i in range(7)))
    found = components(drawn)
    assert len(found) == MAX_COMPONENTS and min(part.sum() for part in found) == 25


def test_a_mask_prompt_holds_one_component():
    """The others are background in it."""
    found = prompts_for(plane((4, 4, 30, 30), (40, 40, 60, 60))[None], Frames(PX, PX, PX))
    assert found.prompts is not None and found.prompts.masks is not None
    first, second = found.prompts.masks[:, 0] > 0
    assert first.any() and second.any() and not (first & second).any()


def test_foreground_without_a_prompt_is_uncovered():
    """A speck, and the sixth of six components; not the prompted ones, nor background."""
    squares = [(2, 10 * i, 8 + i, 10 * i + 6) for i in range(6)]
    seen = plane(*squares)
    seen[60, 60] = 0.95
    left = prompts_for(seen[None], Frames(PX, PX, PX)).uncovered(seen[None], ALL)
    assert np.array_equal(left[0], plane(squares[0], (60, 60, 61, 61)) > 0.5)


def test_a_component_with_an_invalid_mask_is_uncovered():
    """SAM gave NaN for the second of two."""
    seen = plane((4, 4, 30, 30), (40, 40, 60, 60))
    valid = np.array([True, False])
    left = prompts_for(seen[None], Frames(PX, PX, PX)).uncovered(seen[None], valid)
    assert np.array_equal(left[0], plane((40, 40, 60, 60)) > 0.5)


def test_the_specks_of_a_class_without_a_component_are_uncovered():
    """While another class is prompted."""
    seen = np.stack([plane((4, 4, 30, 30)), plane((50, 50, 51, 51))])
    left = prompts_for(seen, Frames(PX, PX, PX)).uncovered(seen, ALL)
    assert not left[0].any() and left[1].sum() == 1


def test_classes_are_prompted_one_by_one():
    """Two parts of the first class, one of the third."""
    planes = np.stack([plane((4, 4, 20, 20), (30, 30, 40, 40)), plane(), plane((50, 2, 60, 20))])
    found = prompts_for(planes, Frames(PX, PX, PX))
    assert found.classes.tolist() == [0, 0, 2] and len(found.regions) == 3


def test_mask_prompts_can_be_left_out():
    """Box and points alone."""
    prompts = prompts_for(plane((4, 4, 30, 30))[None], Frames(PX, PX, PX), dense=False).prompts
    assert prompts is not None and prompts.masks is None


@FEW
@given(blobs())
def test_no_box_is_ever_empty(drawn):
    """For any probabilities boxes have an area inside the image."""
    probabilities, frames = drawn
    prompts = prompts_for(probabilities, frames).prompts
    if prompts is None:
        return
    x0, y0, x1, y1 = boxes_of(prompts).T
    height, width = frames.sam_size()
    assert (x1 > x0).all() and (y1 > y0).all()
    assert min(x0.min(), y0.min()) >= -0.51 and x1.max() < width and y1.max() < height


@FEW
@given(blobs())
def test_prompts_are_numbers_for_worthy_components(drawn):
    """As many prompts as regions, none too small, all finite, logits clipped."""
    probabilities, frames = drawn
    found = prompts_for(probabilities, frames)
    assert len(found.regions) == len(found.classes) <= 2 * MAX_COMPONENTS
    assert (found.regions.sum((1, 2)) >= MIN_AREA * PX * PX).all()
    if found.prompts is None:
        return
    assert found.prompts.masks is not None
    assert found.prompts.masks.abs().max() <= LOGIT
    assert found.prompts.points.isfinite().all() and boxes_of(found.prompts).dtype == torch.float32


@FEW
@given(blobs())
def test_points_follow_the_probabilities(drawn):
    """Positive ones lie in their component, negative ones in clear background."""
    probabilities, _ = drawn
    for component in components(probabilities[0]):
        xy, labels = points_of(component, probabilities[0])
        columns, rows = xy.astype(int).T
        assert component[rows[0], columns[0]]
        assert (probabilities[0][rows, columns][labels == 0] < CLEAR).all()
