"""Random views of a batch, all on tensors: weak for labels, strong for the student's side.

A pseudo-label is made on the image as it is and learnt from a distorted one, so that the
network is taught what it could not already say (FixMatch, Sohn et al. 2020; for segmentation
ST++, Yang et al. 2022).
"""

import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def augment(
    images: Tensor,
    targets: Tensor,
    generator: Generator,
    *,
    orientation: Literal["upright", "any"],
    strong: Tensor,
) -> tuple[Tensor, Tensor]:
    """The same random geometry for images and targets, then colour for the images alone.

    images: (N, 3, S, S) in [0, 1]; targets: (N, C, S, S) in [0, 1];
    strong: (N,) bool, the images that get the strong colours. What leaves the frame is black
    and background.
    """
    grid = F.affine_grid(
        random_maps(len(images), generator, orientation), list(images.shape), align_corners=False
    )
    images = F.grid_sample(images, grid, align_corners=False)
    targets = F.grid_sample(targets, grid, align_corners=False)
    images = recolour(images, generator, strong)
    return images.contiguous(memory_format=torch.channels_last), targets


def cut_mix(
    images: Tensor, targets: Tensor, generator: Generator, which: Tensor, chance: float
) -> tuple[Tensor, Tensor]:
    """With `chance`, a view of `which` gets a box of another image of the batch, target and all.

    CutMix (Yun et al. 2019) as used for segmentation by French et al. 2020: what surrounds a
    lesion no longer gives its outline away. The box has a tenth to half of the image's area.
    which: (N,) bool, the images that may get one.
    """
    n, size = len(images), images.shape[-1]
    images, targets = images.clone(memory_format=torch.preserve_format), targets.clone()
    source = torch.roll(images, 1, 0), torch.roll(targets, 1, 0)
    chosen = (_uniform(n, generator, 0, 1) < chance) & which
    area, shape = _uniform(n, generator, 0.1, 0.5), _uniform(n, generator, -0.5, 0.5).exp()
    height, width = (area * shape).sqrt().clamp_max(1), (area / shape).sqrt().clamp_max(1)
    top = _uniform(n, generator, 0, 1) * (1 - height)
    left = _uniform(n, generator, 0, 1) * (1 - width)
    for i in chosen.nonzero()[:, 0].tolist():
        y, x = int(top[i] * size), int(left[i] * size)
        box = np.s_[:, y : y + int(height[i] * size), x : x + int(width[i] * size)]
        images[i][box], targets[i][box] = source[0][i][box], source[1][i][box]
    return images, targets


def random_maps(n: int, generator: Generator, orientation: str) -> Tensor:
    """(N, 2, 3) affine maps: mirror, turn, scale and shift."""
    any_way = orientation == "any"
    angle = (
        _uniform(n, generator, -math.pi, math.pi) if any_way else _uniform(n, generator, -0.3, 0.3)
    )
    scale = _uniform(n, generator, 0.8, 1.25)
    mirror = torch.where(_uniform(n, generator, 0, 1) < 0.5, -1.0, 1.0)
    shift = torch.stack([_uniform(n, generator, -0.12, 0.12) for _ in range(2)], 1)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack(
        [torch.stack([mirror * cos, -sin], 1), torch.stack([mirror * sin, cos], 1)], 1
    )
    return torch.cat([rows, shift[:, :, None]], 2)


def recolour(images: Tensor, generator: Generator, strong: Tensor) -> Tensor:
    """Brightness, contrast and tint for all; further, with blur and noise, for the strong."""
    n = len(images)
    reach = torch.where(strong, 1.0, 0.5)

    def jitter(width: float, channels: int = 1) -> Tensor:
        draw = _uniform(n * channels, generator, -width, width).view(n, channels, 1, 1)
        return draw * reach.view(n, 1, 1, 1)

    mean = images.mean((1, 2, 3), keepdim=True)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * (1 + jitter(0.5))
    images = mean + (images - mean) * (1 + jitter(0.5))
    images = images * (1 + jitter(0.15, 3)) + jitter(0.2)
    images = images.clamp(0, 1) ** (jitter(0.5)).exp2()
    blur = (_uniform(n, generator, 0, 1) < 0.5) & strong
    if blur.any():
        images = torch.where(blur.view(n, 1, 1, 1), F.avg_pool2d(images, 5, 1, 2), images)
    noise = torch.randn(images.shape, generator=generator) * 0.03
    images = torch.where(strong.view(n, 1, 1, 1), images + noise, images)
    return images.clamp(0, 1)


def _uniform(n: int, generator: Generator, low: float, high: float) -> Tensor:
    return torch.rand(n, generator=generator) * (high - low) + low
