"""SAM's answers are picked, asked again, and gathered by image and class."""

import numpy as np
import pytest
import torch

from knowmine.client.mining.prompts import LOGIT, ask
from knowmine.client.mining.refine import refine
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Decoded

PX = 32
SQUARE = Frames(PX, PX, PX)
NOTHING = (0, 0, 0, 0)


class FakeSam:
    """Answers prompts as it is told to, and remembers them."""

    name, digest, form = "fake", "5a" * 32, ""

    def __init__(self, *answers):
        self.answers, self.asked = answers, []

    def embed(self, image):
        raise AssertionError("refinement embeds nothing")

    def decode(self, embeddings, prompts):
        self.asked.append(prompts)
        return self.answers[min(len(self.asked), len(self.answers)) - 1](prompts)


def rectangle(box, px=PX):
    """(px, px) bool, true inside (x0, y0, x1, y1), ends excluded."""
    mask = torch.zeros(px, px, dtype=torch.bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def logits_of(mask, strength=8.0):
    """A square image's mask as SAM would say it, (256, 256)."""
    return SQUARE.model_to_low_res(torch.where(mask, strength, -8.0), fill=-8.0)


def says(*masks, iou):
    """The same masks for every prompt, with SAM's own opinion of each."""

    def answer(prompts):
        k = len(prompts.boxes)
        return Decoded(torch.stack(masks).repeat(k, 1, 1, 1), torch.tensor([iou] * k))

    return answer


def fills_the_box(prompts):
    """SAM finds in every box just that box."""
    steps = 4 * torch.arange(256) + 1.5
    x0, y0, x1, y1 = prompts.boxes.T[..., None]
    across, down = (steps > x0) & (steps < x1), (steps > y0) & (steps < y1)
    inside = down[:, :, None] & across[:, None, :]
    return Decoded(torch.where(inside, 8.0, -8.0)[:, None], torch.full((len(inside), 1), 0.9))


def asked_about(*boxes, frames=SQUARE):
    """What is asked about an image with these lesions, one class."""
    seen = sum((rectangle(box) for box in boxes), torch.zeros(PX, PX, dtype=torch.bool))
    return ask(np.where(seen, 0.95, 0.02).astype(np.float32)[None], frames)


def refined(sam, *asked, frames=None, classes=1, by_agreement=True, refinements=0):
    return refine(
        sam,
        torch.zeros(len(asked), 256, 64, 64),
        asked,
        frames or [SQUARE] * len(asked),
        classes=classes,
        by_agreement=by_agreement,
        refinements=refinements,
    )


LESION = (8, 8, 24, 24)
WHOLE = logits_of(rectangle((0, 0, PX, PX)))
RIGHT = logits_of(rectangle(LESION))


# ---------------------------------------------------------------------------- picking


@pytest.mark.parametrize(("by_agreement", "area"), [(True, 16 * 16), (False, PX * PX)])
def test_agreement_outvotes_sam(by_agreement, area):
    """SAM prefers the whole image; who sees the lesion too prefers the lesion, if asked."""
    sam = FakeSam(says(WHOLE, RIGHT, iou=[0.95, 0.6]))
    (answer,) = refined(sam, asked_about(LESION), by_agreement=by_agreement)
    assert (answer.masks > 0.5).sum() == area


def test_of_equal_masks_the_stable_one_is_picked():
    """One changes with its threshold: its logits inside are within one of zero."""
    shaky = logits_of(rectangle(LESION), strength=0.5)
    (answer,) = refined(FakeSam(says(shaky, RIGHT, iou=[0.8, 0.8])), asked_about(LESION))
    assert answer.masks.max() > 0.99


def test_each_prompt_picks_for_itself():
    """Of two masks each lesion takes the one that is its own."""
    left, right = (2, 2, 12, 28), (18, 2, 28, 28)
    sam = FakeSam(says(logits_of(rectangle(left)), logits_of(rectangle(right)), iou=[0.9, 0.8]))
    (answer,) = refined(sam, asked_about(left, right))
    assert torch.equal(answer.masks[0] > 0.5, rectangle(left) | rectangle(right))


def test_opinions_are_weighted_by_area():
    """Three quarters of .8 and one of .4."""

    def answer(prompts):
        return Decoded(torch.stack([RIGHT, RIGHT])[:, None], torch.tensor([[0.8], [0.4]]))

    (found,) = refined(FakeSam(answer), asked_about((2, 2, 14, 14), (20, 20, 28, 26)))
    assert found.iou == pytest.approx(0.7)


def test_sams_opinion_is_kept_within_bounds():
    """The head that guesses IoU is linear, and has said 1.02."""
    (answer,) = refined(FakeSam(says(RIGHT, iou=[1.02])), asked_about(LESION))
    assert answer.iou == 1.0


# ------------------------------------------------------------------------ bad answers


def test_a_mask_of_nan_is_empty():
    """SAM has no opinion there."""
    nothing = torch.full((256, 256), torch.nan)
    (answer,) = refined(FakeSam(says(nothing, iou=[torch.nan])), asked_about(LESION))
    assert answer.masks.max() < 0.01 and (answer.iou, answer.stability) == (0, 0)
    assert not answer.heard.any()


def test_an_empty_answer_is_an_empty_mask():
    """However sure SAM is of it, it is not called stable."""
    empty = logits_of(rectangle(NOTHING))
    (answer,) = refined(FakeSam(says(empty, empty, iou=[0.9, 0.3])), asked_about(LESION))
    assert answer.masks.max() < 0.01 and answer.stability == 0 and answer.heard.all()


def test_an_empty_answer_can_be_asked_again():
    """Two empty masks are equal, so it settles at once."""
    sam = FakeSam(says(logits_of(rectangle(NOTHING)), iou=[0.9]))
    refined(sam, asked_about(LESION), refinements=2)
    assert len(sam.asked) == 2


# ----------------------------------------------------------------------- asking again


@pytest.mark.parametrize(("refinements", "calls"), [(0, 1), (1, 2), (2, 2)])
def test_a_still_mask_is_not_asked_about_again(refinements, calls):
    """The second answer equals the first, so there is no third."""
    sam = FakeSam(says(RIGHT, iou=[0.9]))
    refined(sam, asked_about(LESION), refinements=refinements)
    assert len(sam.asked) == calls


MOVING = [says(logits_of(rectangle((8, 8, 24, end))), iou=[0.9]) for end in (16, 20, 24)]


def test_a_moving_mask_is_asked_about_until_the_limit():
    """It grows with every answer."""
    sam = FakeSam(*MOVING)
    refined(sam, asked_about(LESION), refinements=2)
    assert len(sam.asked) == 3


def test_a_better_answer_replaces_the_first():
    """The last agrees most with what the U-Net++ saw."""
    (answer,) = refined(FakeSam(*MOVING), asked_about(LESION), refinements=2)
    assert (answer.masks > 0.5).sum() == 16 * 16


def test_a_worse_answer_does_not():
    """Asked again, SAM runs off to the whole image, as sure as before."""
    sam = FakeSam(says(RIGHT, iou=[0.9]), says(WHOLE, iou=[0.9]))
    (answer,) = refined(sam, asked_about(LESION), refinements=1)
    assert len(sam.asked) == 2 and (answer.masks > 0.5).sum() == 16 * 16


def test_each_prompt_keeps_its_own_better_answer():
    """The second time SAM finds the left lesion and loses the right one."""
    left, right = (2, 2, 12, 28), (18, 2, 28, 28)
    nothing = logits_of(rectangle(NOTHING))

    def answering(*masks):
        return lambda prompts: Decoded(torch.stack(masks)[:, None], torch.full((2, 1), 0.9))

    sam = FakeSam(
        answering(nothing, logits_of(rectangle(right))),
        answering(logits_of(rectangle(left)), nothing),
    )
    (answer,) = refined(sam, asked_about(left, right), refinements=1)
    assert torch.equal(answer.masks[0] > 0.5, rectangle(left) | rectangle(right))


def test_sam_is_asked_again_with_its_own_logits():
    """Clipped as the U-Net++'s are; box and points stay."""
    sam = FakeSam(says(RIGHT, iou=[0.9]))
    refined(sam, asked_about(LESION), refinements=1)
    first, again = sam.asked
    assert torch.equal(again.masks, RIGHT.clamp(-LOGIT, LOGIT)[None, None])
    assert torch.equal(again.boxes, first.boxes) and torch.equal(again.points, first.points)


def test_without_mask_prompts_none_is_made_up():
    """The paper's recipe asks with boxes and points, once."""
    sam = FakeSam(says(RIGHT, iou=[0.9]))
    seen = np.where(rectangle(LESION), 0.95, 0.02).astype(np.float32)[None]
    refined(sam, ask(seen, SQUARE, dense=False), by_agreement=False)
    assert [prompts.masks for prompts in sam.asked] == [None]


# -------------------------------------------------------------------------- gathering

WIDE, TALL = Frames(200, 400, PX), Frames(480, 300, PX)


def test_images_of_different_size_keep_their_masks_apart():
    """Two lesions in a wide image and one in a tall one, in one call."""
    boxes = [(2, 2, 14, 12), (18, 16, 30, 30)], [(4, 10, 26, 22)]
    asked = [asked_about(*boxes[0], frames=WIDE), asked_about(*boxes[1], frames=TALL)]
    sam = FakeSam(fills_the_box)
    answers = refined(sam, *asked, frames=[WIDE, TALL])
    for answer, its in zip(answers, boxes, strict=True):
        truth = sum((rectangle(box) for box in its), torch.zeros(PX, PX, dtype=torch.bool))
        found = answer.masks[0] > 0.5
        # The margin round the box costs a rim of one pixel at most.
        assert (found & truth).sum() == truth.sum() and (found & ~truth).sum() < truth.sum() / 2
    assert len(sam.asked) == 1


def test_prompts_name_their_image():
    """An image without a lesion in between shifts nothing."""
    sam = FakeSam(fills_the_box)
    answers = refined(
        sam,
        asked_about((2, 2, 14, 14), (18, 18, 30, 30)),
        asked_about(),
        asked_about((4, 10, 26, 22)),
    )
    assert sam.asked[0].image_of.tolist() == [0, 0, 2]
    assert [bool((answer.masks > 0.5).any()) for answer in answers] == [True, False, True]


def test_masks_are_gathered_by_class():
    """The first class keeps its two parts, the second has none, the third its own."""
    planes = [
        rectangle((2, 2, 12, 12)) | rectangle((20, 2, 30, 12)),
        rectangle(NOTHING),
        rectangle((8, 18, 24, 30)),
    ]
    seen = np.where(torch.stack(planes), 0.95, 0.02).astype(np.float32)
    (answer,) = refined(FakeSam(fills_the_box), ask(seen, SQUARE), classes=3)
    for mask, plane in zip(answer.masks, planes, strict=True):
        found = mask > 0.5
        assert (found & plane).sum() == plane.sum()
        assert (found & ~plane).sum() <= plane.sum() / 2


def test_nothing_asked_is_nothing_decoded():
    """All images are empty: SAM is left in peace."""
    sam = FakeSam()
    answers = refined(sam, asked_about(), asked_about(), classes=2, refinements=2)
    assert not sam.asked and all(not a.masks.any() for a in answers)
    assert [a.masks.shape for a in answers] == [(2, PX, PX)] * 2


# ------------------------------------------------------------------- one object in parts

FIRST_PART, SECOND_PART = (4, 8, 12, 20), (13, 8, 21, 20)


def two_parts():
    """A U-Net++ that sees two rectangles a pixel apart, and the prompts for them."""
    seen = torch.full((1, PX, PX), 0.02)
    for box in (FIRST_PART, SECOND_PART):
        seen[0][rectangle(box)] = 0.95
    return ask(seen.numpy(), SQUARE, join=True)


def answers(parts, union):
    """SAM's masks: one for each part, and one for the question about both."""
    masks = torch.stack([logits_of(rectangle(box)) for box in (parts, parts, union)])
    return lambda prompts: Decoded(masks[:, None], torch.full((3, 1), 0.9))


def heard(answer):
    (seen,) = refined(FakeSam(answer), two_parts(), refinements=0)
    return seen.masks[0] > 0.5


def test_the_union_is_heard_where_it_agrees_better():
    """Asked one by one SAM sees a speck, asked about both the whole."""
    whole = (4, 8, 21, 20)
    assert torch.equal(heard(answers((0, 0, 2, 2), whole)), rectangle(whole))


def test_the_parts_are_heard_where_they_agree_better():
    """Asked about both SAM sees something else."""
    assert torch.equal(heard(answers(FIRST_PART, (0, 28, 32, 32))), rectangle(FIRST_PART))
