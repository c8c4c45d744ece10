"""Teach the U-Net++'s encoder what SAM sees, on all images of the site, before any label.

SAM's embedding of an image says what is where in it. An encoder that has learnt to say the same of
its own small view has learnt to see, without a label; what a lesion is, labels then teach faster.
An encoder of random weights gains by it at equal steps on labels; as much time on labels gained more,
and one that ImageNet taught gains nothing (docs/results.md), so it is off. Feature distillation as in
FitNets (Romero et al. 2015), from SAM's embeddings as in MobileSAM (Zhang et al. 2023).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from knowmine.client.device import Compute, seeded
from knowmine.client.sam.frames import SAM_PX, Frames
from knowmine.client.sam.model import EMBEDDING_SHAPE
from knowmine.client.training.augmentation import random_maps, recolour
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Progress

BATCH = 16
GRID = 12
"""Side of what is compared, for any size of image: finer made no difference to what was learnt."""
KEPT_GRID = 16
"""Side of what is kept of each embedding: 131 kB an image."""
STAGES = 3
"""Of the encoder, its deepest: together they say where and what."""
_WARMUP_STEPS = 20


def pooled(embedding: Tensor, frames: Frames) -> Tensor:
    """What an embedding (256, 64, 64) says of the image alone, without its padding.

    Returns (256, KEPT_GRID, KEPT_GRID) float16, model frame.
    """
    cell = SAM_PX // EMBEDDING_SHAPE[1]
    height, width = (math.ceil(side / cell) for side in frames.sam_size())
    seen = embedding[None, :, :height, :width].float()
    return F.interpolate(seen, (KEPT_GRID, KEPT_GRID), mode="area")[0].half()


def distil(
    model: Any,
    images: Tensor,
    seen: Tensor,
    *,
    steps: int,
    learning_rate: float,
    orientation: str,
    generator: Generator,
    compute: Compute,
    progress: Progress,
) -> float:
    """Train the encoder of `model` in place to foretell `seen`; return the last steps' mean loss.

    model: a `UnetPlusPlus`, or what has its encoder, mean and std.
    images: (N, 3, S, S) uint8, model frame; seen: (N, 256, G, G) float16, as `pooled` gives it. A
    small head between both is new each time and thrown away.
    Raises `RunFailed` when the loss stops being a number.
    """
    mean = seen.float().mean((0, 2, 3), keepdim=True)
    deviation = seen.float().std((0, 2, 3), keepdim=True).clamp_min(1e-6)
    model.to(compute.device).train()
    # A layer's first weights come from torch's own generator.
    with seeded(int(torch.randint(2**31, (), generator=generator)), torch.device("cpu")):
        head = _head(sum(model.encoder.out_channels[-STAGES:])).to(compute.device)
    parameters = [*model.encoder.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, learning_rate, weight_decay=1e-2, fused=True)
    losses = list[float]()
    progress.start("learning what SAM sees", steps)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * _rate(step, steps)
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        maps = random_maps(BATCH, generator, orientation)
        views = _moved(images[rows] / 255, maps, images.shape[-1])
        views = recolour(views, generator, torch.zeros(BATCH, dtype=torch.bool))
        targets = _moved((seen[rows].float() - mean) / deviation, maps, GRID)
        inside = _moved(torch.ones(BATCH, 1, GRID, GRID), maps, GRID).to(compute.device)
        with compute.autocast():
            told = head(_features(model, views.to(compute.device)))
        errors = F.smooth_l1_loss(told.float(), targets.to(compute.device), reduction="none")
        loss = (errors.mean(1, keepdim=True) * inside).sum() / inside.sum().clamp_min(1)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RunFailed(
                f"learning what SAM sees gave a loss of {losses[-1]} at step {step + 1}; lower "
                "training.learning_rate, or set mining.distil_steps to 0"
            )
        progress.advance()
    progress.done()
    last = losses[-20:]
    return sum(last) / len(last)


def _features(model: Any, views: Tensor) -> Tensor:
    stages = model.encoder((views - model.mean) / model.std)[-STAGES:]
    sized = [F.interpolate(x, (GRID, GRID), mode="bilinear", align_corners=False) for x in stages]
    return torch.cat(sized, 1)


def _head(channels: int) -> nn.Sequential:
    wide = EMBEDDING_SHAPE[0]
    return nn.Sequential(
        nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, wide, 1)
    )


def _moved(planes: Tensor, maps: Tensor, px: int) -> Tensor:
    """(N, C, px, px): the planes under affine maps; zero where they do not reach."""
    grid = F.affine_grid(maps, [len(planes), 1, px, px], align_corners=False)
    return F.grid_sample(planes, grid, align_corners=False)


def _rate(step: int, steps: int) -> float:
    """Part of the peak learning rate: a short climb, then a cosine."""
    cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2
    return cosine * min(1.0, (step + 1) / _WARMUP_STEPS)
