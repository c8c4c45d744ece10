"""The U-Net++'s probabilities, averaged over mirrored views."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knowmine.client.compute import Compute, in_batches

BATCH = 16


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    compute: Compute,
    advance: Callable[[int], None] = lambda n: None,
    *,
    upside_down: bool = False,
) -> NDArray[np.float32]:
    """Probabilities (N, C, S, S) float32 in [0, 1] of images (N, 3, S, S) uint8, model frame.

    The mean over the image and its mirror image; `upside_down` adds both turned by half a circle,
    for images that have no up and down. `advance` hears of each finished batch. No images give
    (0, 0, S, S).
    """
    views: tuple[tuple[int, ...], ...] = ((), (3,), *(((2,), (2, 3)) if upside_down else ()))
    model.to(compute.device).eval()

    def see(rows: slice) -> NDArray[np.float32]:
        x = images[rows].to(compute.device) / 255
        x = x.contiguous(memory_format=torch.channels_last)
        with compute.autocast():
            seen = [model(x.flip(axes)).float().sigmoid().flip(axes) for axes in views]
        mean: NDArray[np.float32] = (torch.stack(seen).sum(0) / len(views)).cpu().numpy()
        return mean

    parts = []
    for part in in_batches(len(images), BATCH, see):
        parts.append(part)
        advance(len(part))
    return np.concatenate(parts) if parts else np.zeros((0, 0, *images.shape[2:]), np.float32)
