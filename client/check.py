"""The doctor: what a hospital should know before its site takes part, and whenever it does not."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from knowmine.client.check_data import check_data
from knowmine.client.check_machine import (
    check_disk,
    check_isolation,
    check_keys,
    check_machine,
    check_pace,
    check_weights,
)
from knowmine.client.check_network import check_network
from knowmine.client.findings import Finding
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import KnowmineError

CANARY_IMAGES = 8


def check_site(settings: ClientSettings) -> Iterator[Finding]:
    """All findings, area by area, as they come; nothing is sent but a greeting to the server."""
    kinds = {"unlabelled": 0}
    for finding in _guarded("data", lambda: check_data(settings)):
        kinds |= {k: v for k, v in (finding.facts or {}).items() if k in kinds}
        yield finding
    yield from _guarded("weights", lambda: check_weights(settings))
    yield from _guarded("machine", lambda: check_machine(settings))
    yield from _guarded("isolation", lambda: check_isolation(settings))
    yield from _guarded("disk", lambda: check_disk(settings, kinds["unlabelled"]))
    yield from _guarded("keys", lambda: check_keys(settings))
    yield from _guarded("network", lambda: check_network(settings))
    yield from _guarded("pace", lambda: check_pace(settings, kinds["unlabelled"]))


def canary(settings: ClientSettings) -> Iterator[Finding]:
    """One whole round on eight images of each kind, from a fresh model; nothing is sent."""
    import time

    from knowmine.client.compute import pick_compute, settle
    from knowmine.client.dataset import open_site
    from knowmine.client.egress import release
    from knowmine.client.opening import opened, sam_opener
    from knowmine.client.worker import SiteWorker
    from knowmine.shared.protocol import EvaluateTask, TrainTask
    from knowmine.shared.settings import MiningSettings, Plan, TrainingSettings
    from knowmine.shared.unetplusplus import build_model, weights_of

    settle(settings.machine.threads)
    data, hidden = open_site(
        settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
    )
    kinds = ("labelled", "probe", "unlabelled", "test")
    few = replace(data, **{kind: getattr(data, kind)[:CANARY_IMAGES] for kind in kinds})

    folder = settings.state / "canary"
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        worker = SiteWorker(
            opened(
                few,
                hidden,
                settings.model,
                settings.split,
                settings.sam,
                folder=folder,
                open_sam=sam_opener(settings.sam, settings.machine),
                compute=pick_compute(settings.machine.device),
            )
        )
        plan = Plan(
            model=settings.model,
            training=TrainingSettings(steps=4, batch=4),
            mining=MiningSettings(warmup_rounds=0, images=CANARY_IMAGES),
        )
        weights = weights_of(build_model(settings.model, 0))
        update = release(worker.improve(TrainTask(1, 1, plan, weights)), manifest=worker.manifest)
        scores = release(
            worker.evaluate(EvaluateTask(1, 1, plan, update.weights)), manifest=worker.manifest
        )
    except KnowmineError as error:
        yield Finding("canary", "error", str(error), "a round would fail here as well")
        return
    yield Finding(
        "canary",
        "good",
        f"a round on {CANARY_IMAGES} images of each kind took {time.monotonic() - started:.0f} s: "
        f"trained on {update.labelled} labels, kept {update.mined.kept} pseudo-labels, scored "
        f"{scores.test_images} test images; nothing was sent",
    )


def _guarded(area: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings, or the one that says why there are none: one broken area hides no other."""
    try:
        return look()
    except KnowmineError as error:
        return [Finding(area, "error", str(error))]
