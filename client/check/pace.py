"""Estimate how long a round takes here, from a few real steps, encodings and prompts."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from knowmine.client.check.findings import Finding
from knowmine.client.device import Compute, pick_compute, settle
from knowmine.client.mining.prompts import joined, prompts_for
from knowmine.client.paths import cache_of
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import embedding_shape
from knowmine.client.sam.weights import KNOWN, find_weights
from knowmine.client.settings import ClientSettings
from knowmine.client.site.open import sam_opener
from knowmine.client.training.bn_fusion import fused
from knowmine.client.training.inference import VARIED, predict
from knowmine.client.training.loop import Examples, train
from knowmine.shared.errors import KnowmineError
from knowmine.shared.log import Silent
from knowmine.shared.settings import MiningSettings, TrainingSettings
from knowmine.shared.unetplusplus import build_model, weights_of

STEPS = 3
PROMPTED = 4
"""Images in one call of SAM's decoder; the time of one image is that divided by it."""
HEIGHT, WIDTH = 480, 640


def check_pace(
    settings: ClientSettings, unlabelled: int, upload_mbit_s: float | None = None
) -> list[Finding]:
    """Seconds of a round that trains on labels alone, and of a round that mines.

    Measured with the plan's defaults, which the coordinator may change. unlabelled: images to mine.
    upload_mbit_s: as measured by `check_network`, or None; the server is not contacted here.
    """
    settle(settings.machine.threads)
    training, mining = TrainingSettings(), MiningSettings()
    model = build_model(settings.model.model_copy(update={"pretrained": False}), seed=0)
    compute = pick_compute(settings.machine.device)
    step_s = _step_seconds(settings, model, compute)
    plain = training.steps * step_s
    facts: dict[str, Any] = {"step_seconds": round(step_s, 4)}
    what = (
        "by the default plan, which the coordinator may shorten, a round on labels alone takes about "
        f"{_time(plain)}: {training.steps} steps of {step_s:.2f} s"
    )
    if upload_mbit_s:
        megabits = 8 * sum(array.nbytes for array in weights_of(model).values()) / 1e6
        facts["transfer_seconds"] = round(2 * megabits / upload_mbit_s, 1)
        what += f", and {_time(facts['transfer_seconds'])} for the weights there and back"
    found = [Finding("pace", "good", what, facts=facts)]
    mined = min(unlabelled, mining.images)
    if not mined:
        return found
    if settings.sam.weights in KNOWN and not _is_here(settings):
        what = f"the time that SAM takes for {mined} images a round is unknown until it is fetched"
        return [*found, Finding("pace", "note", what)]
    encode_s, prompt_s = _sam_seconds(settings)
    predict_s = _predict_seconds(settings, model, compute)
    later = mined * (predict_s + prompt_s)
    what = (
        f"a round that mines {mined} images takes about {_time(later)} more than one on labels "
        f"alone, and {_time(mined * encode_s)} more when SAM first encodes them "
        f"({encode_s:.1f} s each)"
    )
    facts = {
        "images_a_round": mined,
        "predict_seconds": round(predict_s, 3),
        "encode_seconds": round(encode_s, 3),
        "prompt_seconds": round(prompt_s, 3),
        "first_mining_seconds": round(later + mined * encode_s),
        "later_mining_seconds": round(later),
    }
    return [*found, Finding("pace", "good", what, facts=facts)]


def _step_seconds(settings: ClientSettings, model: torch.nn.Module, compute: Compute) -> float:
    plan, px = TrainingSettings(steps=STEPS), settings.model.image_px
    some = Examples(
        torch.zeros((plan.batch, 3, px, px), dtype=torch.uint8),
        torch.zeros((plan.batch, settings.model.classes, px, px), dtype=torch.uint8),
        torch.ones(plan.batch),
    )
    none = Examples.none(settings.model.classes, px)

    def steps() -> float:
        return train(
            model,
            some,
            none,
            plan,
            MiningSettings(),
            part=(0.0, 1.0),
            generator=torch.Generator().manual_seed(0),
            compute=compute,
            progress=Silent(),
        )

    steps()
    return _seconds(steps) / STEPS


def _predict_seconds(settings: ClientSettings, model: torch.nn.Module, compute: Compute) -> float:
    """The U-Net++'s prediction of one image, in all views that a pseudo-label is made from."""
    px = settings.model.image_px
    images = torch.zeros((PROMPTED, 3, px, px), dtype=torch.uint8)
    views = VARIED[TrainingSettings().orientation]
    lean = fused(model.to(compute.device), px)  # once in a round of many images

    def run() -> object:
        return predict(lean, images, compute, views=views)

    run()
    return _seconds(run) / PROMPTED


def _sam_seconds(settings: ClientSettings) -> tuple[float, float]:
    """Encoding one image, and decoding the prompt of one.

    The time does not depend on what is in an image, so none of the site's is used.
    """
    sam = sam_opener(settings.sam, settings.machine, settings.model.image_px)()
    px = settings.model.image_px
    frames = Frames(HEIGHT, WIDTH, px, sam.input_px)
    y, x = np.mgrid[:px, :px] / px
    disc = np.hypot(y - 0.5, x - 0.5) < 0.2
    probabilities = np.where(disc, 0.9, 0.1)[None].astype(np.float32)
    prompts = joined([prompts_for(probabilities, frames)] * PROMPTED)
    assert prompts is not None, "a disc gives a prompt"
    embeddings = torch.zeros((PROMPTED, *embedding_shape(sam.input_px)))

    def encode() -> object:
        return sam.embed(np.zeros((HEIGHT, WIDTH, 3), np.uint8))

    def decode() -> object:
        return sam.decode(embeddings, prompts)

    encode(), decode()  # the first call of each pays for what only it needs
    return _seconds(encode), _seconds(decode) / PROMPTED


def _is_here(settings: ClientSettings) -> bool:
    name, cache = settings.sam.weights, cache_of(settings.sam)
    try:
        return bool(list(cache.glob(f"{name}*"))) and find_weights(name, cache) is not None
    except KnowmineError:
        return False


def _seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _time(seconds: float) -> str:
    """A duration in a unit that people use.

    >>> _time(40), _time(600), _time(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
