"""Write the finished network as safetensors, TorchScript or ONNX.

monai_bundle.py writes MONAI's format.
"""

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from knowmine.shared.errors import RunFailed
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import UnetPlusPlus, weights_of
from knowmine.shared.weights import save_weights

OPSET: Final = 18
"""Oldest opset that PyTorch's exporter writes without conversion; needs ONNX Runtime 1.14."""

MAX_LOGIT_ERROR = 0.01
"""Largest difference of logits between PyTorch and the exported graph; it changes a probability by
at most .0025."""

INPUT, OUTPUT = "images", "logits"


def write_safetensors(folder: Path, model: UnetPlusPlus) -> str:
    """Write the weights by name; a reader builds the network from the card's `plan.model`."""
    save_weights(folder / "model.safetensors", weights_of(model))
    return "model.safetensors"


def write_torchscript(folder: Path, model: UnetPlusPlus, settings: ModelSettings) -> str:
    """Write a traced module for `torch.jit.load` in Python or C++."""
    with warnings.catch_warnings(), torch.inference_mode():
        # PyTorch 2.9 and later warn that TorchScript is deprecated.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, _example(settings))  # type: ignore[no-untyped-call]  # it has no types
        torch.jit.save(traced, str(folder / "model.pt"))
    return "model.pt"


def write_onnx(folder: Path, model: UnetPlusPlus, settings: ModelSettings) -> str:
    """Write an ONNX graph: `images` (N, 3, S, S) float32 in [0, 1] to `logits` (N, classes, S, S).

    The graph includes the normalisation. Raises `RunFailed` if ONNX Runtime's logits differ from
    PyTorch's.
    """
    file = folder / "model.onnx"
    example = _example(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from parts of the exporter
        torch.onnx.export(
            model,
            (example,),
            str(file),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("n", min=1, max=1024)}},
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    with torch.inference_mode():
        expected = model(example).numpy()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    seen = session.run([OUTPUT], {INPUT: example.numpy()})[0]
    error = float(np.abs(seen - expected).max())
    if not error <= MAX_LOGIT_ERROR:
        raise RunFailed(
            f"the ONNX model's logits differ from PyTorch's by {error:.3g}, expected at most "
            f"{MAX_LOGIT_ERROR}: export to safetensors or torchscript, and report this encoder"
        )
    return "model.onnx"


def _example(settings: ModelSettings) -> Tensor:
    """Two images of noise; with one, the exporter would make the batch size a constant."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, settings.image_px, settings.image_px, generator=generator)
