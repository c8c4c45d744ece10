"""The U-Net++'s probabilities, averaged over mirrored views."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from knowmine.client.compute import Compute

BATCH = 16


@torch.inference_mode()
def predict(
    model: nn.Module,
    images: Tensor,
    compute: Compute,
    advance: Callable[[int], None] = lambda n: None,
) -> NDArray[np.float32]:
    """Probabilities (N, C, S, S) float32 in [0, 1] of images (N, 3, S, S) uint8, model frame.

    The mean over the image and its mirror image; `advance` hears of each finished batch. No
    images give (0, 0, S, S).
    """
    model.to(compute.device).eval()
    parts = []
    # torch.split gives one empty part of no images, and not every layer takes that.
    for batch in torch.split(images, BATCH) if len(images) else ():
        x = (batch.to(compute.device) / 255).contiguous(memory_format=torch.channels_last)
        with compute.autocast():
            seen = model(x).float().sigmoid()
            mirrored = model(x.flip(3)).float().sigmoid().flip(3)
        parts.append(((seen + mirrored) / 2).cpu().numpy())
        advance(len(batch))
    return np.concatenate(parts) if parts else np.zeros((0, 0, *images.shape[2:]), np.float32)
