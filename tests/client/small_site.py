"""A site small enough for tests: a fake SAM, a model that sees something, rounds of one step."""

import numpy as np
import torch

from knowmine.client.data.dataset import open_site
from knowmine.client.device import Compute
from knowmine.client.mining import fusion, quality
from knowmine.client.sam.interface import Decoded
from knowmine.client.settings import DataSettings, SamSettings
from knowmine.client.site.open import opened
from knowmine.client.training.inference import predict
from knowmine.shared.protocol import Calibration, TrainTask
from knowmine.shared.settings import ModelSettings, Plan
from knowmine.shared.unetplusplus import build_model, weights_of

CPU = Compute(torch.device("cpu"), torch.float32)
MODEL = ModelSettings(pretrained=False, decoder_channels=(8, 8, 8), image_px=64)
SAM_HELPS = Calibration(images=10, fused=(5.0, 8.0, 9.0, 8.0, 6.0))
SAM_HARMS = Calibration(images=10, fused=(5.0, 6.0, 7.0, 8.0, 9.0))


class FakeSam:
    """Segments every box as just that box, or half of it; records its calls."""

    name, digest, form, input_px = "fake", "5a" * 32, "", 1024

    def __init__(self):
        self.embedded, self.prompts = [], []

    def embed(self, image):
        self.embedded.append(image.shape)
        return np.full((256, 64, 64), image.mean(), np.float32)

    def decode(self, embeddings, prompts):
        self.prompts.append(prompts)
        steps = 4 * torch.arange(256) + 1.5
        x0, y0, x1, y1 = prompts.boxes.T[..., None]
        masks = [
            ((steps > y0) & (steps < y1))[:, :, None] & ((steps > x0) & (steps < end))[:, None, :]
            for end in (x1, (x0 + x1) / 2)
        ]
        logits = torch.where(torch.stack(masks, 1), 8.0, -8.0)
        return Decoded(logits, torch.tensor([[0.9, 0.6]]).expand(len(logits), 2))


def never():
    """Stands in for SAM where no code may load it."""
    raise AssertionError("SAM was loaded although the method does not use it")


def few_images_suffice(monkeypatch):
    """Let two calibration images measure SAM, and keep pseudo-labels of any quality."""
    monkeypatch.setattr(fusion, "MIN_CALIBRATION_IMAGES", 2)
    monkeypatch.setattr(quality, "MIN_QUALITY", 0.0)


def small_site(
    folder,
    home,
    *,
    name="lyon",
    sam=None,
    model=MODEL,
    max_bad_fraction=0.1,
    seal=None,
    network=None,
    cache=None,
    **split,
):
    """The site of a data folder. Its own folder is in `home`; without `sam` it must not need SAM."""
    data, hidden = open_site(name, folder, max_bad_fraction=max_bad_fraction, **split)
    (home / "site").mkdir(parents=True, exist_ok=True)
    return opened(
        data,
        hidden,
        model,
        DataSettings(max_image_px=10**6, max_bad_fraction=max_bad_fraction),
        SamSettings(cache=cache or home),
        folder=home / "site",
        open_sam=never if sam is None else lambda: sam,
        compute=CPU,
        seal=seal,
        network=network,
    )


def seeing_weights(images, fraction=0.3):
    """Weights of a U-Net++ that predicts foreground in about `fraction` of these images' pixels.

    images: (N, 3, S, S) uint8. With a fraction of 0 it predicts none anywhere.
    """
    weights = weights_of(build_model(MODEL, seed=0))
    model = build_model(MODEL, seed=0)
    seen = predict(model, images, CPU).clip(1e-6, 1 - 1e-6)
    logits = np.log(seen / (1 - seen))
    head, bias = "segmentation_head.0.weight", "segmentation_head.0.bias"
    gain = np.float32(3 / logits.std())
    level = np.quantile(logits, 1 - fraction) if fraction else logits.max() + 30 / gain
    weights[head] = weights[head] * gain
    weights[bias] = ((weights[bias] - level) * gain).astype(np.float32)
    return weights


def plan(method="knowmine", *, seed=0, training=None, **mining):
    """Rounds of one tiny step that mine all images, from the first round on."""
    return Plan.model_validate(
        {
            "method": method,
            "seed": seed,
            "model": MODEL,
            "training": {"steps": 1, "batch": 2, **(training or {})},
            "mining": {"warmup_rounds": 0, "images": 0, **mining},
        }
    )


def task(weights, plan, round_=2, rounds=4, calibration=SAM_HELPS):
    """The server's task for a training round."""
    return TrainTask(round_, rounds, plan, weights, calibration)
