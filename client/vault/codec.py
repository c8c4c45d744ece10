"""Tasks and answers as the messages of airlock.proto and back; each end checks what it is sent.

Both ends know the installed model's manifest from their own settings. The manifest fixes which
tensor comes next, how many bytes it has and what they mean. A message either fits or is refused.
Each end checks on arrival:

 1. a message holds what airlock.proto lists, each field once, and nothing else (`framing.py`)
 2. a task or an answer comes first, then all of the installed model's tensors, in its order
 3. each chunk is full, or the last of its tensor; none is left over
 4. floats are finite, counters are not negative, and no number is absurdly large
 5. each word is in its list, each number in its range, each list of numbers as long as it must be
 6. a round is one of a run that ends, and its work has a bound
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from pydantic import ValidationError

from knowmine.client.vault import airlock_pb2 as pb
from knowmine.client.vault.framing import Piece
from knowmine.shared.checks import Door
from knowmine.shared.errors import Refused
from knowmine.shared.protocol import (
    FEATURES,
    FUSE_WEIGHTS,
    PROTOCOL,
    Calibration,
    EvaluateTask,
    Mined,
    Scores,
    TrainTask,
    Update,
)
from knowmine.shared.settings import ModelSettings, Plan
from knowmine.shared.weights import Array, Manifest, Weights, digest_of_manifest

M = TypeVar("M", bound=Message)

SERVICE = "knowmine.airlock.Airlock"
CHUNK_BYTES = 1_000_000
"""Bytes of tensor in one message."""
MESSAGE_BYTES = CHUNK_BYTES + 4096
"""A longer message is refused by gRPC before it is read."""
CHANNEL = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.http2.max_frame_size", MESSAGE_BYTES),
    ("grpc.http2.lookahead_bytes", 8 * MESSAGE_BYTES),
)
"""Options of both ends. One message is one frame: gRPC's own frames of 16 kB cost a fifth more CPU."""
MAX_ROUNDS, MAX_STEPS = 10_000, 10_000
"""A task that asks for more would block the hospital's machine."""
_LARGE = 1e15

TO_VAULT = Door("the vault was sent", Refused)
FROM_VAULT = Door("the vault sent", Refused)


TaskPart = pb.TaskPart | Piece
UpdatePart = pb.UpdatePart | Piece


def pack_task(task: TrainTask | EvaluateTask, manifest: Manifest) -> Iterator[TaskPart]:
    """The parts of a task; raise `Refused` at once if it does not fit the airlock."""
    calibration = task.calibration if isinstance(task, TrainTask) else Calibration()
    values = {**dict(task.plan), "round": task.round, "rounds": task.rounds}
    del values["model"], values["transport"]  # the one is installed, the other is the courier's
    values["calibration"] = calibration
    _fits(task.weights, manifest, TO_VAULT)
    heading = _filled(pb.Task, values, TO_VAULT)
    return _parts(pb.TaskPart(task=heading), task.weights, manifest)


def unpack_train_task(
    parts: Iterable[TaskPart], model: ModelSettings, manifest: Manifest
) -> TrainTask:
    """The task to train; raise `Refused` for anything else."""
    parts = iter(parts)
    round_, rounds, plan, sums = _unpack_heading(parts, model)
    return TrainTask(round_, rounds, plan, _gather(parts, manifest, TO_VAULT), sums)


def unpack_evaluate_task(
    parts: Iterable[TaskPart], model: ModelSettings, manifest: Manifest
) -> EvaluateTask:
    """The task to evaluate; raise `Refused` for anything else."""
    parts = iter(parts)
    round_, rounds, plan, _ = _unpack_heading(parts, model)
    return EvaluateTask(round_, rounds, plan, _gather(parts, manifest, TO_VAULT))


def pack_update(update: Update, manifest: Manifest) -> Iterator[UpdatePart]:
    """The parts of an update."""
    _fits(update.weights, manifest, FROM_VAULT)
    heading = _filled(pb.Update, vars(update), FROM_VAULT)
    return _parts(pb.UpdatePart(update=heading), update.weights, manifest)


def unpack_update(parts: Iterable[UpdatePart], manifest: Manifest) -> Update:
    """The update; raise `Refused` for anything else. `egress` checks its numbers again."""
    parts = iter(parts)
    first = next(parts, None)
    if not isinstance(first, pb.UpdatePart) or first.WhichOneof("part") != "update":  # 2
        raise Refused("the vault sent no update first; expected its counts, then its tensors")
    values = _values(first.update, FROM_VAULT)
    mined = Mined(**values.pop("mined"))
    return Update(weights=_gather(parts, manifest, FROM_VAULT), mined=mined, **values)


def pack_scores(scores: Scores) -> pb.Scores:
    """Scores as a message."""
    return _filled(pb.Scores, vars(scores), FROM_VAULT)


def unpack_scores(message: pb.Scores) -> Scores:
    """The scores; raise `Refused` for anything else."""
    values = _values(message, FROM_VAULT)
    return Scores(**{**values, "calibration": _calibration(values["calibration"], FROM_VAULT)})


def fingerprint(manifest: Manifest) -> int:
    """A number that is equal at both ends if they have the same model installed."""
    return int.from_bytes(bytes.fromhex(digest_of_manifest(manifest))[:8])


def check_protocol(seen: int) -> None:
    """Raise `Refused` unless both ends run the same release."""
    if seen != PROTOCOL:
        raise Refused(
            f"the airlock's other end speaks protocol {seen}, this one {PROTOCOL}: "
            "install one version of knowmine at this site"
        )


def _unpack_heading(
    parts: Iterator[TaskPart], model: ModelSettings
) -> tuple[int, int, Plan, Calibration]:
    first = next(parts, None)
    if not isinstance(first, pb.TaskPart) or first.WhichOneof("part") != "task":  # 2
        raise Refused("the vault was sent no task first; expected the task, then its tensors")
    values = _values(first.task, TO_VAULT)
    sums = _calibration(values.pop("calibration"), TO_VAULT)
    rounds = TO_VAULT.count("rounds", values.pop("rounds"), low=1, high=MAX_ROUNDS)  # 6
    round_ = TO_VAULT.count("round", values.pop("round"), low=1, high=rounds)
    TO_VAULT.count("training.steps", values["training"]["steps"], low=1, high=MAX_STEPS)
    try:
        plan = Plan.model_validate({**values, "model": model})  # 5
    except ValidationError as error:
        first_error = error.errors()[0]
        key = ".".join(map(str, first_error["loc"]))
        raise Refused(f"the vault was sent a round's `{key}`: {first_error['msg']}") from None
    return round_, rounds, plan, sums


def _calibration(values: dict[str, Any], door: Door) -> Calibration:
    images = values["images"]
    for key in ("empty", "empty_predicted", "empty_right"):
        door.count(f"calibration.{key}", values[key], high=images)
    door.count("calibration.images", images)
    lengths = {
        "fused": len(FUSE_WEIGHTS),
        "gram": len(FEATURES) ** 2,
        "target": len(FEATURES) * len(FUSE_WEIGHTS),
    }
    for key, length in lengths.items():
        # Sums over no images are empty; a quality estimate that cannot be fitted leaves out its two.
        if values[key] and images:
            door.numbers(f"calibration.{key}", values[key], length, low=-_LARGE, high=_LARGE)
        elif values[key]:
            raise Refused(f"{door.who} calibration.{key} of no images; expected no numbers")
    return Calibration(**values)


def _fits(weights: Weights, manifest: Manifest, door: Door) -> None:
    door.names(weights, manifest)
    for name, spec in manifest.items():
        door.shape(name, weights[name], spec)
        door.dtype(name, weights[name], spec)


def _parts(heading: M, weights: Weights, manifest: Manifest) -> Iterator[M | Piece]:
    yield heading
    for place, name in enumerate(manifest):
        raw = np.asarray(weights[name], order="C").reshape(-1).view(np.uint8).data
        for start in range(0, len(raw), CHUNK_BYTES):
            yield Piece(place, raw[start : start + CHUNK_BYTES])


def _gather(parts: Iterator[Any], manifest: Manifest, door: Door) -> dict[str, Array]:
    weights = {}
    for place, (name, spec) in enumerate(manifest.items()):
        array = np.empty(spec.shape, spec.dtype)
        raw = array.reshape(-1).view(np.uint8)
        for start in range(0, len(raw), CHUNK_BYTES):
            length = min(CHUNK_BYTES, len(raw) - start)
            part = next(parts, None)
            if not isinstance(part, Piece):  # 2
                raise Refused(f"{door.who} too few tensors; expected more of number {place}")
            if part.tensor != place:  # 2
                raise Refused(
                    f"{door.who} tensor number {part.tensor}; expected number {place} of "
                    "the installed model"
                )
            if len(part.data) != length:  # 3
                raise Refused(
                    f"{door.who} {len(part.data)} bytes of tensor number {place}; expected {length}"
                )
            raw[start : start + length] = np.frombuffer(part.data, np.uint8)
        door.finite(name, array)  # 4
        door.counters(name, array)
        door.bounded(name, array)
        weights[name] = array
    if next(parts, None) is not None:  # 3
        raise Refused(f"{door.who} more than the installed model's {len(manifest)} tensors")
    return weights


def _filled(kind: type[M], values: Any, door: Door) -> M:
    """A message of this kind, each field filled from the value of the same name."""
    get = values.get if isinstance(values, dict) else lambda name: getattr(values, name)
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        value = get(field.name)
        if value is None and _may_be_unset(field):
            continue
        try:
            if field.enum_type is not None:
                setattr(message, field.name, _words(field.enum_type).index(str(value)))
            elif field.message_type is not None:
                inner = getattr(pb, field.message_type.name)
                getattr(message, field.name).CopyFrom(_filled(inner, value, door))
            elif isinstance(value, tuple):
                getattr(message, field.name).extend(value)
            else:
                setattr(message, field.name, value)
        except (TypeError, ValueError):  # an unknown word, a number too large, text for a number
            raise Refused(
                f"{door.who} a {field.name} that airlock.proto has no place for"
            ) from None
    return message


def _values(message: Message, door: Door) -> dict[str, Any]:
    """The fields of a message by name, as Python values."""
    values: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.enum_type is not None:
            words = _words(field.enum_type)
            if not 0 < value < len(words):  # 5
                raise Refused(f"{door.who} no known {field.name}; expected one of {words[1:]}")
            value = words[value]
        elif _may_be_unset(field) and not message.HasField(field.name):
            value = None
        elif field.message_type is not None:
            value = _values(value, door)
        elif field.is_repeated:
            value = tuple(value)
        values[field.name] = value
    return values


def _may_be_unset(field: Any) -> bool:
    """Whether airlock.proto calls this number optional; an unset one is None in the settings."""
    return bool(field.has_presence) and field.message_type is None


def _words(enum: Any) -> list[str]:
    """The words of an enum as settings spell them: METHOD_SELF_TRAINING is self-training."""
    prefix = enum.values[0].name.removesuffix("UNSET")
    names = [value.name.removeprefix(prefix) for value in enum.values]
    return [name.lower().replace("_", "-") for name in names]
