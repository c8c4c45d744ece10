"""Predict with the U-Net++, averaged over several views of each image (test-time augmentation)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from knowmine.client.device import Compute, in_batches
from knowmine.client.training.bn_fusion import fused

BATCH = 16
STRIDE = 32
"""The U-Net++ takes images whose sides are multiples of this."""


class View(NamedTuple):
    """One way to show an image: turned, mirrored, enlarged."""

    turns: int = 0
    mirrored: bool = False
    scale: float = 1.0

    def side(self, px: int) -> int:
        """The side of an image of side `px` in this view: the nearest that a U-Net++ takes."""
        return px if self.scale == 1 else max(1, round(self.scale * px / STRIDE)) * STRIDE

    def of(self, images: Tensor) -> Tensor:
        """Images (N, 3, S, S) in this view, (N, 3, s, s)."""
        side = self.side(images.shape[-1])
        if side != images.shape[-1]:
            images = F.interpolate(images, size=(side, side), mode="bilinear")
        images = images.rot90(self.turns, (2, 3))
        return images.flip(3) if self.mirrored else images

    def back(self, seen: Tensor, px: int) -> Tensor:
        """A prediction (N, C, s, s) in this view, back in the model frame of side `px`."""
        seen = seen.flip(3) if self.mirrored else seen
        seen = seen.rot90(-self.turns, (2, 3))
        if seen.shape[-1] == px:
            return seen
        return F.interpolate(seen, size=(px, px), mode="bilinear", antialias=True)


MIRRORED = (View(), View(mirrored=True))
"""The views of a model in use: the image and its mirror image."""

VARIED = {
    "upright": (*MIRRORED, View(scale=1.2), View(mirrored=True, scale=1.2)),
    "any": (View(), View(turns=2), View(turns=1, scale=1.2), View(turns=3, scale=1.2)),
}
"""Test-time augmentation for pseudo-labels, by `training.orientation`: two views at the image's size
and two larger, at the multiple of 32 nearest to a fifth more (64 px stay 64, 96 become 128, 224 become
256). Views that differ more make mistakes less alike (docs/findings.md)."""


def predict(
    model: nn.Module,
    images: Tensor,
    compute: Compute,
    advance: Callable[[int], None] = lambda n: None,
    *,
    views: Sequence[View] = MIRRORED,
) -> NDArray[np.float32]:
    """Probabilities (N, C, S, S) float32 in [0, 1] of images (N, 3, S, S) uint8, model frame.

    The mean over `views`, equal ones counted once. `advance` is called after each batch. No images give (0, 0, S, S).
    """
    if not len(images):
        return np.zeros((0, 0, *images.shape[2:]), np.float32)
    px = images.shape[-1]
    lean = fused(model.to(compute.device).eval(), px)
    differ = {(view.turns, view.mirrored, view.side(px)): view for view in views}.values()

    @torch.inference_mode()  # not where the model moves: it may go on to learn
    def see(rows: slice) -> NDArray[np.float32]:
        x = images[rows].to(compute.device) / 255

        def through(view: View) -> Tensor:
            with compute.autocast():
                logits = lean(view.of(x).contiguous(memory_format=torch.channels_last))
            return view.back(logits.float().sigmoid(), px)

        seen = torch.stack([through(view) for view in differ])
        mean: NDArray[np.float32] = (seen.sum(0) / len(differ)).cpu().numpy()
        return mean

    parts = []
    for part in in_batches(len(images), BATCH, see):
        parts.append(part)
        advance(len(part))
    return np.concatenate(parts)
