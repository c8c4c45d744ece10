"""Losses on logits, pure and differentiable."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def segmentation_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice of each image, averaged over classes.

    logits: (N, C, S, S); target: (N, C, S, S) in [0, 1], hard or soft. Returns (N,).

    Dice as in V-Net (Milletari et al. 2016, section 3), smoothed by one pixel so that an image
    without the class costs nothing when nothing is predicted.
    """
    logits = logits.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    predicted = logits.sigmoid()
    both, either = predicted * target, predicted + target
    overlap, size = both.sum((2, 3)), either.sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return (cross_entropy.mean((2, 3)) + dice).mean(1)


def proximal_term(parameters: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor:
    """Half the squared distance to the global weights (FedProx, Li et al. 2020, equation 2)."""
    distances = [(p - a).square().sum() for p, a in zip(parameters, anchors, strict=True)]
    return torch.stack(distances).sum() / 2
