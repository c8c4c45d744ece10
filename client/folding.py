"""Fold batch norms into the convolutions before them, for a network that only predicts.

While a network predicts, a batch norm is a scale and an offset for each channel, which a convolution can
do by itself: the same probabilities in nine tenths of the time.
"""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PROBE_PX = 64
"""The side of the image on which a folded network is held against its original."""


class _Activation(nn.Module):
    """What timm's batch norms do after the norm."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.drop, self.act = norm.drop, norm.act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(x))
        return y


@torch.no_grad()
def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode without batch norms, or `model` itself where none can be folded.

    Layers say nothing of who calls whom, so a norm counts as a convolution's where it follows in the list
    of layers. A network whose forward takes another way is found out, for the copy must say what
    the original says, up to rounding, of one image (1, 3, 64, 64).
    """
    plain = model.eval()
    lean = copy.deepcopy(plain)
    if not sum(_fold_layers(module) for module in lean.modules()):
        return model
    weight = next(model.parameters())
    ramp = torch.linspace(0, 1, 3 * PROBE_PX**2, device=weight.device, dtype=weight.dtype)
    image = ramp.view(1, 3, PROBE_PX, PROBE_PX)
    said, meant = lean(image), plain(image)
    same = bool(((said - meant).abs() <= 1e-3 * meant.abs().max()).all())  # never so of NaN
    return lean.to(memory_format=torch.channels_last) if same else model


def _fold_layers(module: nn.Module) -> int:
    """Fold what can be among the layers of `module`; how many norms that were."""
    layers, count = list(module.named_children()), 0
    for (name, layer), (after, norm) in pairwise(layers):
        if not (isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
            continue
        if layer.out_channels == norm.num_features and norm.running_var is not None:
            setattr(module, name, fuse_conv_bn_eval(layer, norm))
            setattr(module, after, _Activation(norm) if hasattr(norm, "act") else nn.Identity())
            count += 1
    return count
