"""Typed messages to Flower records and back; what comes in is hostile until checked.

Replies hold tensors and numbers, and for `Hello` two short texts; nothing else has a place.
"""

import os

# Flower reads these when it is first imported; a hospital's machine phones nobody.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from pydantic import ValidationError

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
)
from knowmine.shared.settings import Plan
from knowmine.shared.weights import Weights

R = TypeVar("R")


def pack_task(task: Task) -> RecordDict:
    """A task as Flower records."""
    config = ConfigRecord(
        {"protocol": PROTOCOL, "round": task.round, "plan": task.plan.model_dump_json()}
    )
    records: dict[str, Any] = {"task": config, "weights": _pack_weights(task.weights)}
    if isinstance(task, TrainTask):
        config["rounds"] = task.rounds
        records["calibration"] = _pack_calibration(task.calibration)
    return RecordDict(records)


def unpack_task(records: RecordDict, kind: type[R]) -> R:
    """The task of `kind` in `records`; raise `Refused` for anything else."""

    def unpack() -> Any:
        config = records.config_records["task"]
        if (seen := config["protocol"]) != PROTOCOL:
            raise Refused(
                f"the server speaks protocol {seen}, this site speaks {PROTOCOL}: "
                "install matching versions of knowmine"
            )
        plan = Plan.model_validate_json(str(config["plan"]))
        round_, weights = int(config["round"]), _unpack_weights(records)  # type: ignore[arg-type]
        if kind is TrainTask:
            rounds = int(config["rounds"])  # type: ignore[arg-type]
            return TrainTask(round_, rounds, plan, weights, _unpack_calibration(records))
        return EvaluateTask(round_, plan, weights)

    return _checked(unpack, "task")


def pack_reply(reply: Reply | Hello) -> RecordDict:
    """A reply as Flower records: tensors and numbers."""
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
            "weights": _pack_weights(reply.weights),
        }
    )


def unpack_hello(records: RecordDict) -> Hello:
    """A site's introduction; raise `Refused` for anything else."""
    return _checked(lambda: Hello(**_exactly(records.config_records["hello"], Hello)), "hello")


def unpack_update(records: RecordDict) -> Update:
    """A site's update; raise `Refused` for anything that is not one."""

    def unpack() -> Update:
        mined = _exactly(records.metric_records["mined"], Mined)
        mined["gate"] = GATES[mined["gate"]]
        numbers = dict(records.metric_records["update"])
        return Update(weights=_unpack_weights(records), mined=Mined(**mined), **numbers)  # type: ignore[arg-type]

    return _checked(unpack, "update")


def unpack_scores(records: RecordDict) -> Scores:
    """A site's scores; raise `Refused` for anything that is not that."""

    def unpack() -> Scores:
        numbers = dict(records.metric_records["scores"])
        return Scores(calibration=_unpack_calibration(records), **numbers)  # type: ignore[arg-type]

    return _checked(unpack, "scores")


def through_the_wire(message: Message) -> Message:
    """Serialise and parse a message as the network does: chunks, digests, no shared memory."""
    content = {key: thing.deflate() for key, thing in get_all_nested_objects(message).items()}
    copy = inflate_object_from_contents(message.object_id, content)
    assert isinstance(copy, Message)
    # Flower sets a message's id on arrival; its classes offer no public way to.
    copy.metadata.__dict__["_message_id"] = message.metadata.message_id
    return copy


def _pack_weights(weights: Weights) -> ArrayRecord:
    return ArrayRecord(
        {name: Array(np.asarray(value, order="C")) for name, value in weights.items()}
    )


def _unpack_weights(records: RecordDict) -> Weights:
    weights = {}
    for name, packed in records.array_records["weights"].items():
        array = packed.numpy()  # flwr loads it with allow_pickle=False
        if (array.dtype.name, array.shape) != (np.dtype(packed.dtype).name, tuple(packed.shape)):
            raise Refused(
                f"tensor {name} says it is {packed.dtype}{tuple(packed.shape)} and holds "
                f"{array.dtype}{array.shape}: its header lies"
            )
        weights[name] = array
    return weights


def _pack_calibration(sums: Calibration) -> MetricRecord:
    return MetricRecord(
        {
            f.name: list(value) if isinstance(value := getattr(sums, f.name), tuple) else value
            for f in fields(sums)
        }
    )


def _unpack_calibration(records: RecordDict) -> Calibration:
    values = _exactly(records.metric_records["calibration"], Calibration)
    return Calibration(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    )


def _exactly(record: Any, kind: type) -> dict[str, Any]:
    values = dict(record)
    expected = {field.name for field in fields(kind)}
    if set(values) != expected:
        odd = sorted(set(values) ^ expected)
        raise Refused(f"expected the fields of {kind.__name__}, missing or unknown: {odd}")
    return values


def _checked(unpack: Callable[[], Any], what: str) -> Any:
    """Run a parser on hostile input: whatever goes wrong is the sender's fault."""
    try:
        return unpack()
    except Refused:
        raise
    except (KeyError, IndexError, TypeError, ValueError, EOFError, ValidationError) as error:
        raise Refused(f"not a knowmine {what}: {type(error).__name__} {error}") from error
