"""Let nothing leave a site but the model's weights and a few counts and means.

Every reply passes `release`, in a simulation, under `flwr run` and in a hospital's courier. What
fails a check stays here. The reply that leaves is a new object, built from the fields named below,
so nothing else travels with it.

What it may be:
 1. it is an `Update`, `Scores` or `Hello`, and no subclass of them
 2. its tensors are exactly the installed model's, by name, in the model's order
 3. each has the model's shape
 4. each has the model's dtype
 5. floats are finite
 6. whole numbers and variances are not negative
 7. nothing exceeds 1e6 either way (counters: 1e12)
 8. counts are whole numbers from 0 to ten million
 9. other numbers are finite, in their range, and rounded to 6 decimals
10. the only texts are the gate's word and, in an introduction, the site's plain name and the
    model's SHA-256

What the site's policy allows (client/egress/policy.py; its defaults are the loosest values):
11. it answers the task that was sent, for the round that was sent
12. the round is one of the run's, and the run has not ended
13. the time of day is one in which something may leave
14. the installed model is one that may be trained here
15. trained weights are no farther from those that were sent than `max_update_norm` together and
    `max_change` each, and counters moved by no more than a round can count
16. numbers about fewer than `min_cases` cases are left out
17. the task was not answered before, except by this same answer
18. rounds and bytes are within their budgets

These checks describe the channel; they do not promise anonymity. A vault that lies can hide
megabytes in each update, within all limits: benchmarks/bench_covert.py measures how many, and
docs/audit.md reports it. Against such a vault, checks 15 to 18 only bound how often and how far.
What honest weights may reveal has to be bounded by clipping, noise and secure aggregation.
"""

from datetime import datetime
from typing import Any, TypeVar

from knowmine.client.audit.retention import NOTHING, Past
from knowmine.client.egress.limits import (
    check_move,
    check_sent,
    suppress_hello,
    suppress_scores,
    suppress_update,
)
from knowmine.client.egress.policy import LOOSEST, Policy
from knowmine.client.egress.questions import Asked, check_answer, check_budget, check_question
from knowmine.shared.checks import Door, shown
from knowmine.shared.errors import EgressRefused
from knowmine.shared.protocol import (
    FUSE_WEIGHTS,
    GATES,
    Calibration,
    Hello,
    Mined,
    Scores,
    Update,
)
from knowmine.shared.weights import Array, Manifest

R = TypeVar("R", Update, Scores, Hello)

DECIMALS = 6
_LARGE = 1e15
"""Bound of numbers that only need to be finite: float64 still holds 6 decimals below it."""

_DOOR = Door("this site was about to send", EgressRefused)


def release(
    reply: R,
    *,
    manifest: Manifest,
    asked: Asked | None = None,
    policy: Policy = LOOSEST,
    past: Past = NOTHING,
    now: datetime | None = None,
) -> R:
    """Return `reply` as it may leave; raise `EgressRefused` if it may not.

    manifest: of the model that is installed here, never one that came with a task.
    asked: what the server asked for. Checks 11, 12, 15 and 17 need it, so every caller with a
    network must give it.
    """
    plain = _plain(reply, manifest)
    check_question(asked, manifest, policy=policy, past=past, now=now)  # 12, 13, 14
    if asked:
        check_answer(plain, asked)  # 11
    allowed = _limited(plain, manifest, asked, policy)  # 15, 16
    check_budget(allowed, asked, policy, past)  # 17, 18
    return allowed


# ------------------------------------------------------------ 1 to 10: what it may be


def _plain(reply: R, manifest: Manifest) -> R:
    if type(reply) is Update:  # 1
        return _update(reply, manifest)
    if type(reply) is Scores:
        return _scores(reply)
    if type(reply) is Hello:
        return _hello(reply)
    raise _DOOR.refuse(
        "reply", shown(reply), "an Update, Scores or Hello", "nothing else may leave"
    )


def _update(update: Update, manifest: Manifest) -> Update:
    return Update(
        round=_DOOR.count("round", update.round),
        weights=_weights(update.weights, manifest),
        labelled=_DOOR.count("labelled", update.labelled),  # 8
        pseudo_labelled=_DOOR.count("pseudo_labelled", update.pseudo_labelled),
        loss=_number("loss", update.loss),  # 9
        seconds=_number("seconds", update.seconds),
        mined=_mined(update.mined),
    )


def _weights(weights: Any, manifest: Manifest) -> dict[str, Array]:
    _DOOR.names(weights, manifest)  # 2
    for name, spec in manifest.items():
        array = weights[name]
        _DOOR.shape(name, array, spec)  # 3
        _DOOR.dtype(name, array, spec)  # 4
        _DOOR.finite(name, array)  # 5
        _DOOR.counters(name, array)  # 6
        _DOOR.bounded(name, array)  # 7
    return {name: weights[name] for name in manifest}


def _mined(mined: Mined) -> Mined:
    _DOOR.kind(mined, Mined)
    return Mined(
        kept=_DOOR.count("mined.kept", mined.kept),
        dropped=_DOOR.count("mined.dropped", mined.dropped),
        empty=_DOOR.count("mined.empty", mined.empty),
        gate=_DOOR.one_of("mined.gate", mined.gate, GATES),  # 10
        fuse_weight=_number("mined.fuse_weight", mined.fuse_weight, high=1),
        mean_agreement=_number("mined.mean_agreement", mined.mean_agreement, high=1),
        mean_quality=_number("mined.mean_quality", mined.mean_quality, high=1),
    )


def _scores(scores: Scores) -> Scores:
    images = _DOOR.count("test_images", scores.test_images)
    return Scores(
        round=_DOOR.count("round", scores.round),
        test_images=images,
        dice=_number("dice", scores.dice, high=images),
        iou=_number("iou", scores.iou, high=images),
        hd95=_number("hd95", scores.hd95),
        calibration=_calibration(scores.calibration),
    )


def _calibration(sums: Calibration) -> Calibration:
    _DOOR.kind(sums, Calibration)
    images = _DOOR.count("calibration.images", sums.images)
    if not images:
        return Calibration()
    weights = len(FUSE_WEIGHTS)
    features = len(sums.target) // weights if type(sums.target) is tuple else 0
    return Calibration(
        images=images,
        fused=_numbers("calibration.fused", sums.fused, len(FUSE_WEIGHTS), low=0, high=images),
        gram=_numbers("calibration.gram", sums.gram, features**2),
        target=_numbers("calibration.target", sums.target, features * weights),
        empty=_DOOR.count("calibration.empty", sums.empty, high=images),
        empty_predicted=_DOOR.count(
            "calibration.empty_predicted", sums.empty_predicted, high=images
        ),
        empty_right=_DOOR.count("calibration.empty_right", sums.empty_right, high=images),
    )


def _hello(hello: Hello) -> Hello:
    repair = "name the site in lower-case letters, digits and hyphens, at most 40"
    return Hello(
        site=_DOOR.text("its name", hello.site, r"[a-z0-9-]{1,40}", repair),
        protocol=_DOOR.count("protocol", hello.protocol),
        model_digest=_DOOR.text(
            "model_digest", hello.model_digest, r"[0-9a-f]{64}", "send the model's SHA-256"
        ),
        labelled=_DOOR.count("labelled", hello.labelled),
        unlabelled=_DOOR.count("unlabelled", hello.unlabelled),
        calibration=_DOOR.count("calibration", hello.calibration),
        test=_DOOR.count("test", hello.test),
    )


def _number(what: str, value: Any, *, low: float = 0, high: float = _LARGE) -> float:
    return round(_DOOR.number(what, value, low=low, high=high), DECIMALS)


def _numbers(
    what: str, values: Any, length: int, *, low: float = -_LARGE, high: float = _LARGE
) -> tuple[float, ...]:
    checked = _DOOR.numbers(what, values, length, low=low, high=high)
    return tuple(round(value, DECIMALS) for value in checked)


# ------------------------------------------------------------ 15, 16: what the policy limits


def _limited(reply: R, manifest: Manifest, asked: Asked | None, policy: Policy) -> R:
    if type(reply) is Update:
        return _limited_update(reply, manifest, asked, policy)
    if type(reply) is Scores:
        return suppress_scores(reply, policy.min_cases)
    if type(reply) is Hello:
        return suppress_hello(reply, policy.min_cases)
    raise AssertionError("nothing else passed check 1")


def _limited_update(
    update: Update, manifest: Manifest, asked: Asked | None, policy: Policy
) -> Update:
    if asked is None and policy == LOOSEST:
        return update
    if asked is None or asked.weights is None:
        raise _DOOR.refuse(
            "an update",
            "weights alone",
            "the weights that it was made from beside them",
            "pass what the server asked for: release(..., asked=...)",
        )
    check_sent(Door("the server sent", EgressRefused), asked.weights, manifest)
    norm, change = policy.max_update_norm, policy.max_change
    check_move(_DOOR, update.weights, asked.weights, max_norm=norm, max_change=change)
    sent = {name: asked.weights[name] for name in manifest}
    return suppress_update(update, policy.min_cases, sent)
