"""Two attacks on an update, for the site's own eyes: who was trained on, and what did it look like.

Both are stronger than what a stranger could do: they are given the masks, and the inversion gets
the exact gradient of one small batch where a round sends the sum of many steps. Neither bounds
what a better attack finds.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from knowmine.client.training.losses import segmentation_losses

Z95 = 1.96
TOTAL_VARIATION = 1e-2
"""Weight of smoothness beside the cosine distance."""

Gradients = Sequence[Tensor]


class Auc(NamedTuple):
    """Chance that a member has the lower loss; 0.5 is a coin. low, high: 95 % interval."""

    auc: float
    low: float
    high: float


def membership(members: NDArray[np.float64], others: NDArray[np.float64]) -> Auc:
    """How well a loss threshold tells images that were trained on from others.

    Yeom et al. 2018, over all thresholds. members, others: (N,) and (M,) losses, not empty.
    The interval inverts the deviation of Hanley and McNeil 1982, so that it has a width at 1 too.
    """
    lower = (members[:, None] < others[None]).mean()
    auc = float(lower + (members[:, None] == others[None]).mean() / 2)
    grid = np.linspace(0, 1, 2001)
    m, n = len(members), len(others)
    q1, q2 = grid / (2 - grid), 2 * grid**2 / (1 + grid)
    variance = (grid * (1 - grid) + (m - 1) * (q1 - grid**2) + (n - 1) * (q2 - grid**2)) / (m * n)
    inside = grid[np.abs(auc - grid) <= Z95 * np.sqrt(variance.clip(0)) + 1e-9]
    return Auc(auc, min(auc, float(inside.min(initial=1))), max(auc, float(inside.max(initial=0))))


def losses_of(model: nn.Module, images: Tensor, truth: Tensor) -> NDArray[np.float64]:
    """The training loss of each image. images: (N, 3, S, S) uint8; truth: (N, C, S, S) bool."""
    model.eval()
    with torch.inference_mode():
        parts = [
            segmentation_losses(model(image / 255), mask.float())
            for image, mask in zip(torch.split(images, 4), torch.split(truth, 4), strict=True)
        ]
    return torch.cat(parts).double().numpy()


def gradients_of(model: nn.Module, images: Tensor, truth: Tensor) -> list[Tensor]:
    """Gradient of a batch's loss for each parameter; it can be differentiated for `images`.

    images: (N, 3, S, S) float32 in [0, 1].
    """
    loss = segmentation_losses(model(images), truth.float()).mean()
    used = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, used, create_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def invert(
    gradients: Callable[[Tensor], Gradients],
    target: Gradients,
    shape: tuple[int, ...],
    *,
    steps: int,
    generator: Generator,
    smoothness: float = TOTAL_VARIATION,
    advance: Callable[[], None] = lambda: None,
) -> Tensor:
    """Images in [0, 1] of `shape` whose gradient points where `target` does.

    Geiping et al. 2020 (arXiv 2003.14053), equation 4: cosine distance and total variation,
    descended by the sign of the slope with Adam. gradients: of a batch, differentiable.
    """
    images = torch.rand(shape, generator=generator).requires_grad_()
    adam = torch.optim.Adam([images], lr=0.1)
    length = _norm(target)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / steps)) / 2
        seen = gradients(images)
        along = torch.stack([(a * b).sum() for a, b in zip(seen, target, strict=True)]).sum()
        distance = 1 - along / (_norm(seen) * length).clamp_min(1e-12)
        (slope,) = torch.autograd.grad(distance + smoothness * _variation(images), images)
        images.grad = slope.sign()
        adam.step()
        with torch.no_grad():
            images.clamp_(0, 1)
        advance()
    return images.detach()


def psnr_db(images: Tensor, truth: Tensor) -> float:
    """Peak signal to noise ratio of images in [0, 1]; 100 for equal ones.

    >>> psnr_db(torch.zeros(1), torch.full((1,), 0.1))
    20.0
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    ratio = peak_signal_noise_ratio(images.double(), truth.double(), data_range=1.0)
    return round(min(100.0, float(ratio)), 3)


def ssim(images: Tensor, truth: Tensor) -> float:
    """Structural similarity of images in [0, 1]; 1 for equal ones.

    Wang et al. 2004, with their Gaussian windows. images, truth: (N, C, S, S).

    >>> ssim(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
    1.0
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(images.double(), truth.double(), data_range=1.0)
    return round(float(found), 3)  # type: ignore[arg-type]  # a tuple only if more is asked for


def _variation(images: Tensor) -> Tensor:
    if images.dim() < 4:
        return images.new_zeros(())
    return images.diff(dim=2).abs().mean() + images.diff(dim=3).abs().mean()


def _norm(gradients: Gradients) -> Tensor:
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
