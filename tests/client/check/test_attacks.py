"""The attacks find what is known to be there, and nothing where there is nothing."""

import numpy as np
import torch
from torch import nn

from knowmine.client.check.attacks import gradients_of, invert, losses_of, membership, psnr_db, ssim


def test_equal_losses_are_a_coin():
    """And the interval holds one half."""
    found = membership(np.ones(20), np.ones(20))
    assert found.auc == 0.5 and found.low < 0.5 < found.high


def test_few_images_prove_little():
    """Perfect on two and two is not certain: the interval has a width at 1 too."""
    found = membership(np.zeros(2), np.ones(2))
    assert found.auc == 1 and found.low < 0.8


def test_a_model_that_memorised_a_batch_is_caught():
    """Noise cannot be learned but by heart."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 8, 8), generator=generator, dtype=torch.uint8)
    truth = torch.rand((16, 1, 8, 8), generator=generator) > 0.5
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Unflatten(1, (1, 8, 8)))
    adam = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        gradients = gradients_of(model, images[:8] / 255, truth[:8])
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.detach()
        adam.step()
    losses = losses_of(model, images, truth)
    assert membership(losses[:8], losses[8:]).low > 0.7


def test_structure_is_told_from_noise():
    """A dimmed picture stays like itself; noise of the same error does not."""
    generator = torch.Generator().manual_seed(2)
    image = torch.linspace(0, 1, 24).repeat(1, 1, 24, 1)
    noise = torch.rand(image.shape, generator=generator)
    assert ssim(image, image) == 1
    assert ssim(image * 0.9, image) > 0.9
    assert ssim(noise, image) < 0.3


def test_the_input_of_a_linear_layer_is_recovered():
    """Its gradient is the input, scaled: Geiping et al. 2020, proposition 3.1."""
    generator = torch.Generator().manual_seed(1)
    secret = torch.rand((1, 6), generator=generator)
    layer = nn.Linear(6, 4)

    def gradients(guess):
        loss = layer(guess).sigmoid().sum()
        return torch.autograd.grad(loss, list(layer.parameters()), create_graph=True)

    target = [gradient.detach() for gradient in gradients(secret)]
    guess = invert(gradients, target, (1, 6), steps=300, generator=generator, smoothness=0)
    assert psnr_db(guess, secret) > 40
