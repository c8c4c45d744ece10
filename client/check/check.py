"""Check everything that a site needs before it takes part: data, weights, machine, keys, network."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from knowmine.client.check.data import check_data
from knowmine.client.check.findings import Finding, stopped
from knowmine.client.check.machine import (
    check_disk,
    check_isolation,
    check_keys,
    check_machine,
    check_weights,
)
from knowmine.client.check.network import check_network
from knowmine.client.settings import ClientSettings
from knowmine.shared.errors import KnowmineError

CANARY_IMAGES = 8


def check_site(settings: ClientSettings) -> Iterator[Finding]:
    """All findings, area by area. Only a greeting and test bytes are sent to the server."""
    of_data = _guarded("data", lambda: check_data(settings))
    unlabelled = int(_fact(of_data, "unlabelled") or 0)
    yield from of_data
    yield from _guarded("weights", lambda: check_weights(settings))
    yield from _guarded("machine", lambda: check_machine(settings))
    yield from _guarded("isolation", lambda: check_isolation(settings))
    yield from _guarded("disk", lambda: check_disk(settings, unlabelled))
    yield from _guarded("keys", lambda: check_keys(settings))
    of_network = _guarded("network", lambda: check_network(settings))
    yield from of_network
    upload_mbit_s = _fact(of_network, "upload_mbit_s")
    yield from _guarded("pace", lambda: _pace(settings, unlabelled, upload_mbit_s))


def canary(settings: ClientSettings) -> Iterator[Finding]:
    """One complete round on eight images of each kind, with a new model; nothing is sent or kept."""
    import time

    from knowmine.client.data.dataset import open_site
    from knowmine.client.device import settle
    from knowmine.client.egress.release import release
    from knowmine.client.site.open import rehearsal
    from knowmine.client.site.worker import SiteWorker
    from knowmine.shared.protocol import EvaluateTask, TrainTask
    from knowmine.shared.settings import MiningSettings, Plan, TrainingSettings
    from knowmine.shared.unetplusplus import build_model, weights_of

    settle(settings.machine.threads)
    started = time.monotonic()
    try:
        data, hidden = open_site(
            settings.site, settings.data, **settings.split.arguments(), seed=settings.seed
        )
        kinds = ("labelled", "calibration", "unlabelled", "test")
        few = replace(data, **{kind: getattr(data, kind)[:CANARY_IMAGES] for kind in kinds})
        plan = Plan(
            model=settings.model,
            training=TrainingSettings(steps=4, batch=4),
            mining=MiningSettings(warmup_rounds=0, images=CANARY_IMAGES),
        )
        weights = weights_of(build_model(settings.model, 0))
        with rehearsal(settings, few, hidden) as site:
            worker = SiteWorker(site)
            update = release(
                worker.improve(TrainTask(1, 1, plan, weights)), manifest=worker.manifest
            )
            scores = release(
                worker.evaluate(EvaluateTask(1, 1, plan, update.weights)),
                manifest=worker.manifest,
            )
    except (KnowmineError, OSError) as error:
        yield stopped("canary", error, "a real round would fail as well")
        return
    yield Finding(
        "canary",
        "good",
        f"a round on {CANARY_IMAGES} images of each kind took {time.monotonic() - started:.0f} s: "
        f"trained on {update.labelled} labels, kept {update.mined.kept} pseudo-labels, scored "
        f"{scores.test_images} test images; nothing was sent, and its folder is deleted",
    )


def _guarded(area: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    """The findings of an area, or the one error that stopped it: the other areas still run."""
    try:
        return look()
    except (KnowmineError, OSError) as error:
        return [stopped(area, error, "this area could not be checked further")]


def _pace(settings: ClientSettings, unlabelled: int, upload_mbit_s: float | None) -> list[Finding]:
    from knowmine.client.check.pace import check_pace  # late: torch takes seconds

    return check_pace(settings, unlabelled, upload_mbit_s)


def _fact(findings: list[Finding], key: str) -> float | None:
    return next((f.facts[key] for f in findings if f.facts and key in f.facts), None)
