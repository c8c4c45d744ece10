"""Typed messages to Flower records and back; what comes in is hostile until checked.

A reply holds tensors and numbers; a `Hello` also holds two short texts. Nothing else has a place.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from knowmine.shared.errors import Refused
from knowmine.shared.protocol import (
    GATES,
    PROTOCOL,
    Calibration,
    EvaluateTask,
    Hello,
    Mined,
    Reply,
    Scores,
    Task,
    TrainTask,
    Update,
    calibration_of,
)
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Confirmation, Head
from knowmine.shared.weights import Weights
from knowmine.shared.wire.tensors import (
    pack_change,
    pack_weights,
    unpack_answer,
    unpack_weights,
)

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

R = TypeVar("R")

RUN_NAME = "knowmine/federation"
"""Flower's name for our runs; a site works for no other."""
INSTANCE_HEADER, REPLACES_HEADER = "knowmine-instance", "knowmine-replaces"
"""The random name of a site's process, and of the one before it on the same machine."""
VERSION_HEADER = "knowmine-version"
HEAD, CONFIRMATION = "record", "confirmation"
"""Beside an answer: the audit log's checkpoint. Beside a task: what the server has signed."""
MAX_TEXT = 400
CERTIFICATE_PATH = "/v1/knowmine/certificate"
"""The path to which a site sends its next certificate."""
CHECK_PATH = "/v1/knowmine/check"
"""The path at which a site asks whether it may join, before it does."""


def pack_tasks(
    tasks: Mapping[str, Task], confirmations: Mapping[str, Confirmation] | None = None
) -> dict[str, RecordDict]:
    """Tasks as Flower records; weights that several sites get are packed once.

    confirmations: by site, of earlier answers.
    """
    packed: dict[int, ArrayRecord] = {}

    def once(weights: Weights) -> ArrayRecord:
        if id(weights) not in packed:
            packed[id(weights)] = pack_weights(weights)
        return packed[id(weights)]

    return {
        name: _pack_task(task, once, (confirmations or {}).get(name))
        for name, task in tasks.items()
    }


def _pack_task(
    task: Task, pack: Callable[[Weights], ArrayRecord], confirmation: Confirmation | None
) -> RecordDict:
    config = ConfigRecord(
        {
            "protocol": PROTOCOL,
            "round": task.round,
            "rounds": task.rounds,
            "plan": task.plan.model_dump_json(),
        }
    )
    records: dict[str, Any] = {"task": config, "weights": pack(task.weights)}
    if isinstance(task, TrainTask):
        records["calibration"] = _pack_calibration(task.calibration)
    return RecordDict(records | _pack_confirmation(confirmation))


def unpack_train_task(records: RecordDict) -> TrainTask:
    """The training task in `records`; raise `Refused` for anything else."""

    def unpack() -> TrainTask:
        round_, rounds, plan = _unpack_heading(records)
        weights, sums = unpack_weights(records), _unpack_calibration(records)
        return TrainTask(round_, rounds, plan, weights, sums)

    return _checked(unpack, "task")


def unpack_evaluate_task(records: RecordDict) -> EvaluateTask:
    """The scoring task in `records`; raise `Refused` for anything else."""

    def unpack() -> EvaluateTask:
        round_, rounds, plan = _unpack_heading(records)
        return EvaluateTask(round_, rounds, plan, unpack_weights(records))

    return _checked(unpack, "task")


def pack_head(head: Head) -> ConfigRecord:
    """The audit log's checkpoint, which travels beside an answer under `HEAD`."""
    return ConfigRecord(head._asdict())


def unpack_head(records: RecordDict) -> Head | None:
    """The checkpoint of the site's audit log; None for a site that keeps no log.

    Raises `Refused` for anything else.
    """

    def unpack() -> Head | None:
        if HEAD not in records:
            return None
        values: dict[str, Any] = dict(records.config_records[HEAD])
        head = Head(**values)
        if _whole(head.receipts) < 1 or not re.fullmatch("[0-9a-f]{64}", head.hash):
            raise ValueError("expected a receipt's number and SHA-256")
        return head

    return _checked(unpack, "head")


def unpack_confirmation(records: RecordDict) -> Confirmation | None:
    """The confirmation beside a task, if there is one. Its signature is not checked here.

    Raises `Refused` for anything else.
    """

    def unpack() -> Confirmation | None:
        if CONFIRMATION not in records:
            return None
        values = _exactly(records.config_records[CONFIRMATION], Confirmation)
        for field in fields(Confirmation):
            if type(values[field.name]) is not field.type:
                raise TypeError(f"{field.name} is a {type(values[field.name]).__name__}")
        if max(len(text) for text in values.values() if isinstance(text, str)) > MAX_TEXT:
            raise ValueError(f"a text is longer than {MAX_TEXT}")  # a site keeps it for years
        return Confirmation(**values)

    return _checked(unpack, "confirmation")


def pack_reply(reply: Reply | Hello, change: bytes | None = None) -> RecordDict:
    """A reply as Flower records: tensors and numbers.

    change: an update's packed change, sent in place of its weights.
    """
    if isinstance(reply, Hello):
        return RecordDict(
            {"hello": ConfigRecord({f.name: getattr(reply, f.name) for f in fields(reply)})}
        )
    if isinstance(reply, Scores):
        numbers = {f: getattr(reply, f) for f in ("round", "test_images", "dice", "iou", "hd95")}
        return RecordDict(
            {
                "scores": MetricRecord(numbers),
                "calibration": _pack_calibration(reply.calibration),
            }
        )
    numbers = {
        f: getattr(reply, f) for f in ("round", "labelled", "pseudo_labelled", "loss", "seconds")
    }
    mined = {f.name: getattr(reply.mined, f.name) for f in fields(Mined)}
    mined["gate"] = GATES.index(reply.mined.gate)
    return RecordDict(
        {
            "update": MetricRecord(numbers),
            "mined": MetricRecord(mined),
            "weights": pack_weights(reply.weights) if change is None else pack_change(change),
        }
    )


def unpack_hello(records: RecordDict) -> Hello:
    """A site's introduction; raise `Refused` for anything else."""

    def unpack() -> Hello:
        hello = Hello(**_exactly(records.config_records["hello"], Hello))
        if type(hello.site) is not str:
            raise TypeError("the site's name is not text")
        return hello

    return _checked(unpack, "hello")


def unpack_update(records: RecordDict, task: TrainTask | None = None) -> Update:
    """A site's update; raise `Refused` for anything else.

    task: the task that it answers, which a change cannot be unpacked without.
    """

    def unpack() -> Update:
        mined = _exactly(records.metric_records["mined"], Mined)
        mined["gate"] = dict(enumerate(GATES))[mined["gate"]]
        numbers: dict[str, Any] = dict(records.metric_records["update"])
        weights = unpack_answer(records, task)
        return Update(weights=weights, mined=Mined(**mined), **numbers)

    return _checked(unpack, "update")


def unpack_scores(records: RecordDict) -> Scores:
    """A site's scores; raise `Refused` for anything else."""

    def unpack() -> Scores:
        numbers: dict[str, Any] = dict(records.metric_records["scores"])
        return Scores(calibration=_unpack_calibration(records), **numbers)

    return _checked(unpack, "scores")


def round_of(records: RecordDict) -> int:
    """The round that a message belongs to, for a log; 0 if it belongs to none."""
    task: Any = records.config_records.get("task", {})
    round_ = task.get("round", 0)
    return round_ if isinstance(round_, int) else 0


def pack_goodbye(confirmation: Confirmation | None = None) -> RecordDict:
    """The server's last message: the run is over, and the sites may leave."""
    goodbye: dict[str, Any] = {"goodbye": ConfigRecord({"protocol": PROTOCOL})}
    return RecordDict(goodbye | _pack_confirmation(confirmation))


def is_goodbye(records: RecordDict) -> bool:
    """Whether these records are the server's last message."""
    return "goodbye" in records and set(records) <= {"goodbye", CONFIRMATION}


def _pack_confirmation(confirmation: Confirmation | None) -> dict[str, ConfigRecord]:
    return {CONFIRMATION: ConfigRecord(vars(confirmation))} if confirmation else {}


def _unpack_heading(records: RecordDict) -> tuple[int, int, Plan]:
    config = records.config_records["task"]
    if (seen := config["protocol"]) != PROTOCOL:
        raise Refused(
            f"the server speaks protocol {seen!r}, this site speaks {PROTOCOL}: "
            "install matching versions of knowmine"
        )
    plan = config["plan"]
    if not isinstance(plan, str):
        raise TypeError("the plan is not text")
    return _whole(config["round"]), _whole(config["rounds"]), Plan.model_validate_json(plan)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def _pack_calibration(sums: Calibration) -> MetricRecord:
    return MetricRecord(
        {
            f.name: list(value) if isinstance(value := getattr(sums, f.name), tuple) else value
            for f in fields(sums)
        }
    )


def _unpack_calibration(records: RecordDict) -> Calibration:
    values = _exactly(records.metric_records["calibration"], Calibration)
    return calibration_of(values)


def _exactly(record: Any, kind: type) -> dict[str, Any]:
    values = dict(record)
    expected = {field.name for field in fields(kind)}
    if set(values) != expected:
        odd = sorted(set(values) ^ expected)
        raise Refused(f"expected the fields of {kind.__name__}, missing or unknown: {odd}")
    return values


def _checked(unpack: Callable[[], R], what: str) -> R:
    """Run a parser on hostile input: any error is the sender's fault, so it becomes `Refused`."""
    try:
        return unpack()
    except Refused:
        raise
    # No list of exceptions is complete: NumPy's header parser alone raises tokenize.TokenError,
    # RecursionError and IndentationError.
    except Exception as error:
        raise Refused(f"not a knowmine {what}: {type(error).__name__} {error}") from error
