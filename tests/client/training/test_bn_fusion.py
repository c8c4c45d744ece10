"""A network that only predicts needs no batch norms, and predicts the same without them."""

import pytest
import torch
from torch import nn

from knowmine.client.training.bn_fusion import fused
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import build_model


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.fixture(params=["tu-tf_efficientnet_lite0", "resnet18", "densenet121"])
def model(request):
    """A small U-Net++ whose batch norms have seen something."""
    settings = {"encoder": request.param, "pretrained": False, "decoder_channels": [32, 16, 8]}
    made = build_model(ModelSettings.model_validate(settings), 0).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(2):
            made(torch.rand(4, 3, 64, 64, generator=generator))
    return made


@torch.no_grad()
def test_a_folded_network_says_the_same(model):
    """To rounding, of an image it was not held against, and most of its norms are gone."""
    before = norms(model)
    lean = fused(model, 64)
    some = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(lean(some), model.eval()(some), rtol=1e-3, atol=1e-3)
    assert norms(lean) < before / 2
    assert norms(model) == before  # the one that goes on learning keeps its own


def test_the_default_network_has_no_norm_left():
    """All seventy of them."""
    model = build_model(ModelSettings(pretrained=False), 0)
    assert norms(model) == 70
    assert norms(fused(model, 64)) == 0


def test_an_encoder_of_one_size_is_asked_at_that_size():
    """Swin takes images of 224 px alone; its U-Net++'s decoder has norms to fold."""
    settings = {"encoder": "tu-swin_tiny_patch4_window7_224", "pretrained": False}
    settings |= {"decoder_channels": [32, 16, 8, 8], "image_px": 224}
    model = build_model(ModelSettings.model_validate(settings), 0)
    assert norms(model) and not norms(fused(model, 224))


class Roundabout(nn.Module):
    """Lists its norm behind its convolution, and takes another way."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        nn.init.constant_(self.norm.bias, 0.5)

    def forward(self, x):
        return self.norm(self.convolution(x).relu())


@pytest.mark.parametrize(
    "model", [Roundabout(), nn.Sequential(nn.Conv2d(3, 1, 1), nn.Sigmoid()), nn.Identity()]
)
def test_what_cannot_be_folded_stays_itself(model):
    """A norm that does not follow its convolution in truth, and networks without one."""
    assert fused(model, 64) is model


def test_weights_that_are_no_numbers_are_not_judged():
    """Nothing equals NaN: the network stays as it is, and its output shows the fault."""
    convolution = nn.Conv2d(3, 2, 1)
    nn.init.constant_(convolution.weight, float("nan"))
    model = nn.Sequential(convolution, nn.BatchNorm2d(2))
    assert fused(model, 64) is model
