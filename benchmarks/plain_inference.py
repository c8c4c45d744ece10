"""The straightforward way to segment one image: smp's U-Net++ in PyTorch, float32.

    python benchmarks/plain_inference.py MODEL.safetensors IMAGE OUT.png

The other side of `bench_inference`: what one writes by the README of segmentation-models-pytorch,
with the same two mirrored views, so that the masks are equal.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

PX = 224


def load(file: Path) -> Any:
    """The network with its weights."""
    model = smp.UnetPlusPlus(
        "tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=(128, 64, 32, 16, 8)
    )
    model.load_state_dict(load_file(file))
    return model.eval()


@torch.no_grad()
def segment(model: Any, image_file: Path, out: Path) -> None:
    """Image file to mask file."""
    image = Image.open(image_file).convert("RGB")
    small = image.resize((PX, PX), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 255
    x = (x - 0.5) / 0.5
    seen = model(x).sigmoid() + model(x.flip(3)).sigmoid().flip(3)
    full = F.interpolate(seen / 2, (image.height, image.width), mode="bilinear")
    mask = (full[0, 0] > 0.5).numpy().astype(np.uint8) * np.uint8(255)
    Image.fromarray(mask).save(out)


if __name__ == "__main__":
    segment(load(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
