"""Conv-BN fusion: merge batch norms into the convolutions before them, for prediction only.

While a network predicts, a batch norm is a scale and an offset for each channel, which a convolution
can apply itself: the same outputs up to rounding, in nine tenths of the time.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLOSE = 1e-3
"""Largest difference of a fused network's outputs, as a fraction of the largest output; rounding makes 2e-5."""


@torch.no_grad()
def fused(model: nn.Module, px: int) -> nn.Module:
    """A copy of `model` in eval mode whose batch norms are merged into its convolutions.

    px: side of the images that it will predict; some encoders take no other.
    A norm counts as a convolution's if it follows it in the list of layers. The forward pass of some
    networks takes another way, so the copy is compared with the original on one image, on the CPU. If
    the outputs differ, or there is nothing to fuse, the result is `model` itself.
    """
    if not any(True for module in model.modules() for _ in _pairs(module)):
        return model
    plain = copy.deepcopy(model).eval().cpu()
    lean = copy.deepcopy(plain)
    for module in lean.modules():
        for name, convolution, after, norm in list(_pairs(module)):
            setattr(module, name, fuse_conv_bn_eval(convolution, norm))
            setattr(module, after, _Activation(norm) if hasattr(norm, "act") else nn.Identity())
    image = torch.linspace(0, 1, 3 * px**2).view(1, 3, px, px)
    found, expected = lean(image), plain(image)
    if not ((found - expected).abs() <= CLOSE * expected.abs().max()).all():  # NaN fails
        return model
    return lean.to(next(model.parameters()).device).to(memory_format=torch.channels_last)


class _Activation(nn.Module):
    """What timm's batch norms do after the norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(x))
        return y


def _pairs(module: nn.Module) -> Iterator[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Each convolution among the layers of `module` that a batch norm follows, and that norm."""
    for (name, layer), (after, norm) in pairwise(module.named_children()):
        if (
            isinstance(layer, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and layer.out_channels == norm.num_features
            and norm.running_var is not None
        ):
            yield name, layer, after, norm
