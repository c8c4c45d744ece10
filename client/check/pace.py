"""How long a round will take here, from a few real steps, real looks and one real question."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from knowmine.client.check.findings import Finding
from knowmine.client.device import Compute, pick_compute, settle
from knowmine.client.mining.finetune import BATCH as LESSONS
from knowmine.client.mining.finetune import Lessons, tune
from knowmine.client.mining.prompts import ask
from knowmine.client.mining.refine import joined
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.weights import KNOWN, find_weights
from knowmine.client.settings import ClientSettings
from knowmine.client.site.open import cache_of, sam_opener
from knowmine.client.training.bn_fusion import folded
from knowmine.client.training.inference import VARIED, predict
from knowmine.client.training.loop import Examples, train
from knowmine.shared.errors import KnowmineError
from knowmine.shared.log import Silent
from knowmine.shared.settings import MiningSettings, TrainingSettings
from knowmine.shared.unetplusplus import build_model, weights_of

STEPS = 3
ASKED = 4
"""Images in one question to SAM, whose time is that of one image when divided."""
HEIGHT, WIDTH = 480, 640


def check_pace(
    settings: ClientSettings, labelled: int, unlabelled: int, upload_mbit_s: float | None = None
) -> list[Finding]:
    """Seconds of a round on labels alone, of tuning SAM the first time, and of rounds that mine.

    With the plan's defaults, which the coordinator may change. SAM is first tuned when it is first
    asked: to score the first round where there is a probe set. labelled and unlabelled: images.
    The server is asked for nothing: upload_mbit_s is what the look at the network found, or None.
    """
    settle(settings.machine.threads)
    training, mining = TrainingSettings(), MiningSettings()
    model = build_model(settings.model.model_copy(update={"pretrained": False}), seed=0)
    compute = pick_compute(settings.machine.device)
    step_s = _step_seconds(settings, model, compute)
    plain = training.steps * step_s
    facts: dict[str, Any] = {"step_seconds": round(step_s, 4)}
    what = (
        f"by the default plan, which the coordinator may shorten, a round on labels alone takes about "
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
        what = f"how long SAM takes for {mined} images a round is not known before it is here"
        return [*found, Finding("pace", "note", what)]
    look_s, ask_s, tune_s = _sam_seconds(settings)
    see_s = _seeing_seconds(settings, model, compute)
    taught = min(labelled, LESSONS * max(mining.tune_steps, mining.tune_again))
    tuning = taught * look_s + mining.tune_steps * tune_s
    later = mined * (see_s + ask_s) + mining.tune_again * tune_s
    first = later + mined * look_s
    what = (
        f"SAM is tuned when it is first asked, which takes about {_time(tuning)}: it looks at "
        f"{taught} labelled images ({look_s:.1f} s each) and learns for {mining.tune_steps} steps of "
        f"{tune_s:.1f} s; a round that mines {mined} images takes about {_time(later)} more than one "
        f"on labels alone, and {_time(mined * look_s)} while they are new to SAM"
    )
    facts = {
        "images_a_round": mined,
        "see_seconds": round(see_s, 3),
        "look_seconds": round(look_s, 3),
        "ask_seconds": round(ask_s, 3),
        "tune_step_seconds": round(tune_s, 3),
        "tuning_seconds": round(tuning),
        "first_mining_seconds": round(first),
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
    none = Examples(some.images[:0], some.targets[:0], some.weights[:0])

    def steps() -> float:
        return train(
            model,
            some,
            none,
            plan,
            pseudo_share=0.5,
            pseudo_weight=1.0,
            fall=(0.0, 1.0),
            generator=torch.Generator().manual_seed(0),
            compute=compute,
            progress=Silent(),
        )

    steps()
    return _seconds(steps) / STEPS


def _seeing_seconds(settings: ClientSettings, model: torch.nn.Module, compute: Compute) -> float:
    """Of the U-Net++'s look at one image, in all the views that a pseudo-label is made from."""
    px = settings.model.image_px
    images = torch.zeros((ASKED, 3, px, px), dtype=torch.uint8)
    views = VARIED[TrainingSettings().orientation]
    lean = folded(model.to(compute.device), px)  # once in a round, whose images are many

    def see() -> object:
        return predict(lean, images, compute, views=views)

    see()
    return _seconds(see) / ASKED


def _sam_seconds(settings: ClientSettings) -> tuple[float, float, float]:
    """Of a look at one image, of a question about one, and of one step of tuning.

    What is in an image makes no difference to SAM, so it is shown none of the site's.
    """
    sam = sam_opener(settings.sam, settings.machine)()
    px = settings.model.image_px
    frames = Frames(HEIGHT, WIDTH, px)
    y, x = np.mgrid[:px, :px] / px
    disc = np.hypot(y - 0.5, x - 0.5) < 0.2
    several = joined([ask(np.where(disc, 0.9, 0.1)[None].astype(np.float32), frames)] * ASKED)
    assert several is not None, "a disc gives a prompt"
    seen = torch.zeros((ASKED, 256, 64, 64))
    truth = torch.from_numpy(disc).expand(2, 1, px, px)
    lessons = Lessons(seen[:2].half(), truth, [frames, frames])

    def tuned() -> object:
        generator = torch.Generator().manual_seed(0)
        return tune(
            sam,
            lessons,
            steps=1,
            false_alarms=MiningSettings().false_alarms,
            generator=generator,
            progress=Silent(),
        )

    def embedded() -> object:
        return sam.embed(np.zeros((HEIGHT, WIDTH, 3), np.uint8))

    sam.decode(seen, several)  # what only the first call costs
    if sam.compute.device.type != "cpu":
        embedded(), tuned()  # on a GPU that is most of it
    return _seconds(embedded), _seconds(lambda: sam.decode(seen, several)) / ASKED, _seconds(tuned)


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
    """In a unit that people use.

    >>> _time(40), _time(600), _time(9000)
    ('40 s', '10 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
