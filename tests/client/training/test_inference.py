"""Probabilities are the mean of an image and its mirror image, whatever the batch."""

import numpy as np
import pytest
import torch
from torch import nn

from knowmine.client.device import Compute
from knowmine.client.training.inference import BATCH, VARIED, View, predict

CPU = Compute(torch.device("cpu"), torch.float32)


class Leftist(nn.Module):
    """Certain of foreground on the left of its input, undecided on the right."""

    def forward(self, images):
        logits = torch.zeros_like(images[:, :1])
        logits[..., : images.shape[3] // 2] = 100
        return logits


class Mean(nn.Module):
    """Two classes: how bright the image is, and how dark; noisy while it is being trained."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        bright = self.dropout(images.mean((1, 2, 3), keepdim=True)).expand_as(images[:, :1])
        return torch.cat([bright, -bright], 1)


def images(n, px=4):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, px, px), dtype=torch.uint8, generator=generator)


def test_both_mirror_views_count():
    """(1 + .5) / 2 on either side."""
    assert np.array_equal(predict(Leftist(), images(1), CPU), np.full((1, 1, 4, 4), 0.75))


def test_probabilities_are_those_of_the_image():
    """Worked by hand: sigmoid of the mean of pixels in [0, 1], and its complement."""
    probabilities = predict(Mean(), torch.full((1, 3, 4, 4), 255, dtype=torch.uint8), CPU)
    yes = 1 / (1 + np.exp(-1))
    assert np.allclose(probabilities[0, :, 0, 0], [yes, 1 - yes])
    assert probabilities.dtype == np.float32 and probabilities.shape == (1, 2, 4, 4)


def test_a_remainder_is_predicted_too():
    """One more than a batch: the last is as it is alone."""
    some = images(BATCH + 1)
    together = predict(Mean(), some, CPU)
    assert len(together) == BATCH + 1
    assert np.array_equal(together[-1:], predict(Mean(), some[-1:], CPU))


def test_no_images_no_probabilities():
    """A site may have no test images; the model is not run."""
    model = Mean()
    assert predict(model, images(0), CPU).shape == (0, 0, 4, 4) and not model.sizes


def test_each_batch_is_reported():
    """Progress counts every image once."""
    counts: list[int] = []
    predict(Mean(), images(BATCH + 3), CPU, counts.append)
    assert counts == [BATCH, 3]


def test_prediction_is_not_training():
    """Dropout is off, even if the model came from training."""
    model = Mean().train()
    assert np.array_equal(predict(model, images(3), CPU), predict(model, images(3), CPU))


def test_prediction_runs_no_batch_norm():
    """Only once, to compare with the fused copy; not for each of three batches in two views."""
    calls = []

    class Counted(nn.BatchNorm2d):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    predict(nn.Sequential(nn.Conv2d(3, 1, 1), Counted(1)), images(2 * BATCH + 1), CPU)
    assert calls == [1]


def test_a_model_moves_where_its_weights_keep_gradients():
    """Weights that move to a GPU in inference mode cannot learn afterwards."""
    modes = []

    class Moved(Mean):
        def to(self, *args, **kwargs):
            modes.append(torch.is_inference_mode_enabled())
            return super().to(*args, **kwargs)

    predict(Moved(), images(1), CPU)
    assert modes == [False]


def test_images_are_left_alone():
    """Bytes in, the same bytes after."""
    some = images(2)
    before = some.clone()
    predict(Mean(), some, CPU)
    assert torch.equal(some, before)


class Upper(nn.Module):
    """Certain that the upper half of its input is foreground and the rest background."""

    def __init__(self):
        super().__init__()
        self.sides = []

    def forward(self, images):
        self.sides.append(images.shape[-1])
        logits = torch.full_like(images[:, :1], -30.0)
        logits[:, :, : images.shape[2] // 2] = 30.0
        return logits


def test_images_without_an_upright_are_turned_by_quarters():
    """The upper halves of four quarter turns cover each pixel in half of the views."""
    seen = predict(Upper(), images(1, 128), CPU, views=VARIED["any"])
    assert np.allclose(seen, 0.5)


def test_upright_images_are_never_turned():
    """The upper half stays the upper half, except at the seam of the larger views."""
    (seen,) = predict(Upper(), images(1, 128), CPU, views=VARIED["upright"])[0]
    assert (seen[:62] > 0.99).all() and (seen[66:] < 0.01).all()


@pytest.mark.parametrize(("px", "larger"), [(64, 64), (96, 128), (128, 160), (224, 256)])
def test_larger_views_have_sides_that_the_network_takes(px, larger):
    """The multiple of 32 nearest to a fifth more; at 64 px that is 64 again."""
    model = Upper()
    predict(model, images(1, px), CPU, views=VARIED["any"])
    assert model.sides == [px, px, larger, larger]


@pytest.mark.parametrize(
    "view", [View(turns, mirrored) for turns in range(4) for mirrored in (False, True)]
)
def test_a_view_is_undone(view):
    """Turned and mirrored, then mirrored and turned back."""
    some = torch.rand(2, 3, 32, 32)
    assert torch.equal(view.back(view.of(some), 32), some)
