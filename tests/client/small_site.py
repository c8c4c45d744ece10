"""A site small enough for tests: a fake SAM, a model that sees something, a round in no time."""

import numpy as np
import torch

from knowmine.client.data.dataset import open_site
from knowmine.client.data.scoring import Scorer
from knowmine.client.device import Compute
from knowmine.client.sam.model import Decoded
from knowmine.client.site.site import Site
from knowmine.client.training.inference import predict
from knowmine.shared.protocol import Calibration, TrainTask
from knowmine.shared.settings import ModelSettings, Plan
from knowmine.shared.unetplusplus import build_model, weights_of

CPU = Compute(torch.device("cpu"), torch.float32)
MODEL = ModelSettings(pretrained=False, decoder_channels=(8, 8, 8), image_px=64)
SAM_HELPS = Calibration(images=10, fused=(5.0, 8.0, 9.0, 8.0, 6.0))
SAM_HARMS = Calibration(images=10, fused=(5.0, 6.0, 7.0, 8.0, 9.0))


class FakeSam:
    """Finds in every box just that box, or a box half as wide; remembers what it was asked."""

    name, digest, form = "fake", "5a" * 32, ""

    def __init__(self):
        self.embedded, self.asked = [], []

    def embed(self, image):
        self.embedded.append(image.shape)
        return np.full((256, 64, 64), image.mean(), np.float32)

    def decode(self, embeddings, prompts):
        self.asked.append(prompts)
        steps = 4 * torch.arange(256) + 1.5
        x0, y0, x1, y1 = prompts.boxes.T[..., None]
        masks = [
            ((steps > y0) & (steps < y1))[:, :, None] & ((steps > x0) & (steps < end))[:, None, :]
            for end in (x1, (x0 + x1) / 2)
        ]
        logits = torch.where(torch.stack(masks, 1), 8.0, -8.0)
        return Decoded(logits, torch.tensor([[0.9, 0.6]]).expand(len(logits), 2))


def never():
    """For methods that have no use for SAM."""
    raise AssertionError("SAM was loaded although nobody may ask it")


def small_site(
    folder,
    home,
    *,
    name="lyon",
    sam=None,
    model=MODEL,
    max_bad_share=0.1,
    seal=None,
    network=None,
    **split,
):
    """The site of a data folder, at home in another; without `sam` it must not be needed."""
    data, hidden = open_site(name, folder, max_bad_share=max_bad_share, **split)
    (home / "site").mkdir(parents=True, exist_ok=True)
    return Site(
        data,
        Scorer(hidden, model.classes),
        model,
        folder=home / "site",
        embeddings=home / "embeddings",
        open_sam=never if sam is None else lambda: sam,
        compute=CPU,
        max_image_px=10**6,
        max_bad_share=max_bad_share,
        seal=seal,
        network=network,
    )


def seeing_weights(images, share=0.3):
    """Weights with which a fresh U-Net++ sees something in about `share` of these images' pixels.

    images: (N, 3, S, S) uint8. A share of 0 sees nothing anywhere.
    """
    weights = weights_of(build_model(MODEL, seed=0))
    model = build_model(MODEL, seed=0)
    seen = predict(model, images, CPU).clip(1e-6, 1 - 1e-6)
    logits = np.log(seen / (1 - seen))
    head, bias = "segmentation_head.0.weight", "segmentation_head.0.bias"
    gain = np.float32(3 / logits.std())
    level = np.quantile(logits, 1 - share) if share else logits.max() + 30 / gain
    weights[head] = weights[head] * gain
    weights[bias] = ((weights[bias] - level) * gain).astype(np.float32)
    return weights


def plan(method="knowmine", *, seed=0, training=None, **mining):
    """One tiny step a round; all images are mined and kept, and two judge, unless told otherwise."""
    return Plan.model_validate(
        {
            "method": method,
            "seed": seed,
            "model": MODEL,
            "training": {"steps": 1, "batch": 2, **(training or {})},
            "mining": {
                "warmup_rounds": 0,
                "images": 0,
                "keep_first": 1.0,
                "keep_last": 1.0,
                "min_quality": 0.0,
                "min_probe_images": 2,
                "tune_steps": 0,
                **mining,
            },
        }
    )


def task(weights, plan, round_=2, rounds=4, calibration=SAM_HELPS, decoder=None):
    """What a server would ask."""
    return TrainTask(round_, rounds, plan, weights, calibration, decoder or {})
