"""Typed messages to Flower records and back; what comes in is hostile until checked.

Replies hold tensors and numbers, and for `Hello` two short texts; nothing else has a place.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from numpy.typing import NDArray

from knowmine.shared.errors import Refused
from knowmine.shared.mask_decoder import DECODER_BYTES
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
from knowmine.shared.weights import Received, Weights
from knowmine.shared.wire import packing
from knowmine.shared.wire.changes import unpack_change
from knowmine.shared.wire.flower_objects import as_record

# flower_objects has told Flower to phone nobody; only now may Flower be imported.
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict  # isort: skip

R = TypeVar("R")

RUN_NAME = "knowmine/federation"
"""What Flower calls a run of ours; a site works for no other."""
INSTANCE_HEADER, REPLACES_HEADER = "knowmine-instance", "knowmine-replaces"
"""The random name of a site's process, and of the one before it on the same machine."""
VERSION_HEADER = "knowmine-version"
CHANGE = "knowmine-change"
"""The same for a change of the weights that were sent, in the form that the plan names."""
DECODER = "decoder"
"""Beside weights: SAM's mask decoder, where the plan shares it and there is one."""
HEAD, CONFIRMATION = "record", "confirmation"
"""Beside an answer: where the site's record stands. Beside a question: what the server has signed."""
MAX_TEXT = 400
STYPE = "safetensors"
"""What Flower's Array says of the bytes that hold all tensors of a model."""
CERTIFICATE_PATH = "/v1/knowmine/certificate"
"""Where a site sends its next certificate."""
CHECK_PATH = "/v1/knowmine/check"
"""Where a site asks whether it is welcome, before it joins."""


class PackedWeights(Mapping[str, NDArray[Any]]):
    """Weights kept as the bytes that are sent; its arrays are read-only views of them.

    A server that holds its model so holds it once, however many sites it is sent to.
    """

    def __init__(self, weights: Weights) -> None:
        self.record = _pack_weights(weights)
        self._views = _views_of(self.record)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)


def pack_tasks(
    tasks: Mapping[str, Task], confirmations: Mapping[str, Confirmation] | None = None
) -> dict[str, RecordDict]:
    """Tasks as Flower records; tensors that several sites get are packed once.

    confirmations: by the same names, of what those sites answered before.
    """
    packed: dict[int, ArrayRecord] = {}

    def once(tensors: Weights) -> ArrayRecord:
        if isinstance(tensors, PackedWeights):
            return tensors.record
        if id(tensors) not in packed:
            packed[id(tensors)] = _pack_weights(tensors)
        return packed[id(tensors)]

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
    if task.decoder:
        records[DECODER] = pack(task.decoder)
    return RecordDict(records | _pack_confirmation(confirmation))


def unpack_train_task(records: RecordDict) -> TrainTask:
    """The training task in `records`; raise `Refused` for anything else."""

    def unpack() -> TrainTask:
        round_, rounds, plan = _unpack_heading(records)
        weights, sums = _unpack_weights(records), _unpack_calibration(records)
        return TrainTask(round_, rounds, plan, weights, sums, _unpack_shared(records, plan))

    return _checked(unpack, "task")


def unpack_evaluate_task(records: RecordDict) -> EvaluateTask:
    """The scoring task in `records`; raise `Refused` for anything else."""

    def unpack() -> EvaluateTask:
        round_, rounds, plan = _unpack_heading(records)
        weights = _unpack_weights(records)
        return EvaluateTask(round_, rounds, plan, weights, _unpack_shared(records, plan))

    return _checked(unpack, "task")


def room_for_decoder(records: RecordDict) -> int:
    """Bytes by which the answer to a question may be larger than it: SAM's decoder, first tuned."""
    task: Any = records.config_records.get("task", {})
    plan = task.get("plan")
    if plan is None or DECODER in records or not Plan.model_validate_json(plan).shares_decoder:
        return 0
    return DECODER_BYTES


def pack_head(head: Head) -> ConfigRecord:
    """Where the site's record stands, to go beside an answer under `HEAD`."""
    return ConfigRecord(head._asdict())


def unpack_head(records: RecordDict) -> Head | None:
    """Where a site says that its record stands; None for a site that keeps none.

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
    """What the server confirms beside its question, if anything; its signature is not checked here.

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

    change: the packed change that an update's weights are, to be sent in their place. SAM's decoder
    is always sent whole.
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
    records: dict[str, Any] = {
        "update": MetricRecord(numbers),
        "mined": MetricRecord(mined),
        "weights": _pack_weights(reply.weights) if change is None else as_record(change, CHANGE),
    }
    if reply.decoder:
        records[DECODER] = _pack_weights(reply.decoder)
    return RecordDict(records)


def unpack_hello(records: RecordDict) -> Hello:
    """A site's introduction; raise `Refused` for anything else."""

    def unpack() -> Hello:
        hello = Hello(**_exactly(records.config_records["hello"], Hello))
        if type(hello.site) is not str:
            raise TypeError("the site's name is not text")
        return hello

    return _checked(unpack, "hello")


def unpack_update(records: RecordDict, task: TrainTask | None = None) -> Update:
    """A site's update; raise `Refused` for anything that is not one.

    task: that it answers; without it a change cannot be told.
    """

    def unpack() -> Update:
        mined = _exactly(records.metric_records["mined"], Mined)
        mined["gate"] = dict(enumerate(GATES))[mined["gate"]]
        numbers: dict[str, Any] = dict(records.metric_records["update"])
        weights = _unpack_answer(records, task)
        decoder = _unpack_decoder(records)
        return Update(weights=weights, mined=Mined(**mined), decoder=decoder, **numbers)

    return _checked(unpack, "update")


def unpack_scores(records: RecordDict) -> Scores:
    """A site's scores; raise `Refused` for anything that is not that."""

    def unpack() -> Scores:
        numbers: dict[str, Any] = dict(records.metric_records["scores"])
        return Scores(calibration=_unpack_calibration(records), **numbers)

    return _checked(unpack, "scores")


def round_of(records: RecordDict) -> int:
    """The round that a question belongs to, for a log; 0 where it belongs to none."""
    task: Any = records.config_records.get("task", {})
    round_ = task.get("round", 0)
    return round_ if isinstance(round_, int) else 0


def pack_goodbye(confirmation: Confirmation | None = None) -> RecordDict:
    """The server's last word: the run is over, and the sites may go."""
    goodbye: dict[str, Any] = {"goodbye": ConfigRecord({"protocol": PROTOCOL})}
    return RecordDict(goodbye | _pack_confirmation(confirmation))


def is_goodbye(records: RecordDict) -> bool:
    """Whether these records are the server's last word."""
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


def _pack_weights(weights: Weights) -> ArrayRecord:
    return as_record(packing.pack(weights), STYPE)


def _unpack_answer(records: RecordDict, task: TrainTask | None) -> Weights:
    """An update's weights, sent whole or as a change of the task's."""
    (packed,) = records.array_records["weights"].values()
    if packed.stype != CHANGE:
        return _unpack_weights(records)
    form = task.plan.transport.update if task else "none"
    if task is None or form == "none":
        raise Refused("an update comes as a change; the plan asks for whole weights")
    weights = Received(unpack_change(packed.data, task.weights, form))
    weights.sent_bytes = len(packed.data)
    return weights


def _unpack_weights(records: RecordDict) -> Weights:
    return _views_of(records.array_records["weights"])


def _unpack_shared(records: RecordDict, plan: Plan) -> Weights:
    """A task's decoder, which only a plan that shares one may bring."""
    if DECODER in records and not plan.shares_decoder:
        raise Refused("SAM's decoder came by a plan that shares none: see mining.share_decoder")
    return _unpack_decoder(records)


def _unpack_decoder(records: RecordDict) -> Weights:
    """Of an update too: there `client/egress/release.py` and `server/rounds/admission.py` ask the plan."""
    return _views_of(records.array_records[DECODER]) if DECODER in records else {}


def _views_of(record: ArrayRecord) -> dict[str, NDArray[Any]]:
    """The tensors as read-only views of the bytes that came: nothing is copied or unpickled."""
    (packed,) = record.values()
    if packed.stype != STYPE:
        raise Refused(f"weights come as {packed.stype!r}; expected {STYPE!r}")
    return packing.unpack(packed.data)


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
    """Run a parser on hostile input: whatever goes wrong is the sender's fault."""
    try:
        return unpack()
    except Refused:
        raise
    # No list of exceptions is complete: NumPy's header parser alone raises tokenize.TokenError,
    # RecursionError and IndentationError.
    except Exception as error:
        raise Refused(f"not a knowmine {what}: {type(error).__name__} {error}") from error
