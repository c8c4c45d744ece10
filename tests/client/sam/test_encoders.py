"""An encoder is refused unless it is SAM's, and runs on the device that was chosen."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from knowmine.client.device import Compute
from knowmine.client.sam.encoders import onnx_encoder, scaled_and_padded, vit_encoder
from knowmine.shared.errors import WeightsError

CPU = Compute(torch.device("cpu"), torch.float32)
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


def test_an_image_is_scaled_normalised_and_padded():
    """As in segment-anything: the longest side becomes 1024 pixels, the rest is zeros."""
    image = np.random.default_rng(0).integers(0, 256, (300, 480, 3), np.uint8)
    padded = scaled_and_padded(image)
    theirs = ResizeLongestSide(1024).apply_image(image)
    expected = ((theirs - MEAN) / STD).transpose(2, 0, 1)
    assert padded.shape == (1, 3, 1024, 1024) and padded.dtype == np.float32
    assert np.allclose(padded[0, :, :640], expected, atol=1e-5)
    assert not padded[0, :, 640:].any()


def model_of(shape):
    """An ONNX file's content: it gives back its input of this shape."""
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ("image", "embedding")
    ]
    node = onnx.helper.make_node("Identity", ["image"], ["embedding"])
    graph = onnx.helper.make_graph([node], "encoder", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return model.SerializeToString()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "encoder.onnx"


def test_an_onnx_encoder_runs(file):
    """What the file gives for one image, without the batch dimension."""
    file.write_bytes(model_of([1, 3, 1024, 1024]))
    padded = np.random.default_rng(0).random((1, 3, 1024, 1024), np.float32)
    assert np.array_equal(onnx_encoder(file, torch.device("cpu"), 1)(padded), padded[0])


def test_an_onnx_file_with_another_input_is_no_encoder(file):
    """The message has the expected shape."""
    file.write_bytes(model_of([1, 3, 512, 512]))
    with pytest.raises(WeightsError, match=r"takes \['image'\]; .*shape \(1, 3, 1024, 1024\)"):
        onnx_encoder(file, torch.device("cpu"), 1)


def test_a_file_that_onnx_runtime_cannot_load_is_named(file):
    """With ONNX Runtime's reason."""
    file.write_bytes(b"no such format")
    with pytest.raises(WeightsError, match=r"encoder\.onnx cannot be loaded by ONNX Runtime"):
        onnx_encoder(file, torch.device("cpu"), 1)


@pytest.mark.parametrize(("device", "number"), [("cuda", "0"), ("cuda:1", "1")])
def test_the_encoder_runs_on_the_chosen_card(file, monkeypatch, device, number):
    """By default ONNX Runtime takes the first card, and rounds to ten bits on it."""
    seen = []

    class Refuses:
        def __init__(self, file, options, providers):
            seen.extend(providers)
            raise RuntimeError("no card here")

    monkeypatch.setattr(
        onnxruntime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", Refuses)
    with pytest.raises(WeightsError, match="no card here"):
        onnx_encoder(file, torch.device(device), 1)
    options = {"device_id": number, "use_tf32": "0"}
    assert seen == [("CUDAExecutionProvider", options), ("CPUExecutionProvider", {})]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "width unknown"),
        ({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 320)}, r"width 320; .*ViT-B \(768\)"),
        (
            {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)},
            "do not fit SAM's image_encoder.*Missing key",
        ),
    ],
)
def test_weights_that_are_no_vit_of_sam_are_refused(tmp_path, state, message):
    """None at all, of another width, or incomplete."""
    with pytest.raises(WeightsError, match=message):
        vit_encoder(tmp_path / "weights.pth", state, CPU)
