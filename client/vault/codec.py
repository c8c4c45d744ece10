"""Tasks and answers as the messages of airlock.proto and back; each end checks what it is sent.

Both ends know the installed model's manifest from their own settings. It fixes which tensor
comes next, how many bytes it has and what they mean; a message can only fill that in or be
refused. Checked on arrival, at either end:

 1. a message holds what airlock.proto lists, each once, and nothing besides
 2. a task or an answer comes first, then the installed model's tensors in its order, all of them,
    and all of SAM's mask decoder where it says so, which it may where the task's plan shares it
 3. each chunk is full, or its tensor's last; none is left over
 4. floats are finite, counters not negative, nothing is absurdly large
 5. each word is of its list, each number in its range, each list of numbers as long as it must be
 6. a round is one of a run that ends, and its work has a bound
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from pydantic import ValidationError

from knowmine.client.vault import airlock_pb2 as pb
from knowmine.shared.checks import Door
from knowmine.shared.errors import Refused
from knowmine.shared.mask_decoder import DECODER, parted
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
    tensors_of,
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
"""Options of both ends. A message travels as one frame: in gRPC's own of 16 kB it costs a fifth more CPU."""
MAX_ROUNDS, MAX_STEPS = 10_000, 10_000
"""More is not a run but an occupation of the hospital's machine."""
_LARGE = 1e15

TO_VAULT = Door("the vault was sent", Refused)
FROM_VAULT = Door("the vault sent", Refused)


class Piece(NamedTuple):
    """A part that is a piece of a tensor, and a view of its bytes.

    Not protobuf's message, which copies the bytes three times on the way out and three on the way
    in, and a fourth to be checked.
    """

    tensor: int
    data: memoryview


TaskPart = pb.TaskPart | Piece
UpdatePart = pb.UpdatePart | Piece


def strictly(kind: type[M]) -> Callable[[bytes], M | Piece]:
    """A parser of messages of this kind that refuses whatever airlock.proto does not list."""

    def parse(content: bytes) -> M | Piece:
        if kind in (pb.TaskPart, pb.UpdatePart) and (piece := _piece_of(content)):
            return piece
        message = kind()
        try:
            message.ParseFromString(content)
        except DecodeError:
            raise Refused(f"not a message of the airlock: expected {kind.__name__}") from None
        message.DiscardUnknownFields()
        # 1: a field that is unknown, repeated or written in a roundabout way reads differently.
        if message.SerializeToString() != content:
            raise Refused(f"a {kind.__name__} that holds more than airlock.proto lists")
        return message

    return parse


def serialised(part: Message | Piece) -> bytes:
    """What protobuf makes of a part."""
    if isinstance(part, Piece):
        return b"".join((_envelope(part.tensor, len(part.data)), part.data))
    return part.SerializeToString()


def pack_task(task: TrainTask | EvaluateTask, manifest: Manifest) -> Iterator[TaskPart]:
    """The parts of a task; raise `Refused` at once where it does not fit the airlock."""
    calibration = task.calibration if isinstance(task, TrainTask) else Calibration()
    values = {**dict(task.plan), "round": task.round, "rounds": task.rounds}
    del values["model"], values["transport"]  # the one is installed, the other is the courier's
    values |= {"calibration": calibration, "decoder": bool(task.decoder)}
    tensors, listed = tensors_of(task), _listed(manifest, task.decoder)
    _fits(tensors, listed, TO_VAULT)
    heading = _filled(pb.Task, values, TO_VAULT)
    return _parts(pb.TaskPart(task=heading), tensors, listed)


def unpack_train_task(
    parts: Iterable[TaskPart], model: ModelSettings, manifest: Manifest
) -> TrainTask:
    """The task to improve; raise `Refused` for anything else."""
    parts = iter(parts)
    round_, rounds, plan, sums, follows = _unpack_heading(parts, model)
    weights, decoder = parted(_gather(parts, _listed(manifest, follows), TO_VAULT))
    return TrainTask(round_, rounds, plan, weights, sums, decoder)


def unpack_evaluate_task(
    parts: Iterable[TaskPart], model: ModelSettings, manifest: Manifest
) -> EvaluateTask:
    """The task to score; raise `Refused` for anything else."""
    parts = iter(parts)
    round_, rounds, plan, _, follows = _unpack_heading(parts, model)
    weights, decoder = parted(_gather(parts, _listed(manifest, follows), TO_VAULT))
    return EvaluateTask(round_, rounds, plan, weights, decoder)


def pack_update(update: Update, manifest: Manifest) -> Iterator[UpdatePart]:
    """The parts of an update."""
    tensors, listed = tensors_of(update), _listed(manifest, update.decoder)
    _fits(tensors, listed, FROM_VAULT)
    values = {**vars(update), "decoder": bool(update.decoder)}
    heading = _filled(pb.Update, values, FROM_VAULT)
    return _parts(pb.UpdatePart(update=heading), tensors, listed)


def unpack_update(
    parts: Iterable[UpdatePart], manifest: Manifest, *, shares_decoder: bool = False
) -> Update:
    """The update; raise `Refused` for anything else. `egress` looks at its numbers again.

    shares_decoder: whether the plan of the task that it answers lets SAM's decoder follow.
    """
    parts = iter(parts)
    first = next(parts, None)
    if not isinstance(first, pb.UpdatePart) or first.WhichOneof("part") != "update":  # 2
        raise Refused("the vault sent no update first; expected its counts, then its tensors")
    values = _values(first.update, FROM_VAULT)
    mined, follows = Mined(**values.pop("mined")), values.pop("decoder")
    if follows and not shares_decoder:  # 2
        raise Refused("the vault sent SAM's decoder; the plan that it was sent shares none")
    weights, decoder = parted(_gather(parts, _listed(manifest, follows), FROM_VAULT))
    return Update(weights=weights, mined=mined, decoder=decoder, **values)


def pack_scores(scores: Scores) -> pb.Scores:
    """Scores as a message."""
    return _filled(pb.Scores, vars(scores), FROM_VAULT)


def unpack_scores(message: pb.Scores) -> Scores:
    """The scores; raise `Refused` where they cannot be."""
    values = _values(message, FROM_VAULT)
    return Scores(**{**values, "calibration": _calibration(values["calibration"], FROM_VAULT)})


def fingerprint(manifest: Manifest) -> int:
    """A number by which both ends see that they have the same model installed."""
    return int.from_bytes(bytes.fromhex(digest_of_manifest(manifest))[:8])


def check_protocol(seen: int) -> None:
    """Both ends run the same release, or nothing crosses."""
    if seen != PROTOCOL:
        raise Refused(
            f"the airlock's other end speaks protocol {seen}, this one {PROTOCOL}: "
            "install one version of knowmine at this site"
        )


def _piece_of(content: bytes) -> Piece | None:
    """The piece of tensor whose only way to be written is `content`; None where it is anything else.

    Whatever the numbers at its start are taken for, the envelope that they make must stand there,
    to the byte: it announces all that follows as the tensor's bytes, so nothing else can.
    """
    place, tensor = 1 + len(_number_at(content, 1)), 0
    if content[place : place + 1] == b"\x08":
        digits = _number_at(content, place + 1)
        tensor = sum((digit & 0x7F) << 7 * i for i, digit in enumerate(digits))
        place += 1 + len(digits)
    place += 1 + len(_number_at(content, place + 1))
    data = memoryview(content)[place:]
    if not len(data) or tensor >= 1 << 32 or content[:place] != _envelope(tensor, len(data)):
        return None
    return Piece(tensor, data)


def _number_at(content: bytes, place: int) -> bytes:
    """The bytes of the number that begins there; at most five, as many as 32 bits need."""
    for end in range(place, min(place + 5, len(content))):
        if content[end] < 0x80:
            return content[place : end + 1]
    return content[place : place + 5]


def _envelope(tensor: int, length: int) -> bytes:
    """What protobuf writes before the `length` bytes, at least one, of a piece of tensor.

    Each field's number and kind, then its value in as few bytes as hold it; a zero is left out.
    """
    inner = (b"\x08" + _varint(tensor) if tensor else b"") + b"\x12" + _varint(length)
    return b"\x12" + _varint(len(inner) + length) + inner


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))


def _unpack_heading(
    parts: Iterator[TaskPart], model: ModelSettings
) -> tuple[int, int, Plan, Calibration, bool]:
    first = next(parts, None)
    if not isinstance(first, pb.TaskPart) or first.WhichOneof("part") != "task":  # 2
        raise Refused("the vault was sent no task first; expected the task, then its tensors")
    values = _values(first.task, TO_VAULT)
    sums, decoder = _calibration(values.pop("calibration"), TO_VAULT), values.pop("decoder")
    rounds = TO_VAULT.count("rounds", values.pop("rounds"), low=1, high=MAX_ROUNDS)  # 6
    round_ = TO_VAULT.count("round", values.pop("round"), low=1, high=rounds)
    TO_VAULT.count("training.steps", values["training"]["steps"], low=1, high=MAX_STEPS)
    try:
        plan = Plan.model_validate({**values, "model": model})  # 5
    except ValidationError as error:
        first_error = error.errors()[0]
        key = ".".join(map(str, first_error["loc"]))
        raise Refused(f"the vault was sent a round's `{key}`: {first_error['msg']}") from None
    if decoder and not plan.shares_decoder:  # 2
        raise Refused("the vault was sent SAM's decoder by a plan that shares none")
    return round_, rounds, plan, sums, decoder


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
        # Sums of no images are empty; a judge that could not be fitted leaves its own two out.
        if values[key] and images:
            door.numbers(f"calibration.{key}", values[key], length, low=-_LARGE, high=_LARGE)
        elif values[key]:
            raise Refused(f"{door.who} calibration.{key} of no images; expected no numbers")
    return Calibration(**values)


def _listed(manifest: Manifest, decoder: object) -> Manifest:
    """The tensors that come: the installed model's, and SAM's mask decoder's if there is one."""
    return {**manifest, **DECODER} if decoder else manifest


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
    """A message whose fields have the names of the values that it is filled from."""
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
        except (TypeError, ValueError):  # a word of no list, a number too large, text for a number
            raise Refused(
                f"{door.who} a {field.name} that airlock.proto has no place for"
            ) from None
    return message


def _values(message: Message, door: Door) -> dict[str, Any]:
    """The fields of a message by name, in the types of Python."""
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
    """Whether airlock.proto calls this number optional; settings say None where nobody chose one."""
    return bool(field.has_presence) and field.message_type is None


def _words(enum: Any) -> list[str]:
    """The words of a list as settings write them: METHOD_SELF_TRAINING is self-training."""
    prefix = enum.values[0].name.removesuffix("UNSET")
    names = [value.name.removeprefix(prefix) for value in enum.values]
    return [name.lower().replace("_", "-") for name in names]
