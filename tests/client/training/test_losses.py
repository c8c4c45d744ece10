"""Losses worked by hand."""

import math

import pytest
import torch

from knowmine.client.training.losses import proximal_term, segmentation_losses

SURE = 40.0  # a logit whose sigmoid is 1 in float32


def one_of(*values):
    """A map (1, 1, 2, 2)."""
    return torch.tensor(values).view(1, 1, 2, 2)


CORNER = one_of(1.0, 0.0, 0.0, 0.0)
NOTHING = torch.zeros(1, 1, 2, 2)


def loss(logits, target=CORNER):
    return segmentation_losses(logits, target).item()


def test_undecided_about_one_pixel_of_four():
    """Cross-entropy ln 2; overlap 1/2 and sizes 2 + 1, so Dice loss 1 - (1 + 1) / (3 + 1)."""
    assert loss(NOTHING) == pytest.approx(math.log(2) + 0.5)


def test_right_costs_nothing():
    """A certain and right prediction is free."""
    assert loss((2 * CORNER - 1) * SURE) == pytest.approx(0, abs=1e-6)


def test_certain_and_wrong_is_expensive():
    """Each pixel costs its logit, and no overlap leaves 1 - 1 / (3 + 1 + 1) of Dice."""
    assert loss((1 - 2 * CORNER) * SURE) == pytest.approx(SURE + 0.8)


def test_an_empty_prediction_of_an_empty_mask_is_free():
    """The smoothing pixel takes the place of the missing overlap."""
    assert loss(NOTHING - SURE, NOTHING) == pytest.approx(0, abs=1e-6)


def test_a_soft_target_is_learnt_as_it_is():
    """At p = t = 1/2 the Dice loss is 1 - (2 * 1 + 1) / (4 + 1)."""
    assert loss(NOTHING, NOTHING + 0.5) == pytest.approx(math.log(2) + 0.4)


def test_classes_are_averaged_and_images_are_not():
    """Class one is right and class two undecided: half of the latter's loss; the other image 0."""
    right = (2 * CORNER - 1) * SURE
    logits = torch.cat([torch.cat([right, NOTHING], 1), torch.cat([right, right], 1)])
    seen = segmentation_losses(logits, CORNER.expand(2, 2, 2, 2))
    assert seen.tolist() == pytest.approx([(math.log(2) + 0.5) / 2, 0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_extreme_logits_are_finite(dtype):
    """A model far off can still learn."""
    logits = (one_of(1e4, -1e4, 0.0, 300.0)).to(dtype).requires_grad_()
    segmentation_losses(logits, CORNER).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_low_precision_logits_are_scored_in_full():
    """Under autocast the loss itself stays float32."""
    assert segmentation_losses(NOTHING.bfloat16(), CORNER).dtype == torch.float32


def test_the_proximal_term_by_hand():
    """Half of 1 + 4 + 9."""
    parameters = [torch.tensor([1.0, 2.0]), torch.tensor([[0.0]])]
    anchors = [torch.zeros(2), torch.tensor([[3.0]])]
    assert proximal_term(parameters, anchors).item() == 7


def test_the_proximal_term_pulls_to_the_anchor():
    """Its gradient is the distance itself."""
    parameter = torch.tensor([1.0, -2.0], requires_grad=True)
    proximal_term([parameter], [torch.tensor([0.5, 0.0])]).backward()
    assert parameter.grad is not None and parameter.grad.tolist() == [0.5, -2.0]
