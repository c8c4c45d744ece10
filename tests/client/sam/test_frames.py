"""Points and masks keep their place from frame to frame."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

from knowmine.client.sam.frames import Frames

SIDES = st.integers(60, 400)
# Wide, tall and square, up to 4 to 1.
SIZES = st.tuples(SIDES, SIDES).filter(lambda size: max(size) <= 4 * min(size))
PLACES = st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7))
FEW = settings(max_examples=15)


def disc(size, place):
    """A disc around `place` (fractions of height and width), 1 inside, original frame."""
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    radius = 0.25 * min(height, width)
    inside = np.hypot(y - place[0] * height, x - place[1] * width) < radius
    return inside.astype(np.float32)


def resized(mask, height, width):
    image = Image.fromarray(mask, mode="F").resize((width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image))


def centre(mask):
    """The centre (x, y) of a mask's weight, in pixels."""
    y, x = torch.meshgrid(*(torch.arange(n) for n in mask.shape), indexing="ij")
    return torch.stack([(mask * x).sum(), (mask * y).sum()]) / mask.sum()


def iou(a, b):
    return float((a & b).sum() / (a | b).sum())


@FEW
@given(st.integers(1, 6000), st.integers(1, 6000))
def test_the_scaled_size_is_segment_anythings(height, width):
    """The size inside the SAM frame is ResizeLongestSide's, but never nothing."""
    theirs = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
    assert Frames(height, width, 224).sam_size() == tuple(max(1, side) for side in theirs)


@FEW
@given(SIZES, PLACES)
def test_a_point_keeps_its_place_in_the_sam_frame(size, place):
    """The centre of a disc in the model frame lands on the disc's centre in the SAM frame."""
    frames = Frames(size[0], size[1], 224)
    drawn = disc(size, place)
    moved = frames.to_sam(centre(resized(drawn, 224, 224)))
    assert torch.allclose(moved, centre(resized(drawn, *frames.sam_size())), atol=1.0)


@FEW
@given(SIZES, PLACES)
def test_a_mask_prompt_lies_where_the_object_does(size, place):
    """The model's mask in the low-res frame covers the SAM frame's disc, four pixels in one."""
    frames = Frames(size[0], size[1], 224)
    drawn = disc(size, place)
    low_res = frames.model_to_low_res(resized(drawn, 224, 224), fill=0.0)
    expected = centre(resized(drawn, *frames.sam_size()))
    assert torch.allclose(centre(low_res) * 4 + 1.5, expected, atol=1.0)


@FEW
@given(SIZES, PLACES)
def test_sams_mask_lies_where_the_object_does(size, place):
    """A disc in SAM's padded low-res frame is the same disc in the model frame."""
    frames = Frames(size[0], size[1], 224)
    drawn = disc(size, place)
    padded = torch.zeros(1024, 1024)
    height, width = frames.sam_size()
    padded[:height, :width] = resized(drawn, height, width)
    low_res = torch.nn.functional.avg_pool2d(padded[None, None], 4)
    model = frames.low_res_to_model(low_res)[0, 0]
    assert iou(model > 0.5, resized(drawn, 224, 224) > 0.5) > 0.94


@FEW
@given(SIZES, PLACES)
def test_a_round_trip_keeps_the_mask(size, place):
    """Model frame to low-res frame and back gives the same mask."""
    frames = Frames(size[0], size[1], 224)
    logits = 20 * resized(disc(size, place), 224, 224) - 10
    back = frames.low_res_to_model(frames.model_to_low_res(logits, fill=-10.0))
    assert iou(back > 0, logits > 0) > 0.94


@FEW
@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([32, 224]))
def test_nothing_of_the_padding_reaches_the_model(height, width, model_px):
    """SAM's logits in the padding leave the model's mask alone."""
    frames = Frames(height, width, model_px)
    ours = frames.model_to_low_res(torch.full((model_px, model_px), -3.0), fill=1e4)
    assert torch.allclose(frames.low_res_to_model(ours), torch.tensor(-3.0))


def test_padding_holds_the_fill():
    """Of an image twice as wide as high, the lower half of the low-res frame is filled."""
    low_res = Frames(300, 600, 64).model_to_low_res(torch.ones(2, 64, 64), fill=-7.0)
    assert low_res.shape == (2, 256, 256)
    assert (low_res[:, 128:] == -7).all() and (low_res[:, :128] == 1).all()


def test_leading_dimensions_and_dtype_stay():
    """Any number of masks moves at once, in the dtype they came in."""
    masks = torch.zeros(2, 3, 256, 256, dtype=torch.float16)
    moved = Frames(50, 40, 96).low_res_to_model(masks)
    assert (moved.shape, moved.dtype) == ((2, 3, 96, 96), torch.float16)
