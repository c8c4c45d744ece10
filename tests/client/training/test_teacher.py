"""The moving average follows the model in training and renews what it is taught."""

import pytest
import torch
from torch import nn

from knowmine.client.device import Compute
from knowmine.client.training.teacher import DECAY, Teacher

CPU = Compute(torch.device("cpu"), torch.float32)
IMAGES, TARGETS = torch.zeros(2, 3, 4, 4), torch.full((2, 1, 4, 4), 0.5)


def set_bias(model, bias):
    torch.nn.init.constant_(model.bias, bias)


def says(bias):
    """A model that gives this logit everywhere on black images."""
    model = nn.Conv2d(3, 1, 1)
    set_bias(model, bias)
    return model


def test_it_moves_slowly_towards_the_model():
    """From 0 to 1 in one step of 1 - DECAY: sigmoid of that, sharpened."""
    teacher = Teacher(says(0.0), 1.0, CPU)
    teacher.follow(says(1.0))
    p = torch.sigmoid(torch.tensor(1 - DECAY))
    expected = p**2 / (p**2 + (1 - p) ** 2)
    assert torch.allclose(teacher.renew(IMAGES, TARGETS), expected)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_its_share_is_mixed_with_what_was_mined(share, expected):
    """It is sure of foreground, what was mined is not sure of anything."""
    seen = Teacher(says(20.0), share, CPU).renew(IMAGES, TARGETS)
    assert torch.allclose(seen, torch.tensor(expected))


def test_the_model_is_not_trained_through_it():
    """The average is a copy, without gradients."""
    model = says(0.0)
    teacher = Teacher(model, 1.0, CPU)
    set_bias(model, 9.0)
    assert torch.allclose(teacher.renew(IMAGES, TARGETS), torch.tensor(0.5))
