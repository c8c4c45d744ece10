"""The moving average follows the model in training and renews its pseudo-labels."""

import pytest
import torch
from torch import nn

from knowmine.client.device import Compute
from knowmine.client.training.teacher import DECAY, Teacher

CPU = Compute(torch.device("cpu"), torch.float32)
IMAGES, TARGETS = torch.zeros(2, 3, 4, 4), torch.full((2, 1, 4, 4), 0.5)


def set_bias(model, bias):
    torch.nn.init.constant_(model.bias, bias)


def constant(bias):
    """A model that predicts this logit everywhere on black images."""
    model = nn.Conv2d(3, 1, 1)
    set_bias(model, bias)
    return model


def sharpened(logit):
    """p^2 / (p^2 + (1 - p)^2) of the logit's probability p."""
    p = torch.sigmoid(torch.tensor(logit))
    return p**2 / (p**2 + (1 - p) ** 2)


def test_it_follows_the_model_as_an_average_with_decay_097():
    """From 2: .97 * 2 + .03 * 4 = 2.06, .97 * 2.06 + .03 * 1 = 2.0282, then towards 0: 1.967354."""
    assert DECAY == 0.97
    model = constant(2.0)
    teacher = Teacher(model, 1.0, CPU)
    for bias, average in ((4.0, 2.06), (1.0, 2.0282), (0.0, 1.967354)):
        set_bias(model, bias)
        teacher.follow(model)
        assert teacher.renew(IMAGES, TARGETS).mean() == pytest.approx(float(sharpened(average)))


def test_it_begins_at_the_start_model():
    """Before any step it predicts as the model does."""
    renewed = Teacher(constant(2.0), 1.0, CPU).renew(IMAGES, TARGETS)
    assert torch.allclose(renewed, sharpened(2.0))


def test_batch_norm_statistics_are_averaged_too():
    """The running mean moves from 0 to 10 by .03 * 10, so an input of 0 becomes -.3."""
    model = nn.BatchNorm2d(3, eps=0)
    teacher = Teacher(model, 1.0, CPU)
    assert model.running_mean is not None
    nn.init.constant_(model.running_mean, 10.0)
    teacher.follow(model)
    renewed = teacher.renew(IMAGES, TARGETS.expand(2, 3, 4, 4))
    assert torch.allclose(renewed, sharpened(-0.3))


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_its_prediction_is_mixed_with_what_was_mined(weight, expected):
    """It is certain of foreground; the mined targets are one half."""
    renewed = Teacher(constant(20.0), weight, CPU).renew(IMAGES, TARGETS)
    assert torch.allclose(renewed, torch.tensor(expected))


def test_the_average_is_a_copy():
    """Changing the model changes nothing until it is followed."""
    model = constant(0.0)
    teacher = Teacher(model, 1.0, CPU)
    set_bias(model, 9.0)
    assert torch.allclose(teacher.renew(IMAGES, TARGETS), torch.tensor(0.5))
