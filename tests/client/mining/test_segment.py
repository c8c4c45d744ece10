"""SAM's masks are picked prompt by prompt and gathered by image and class."""

import numpy as np
import pytest
import torch

from knowmine.client.mining.prompts import prompts_for
from knowmine.client.mining.segment import segment
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Decoded

PX = 32
SQUARE = Frames(PX, PX, PX)
NOTHING = (0, 0, 0, 0)


class FakeSam:
    """Decodes prompts by a function, and records them."""

    name, digest, form, input_px = "fake", "5a" * 32, "", 1024

    def __init__(self, decoder=None):
        self.decoder, self.prompts = decoder, []

    def embed(self, image):
        raise AssertionError("an image was embedded, but embeddings are given")

    def decode(self, embeddings, prompts):
        self.prompts.append(prompts)
        return self.decoder(prompts)


def rectangle(box, px=PX):
    """(px, px) bool, true inside (x0, y0, x1, y1), ends excluded."""
    mask = torch.zeros(px, px, dtype=torch.bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def logits_of(mask, strength=8.0):
    """SAM's logits (256, 256) for a mask of a square image."""
    return SQUARE.model_to_low_res(torch.where(mask, strength, -8.0), fill=-8.0)


def always(*masks, iou):
    """A decoder that gives the same masks for every prompt, with SAM's estimate of each IoU."""

    def decoder(prompts):
        k = len(prompts.boxes)
        return Decoded(torch.stack(masks).repeat(k, 1, 1, 1), torch.tensor([iou] * k))

    return decoder


def fills_the_box(prompts):
    """A decoder that segments every box as just that box."""
    steps = 4 * torch.arange(256) + 1.5
    x0, y0, x1, y1 = prompts.boxes.T[..., None]
    across, down = (steps > x0) & (steps < x1), (steps > y0) & (steps < y1)
    inside = down[:, :, None] & across[:, None, :]
    return Decoded(torch.where(inside, 8.0, -8.0)[:, None], torch.full((len(inside), 1), 0.9))


def prompts_of(*boxes, frames=SQUARE):
    """The prompts for an image with these lesions, one class."""
    seen = sum((rectangle(box) for box in boxes), torch.zeros(PX, PX, dtype=torch.bool))
    return prompts_for(np.where(seen, 0.95, 0.02).astype(np.float32)[None], frames)


def segmented(sam, *images, frames=None, classes=1, by_agreement=True):
    return segment(
        sam,
        torch.zeros(len(images), 256, 64, 64),
        images,
        frames or [SQUARE] * len(images),
        classes=classes,
        by_agreement=by_agreement,
    )


LESION = (8, 8, 24, 24)
WHOLE = logits_of(rectangle((0, 0, PX, PX)))
RIGHT = logits_of(rectangle(LESION))


# ---------------------------------------------------------------------------- picking


@pytest.mark.parametrize(("by_agreement", "area"), [(True, 16 * 16), (False, PX * PX)])
def test_agreement_outweighs_sams_estimate(by_agreement, area):
    """SAM rates the whole image higher; the lesion agrees with the prompt's component."""
    sam = FakeSam(always(WHOLE, RIGHT, iou=[0.95, 0.6]))
    (found,) = segmented(sam, prompts_of(LESION), by_agreement=by_agreement)
    assert (found.masks > 0.5).sum() == area


def test_of_equal_masks_the_stable_one_is_picked():
    """The logits of the other are within one of its threshold."""
    shaky = logits_of(rectangle(LESION), strength=0.5)
    (found,) = segmented(FakeSam(always(shaky, RIGHT, iou=[0.8, 0.8])), prompts_of(LESION))
    assert found.masks.max() > 0.99


def test_each_prompt_picks_for_itself():
    """Each lesion gets its own one of two masks."""
    left, right = (2, 2, 12, 28), (18, 2, 28, 28)
    sam = FakeSam(always(logits_of(rectangle(left)), logits_of(rectangle(right)), iou=[0.9, 0.8]))
    (found,) = segmented(sam, prompts_of(left, right))
    assert torch.equal(found.masks[0] > 0.5, rectangle(left) | rectangle(right))


def test_scores_are_weighted_by_area():
    """Three quarters of .8 and one of .4."""

    def decoder(prompts):
        return Decoded(torch.stack([RIGHT, RIGHT])[:, None], torch.tensor([[0.8], [0.4]]))

    (found,) = segmented(FakeSam(decoder), prompts_of((2, 2, 14, 14), (20, 20, 28, 26)))
    assert found.iou == pytest.approx(0.7)


def test_sams_iou_is_clipped():
    """Its head is linear, and has given 1.02."""
    (found,) = segmented(FakeSam(always(RIGHT, iou=[1.02])), prompts_of(LESION))
    assert found.iou == 1.0


# -------------------------------------------------------------------------- bad masks


def test_a_mask_of_nan_is_empty():
    """It is not valid, and counts for nothing."""
    nothing = torch.full((256, 256), torch.nan)
    (found,) = segmented(FakeSam(always(nothing, iou=[torch.nan])), prompts_of(LESION))
    assert found.masks.max() < 0.01 and (found.iou, found.stability) == (0, 0)
    assert not found.valid.any()


def test_an_empty_mask_is_valid():
    """It is not stable, however high its IoU."""
    empty = logits_of(rectangle(NOTHING))
    (found,) = segmented(FakeSam(always(empty, empty, iou=[0.9, 0.3])), prompts_of(LESION))
    assert found.masks.max() < 0.01 and found.stability == 0 and found.valid.all()


# -------------------------------------------------------------------------- gathering

WIDE, TALL = Frames(200, 400, PX), Frames(480, 300, PX)


def test_images_of_different_size_keep_their_masks_apart():
    """Two lesions in a wide image and one in a tall one, decoded in one call."""
    boxes = [(2, 2, 14, 12), (18, 16, 30, 30)], [(4, 10, 26, 22)]
    images = [prompts_of(*boxes[0], frames=WIDE), prompts_of(*boxes[1], frames=TALL)]
    sam = FakeSam(fills_the_box)
    found = segmented(sam, *images, frames=[WIDE, TALL])
    for one, its in zip(found, boxes, strict=True):
        truth = sum((rectangle(box) for box in its), torch.zeros(PX, PX, dtype=torch.bool))
        mask = one.masks[0] > 0.5
        # The margin round the box costs a rim of one pixel at most.
        assert (mask & truth).sum() == truth.sum() and (mask & ~truth).sum() < truth.sum() / 2
    assert len(sam.prompts) == 1


def test_prompts_name_their_image():
    """An image without a lesion between them changes nothing."""
    sam = FakeSam(fills_the_box)
    found = segmented(
        sam,
        prompts_of((2, 2, 14, 14), (18, 18, 30, 30)),
        prompts_of(),
        prompts_of((4, 10, 26, 22)),
    )
    assert sam.prompts[0].image_of.tolist() == [0, 0, 2]
    assert [bool((one.masks > 0.5).any()) for one in found] == [True, False, True]


def test_masks_are_gathered_by_class():
    """The first class keeps its two parts, the second has none, the third its own."""
    planes = [
        rectangle((2, 2, 12, 12)) | rectangle((20, 2, 30, 12)),
        rectangle(NOTHING),
        rectangle((8, 18, 24, 30)),
    ]
    seen = np.where(torch.stack(planes), 0.95, 0.02).astype(np.float32)
    (found,) = segmented(FakeSam(fills_the_box), prompts_for(seen, SQUARE), classes=3)
    for mask, plane in zip(found.masks > 0.5, planes, strict=True):
        assert (mask & plane).sum() == plane.sum()
        assert (mask & ~plane).sum() <= plane.sum() / 2


def test_without_prompts_nothing_is_decoded():
    """All images are empty, so all masks are."""
    sam = FakeSam()
    found = segmented(sam, prompts_of(), prompts_of(), classes=2)
    assert not sam.prompts and all(not one.masks.any() for one in found)
    assert [one.masks.shape for one in found] == [(2, PX, PX)] * 2


def test_prompts_reach_sam_unchanged():
    """Without mask prompts there are none for SAM either."""
    sam = FakeSam(fills_the_box)
    seen = np.where(rectangle(LESION), 0.95, 0.02).astype(np.float32)[None]
    sparse = prompts_for(seen, SQUARE, dense=False)
    segmented(sam, sparse, by_agreement=False)
    given, (got,) = sparse.prompts, sam.prompts
    assert given is not None and given.boxes is not None and got.masks is None
    assert torch.equal(got.boxes, given.boxes) and torch.equal(got.points, given.points)
