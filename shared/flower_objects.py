"""Flower's messages as the objects that travel, written and read without its copies.

Flower cuts a message into objects, each known by its digest, and an array into chunks. What
comes in is hostile until it was read here and unpacked by `wire`.
"""

import json
import os

# Flower reads these when it is first imported; a hospital's machine phones nobody.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from knowmine.shared.errors import Refused

MAX_ARRAY_BYTES = 2**32
"""Of all arrays in a message, where nobody sets a limit."""
SMALL_BYTES = 2_000_000
"""Room for all that is not weights: settings, sums, signatures, names of tensors."""


def as_record(data: bytes, stype: str) -> ArrayRecord:
    """Bytes as a record of one array in Flower's chunks, each a view: nothing is copied.

    stype: what the array says of them.
    """
    array = Array("uint8", (len(data),), stype, data)
    view, step = memoryview(data), FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
    chunks = [_Chunk(view[start : start + step]) for start in range(0, len(data), step)]
    array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]
    record = ArrayRecord()
    record["all"] = array  # its constructor would copy the array without the chunks
    return record


def through_the_wire(message: Message) -> Message:
    """Serialise and parse a message as the network does: chunks, digests, no shared memory."""
    content = {key: thing.deflate() for key, thing in get_all_nested_objects(message).items()}
    copy = read_message(message.object_id, content)
    copy.metadata.__dict__["_message_id"] = message.metadata.message_id
    return copy


def read_message(
    message_id: str, parts: Mapping[str, bytes], most: float = MAX_ARRAY_BYTES
) -> Message:
    """The message that arrived in `parts` by object id.

    most: bytes that its arrays may hold together; a small part may be named often.

    Flower's own reader holds a large array three times over before it is done. This one joins
    its chunks where they lie.
    Raises `Refused` where it is none; what else is wrong shows as another exception.
    """
    message = _read(message_id, parts, {}, [most])
    if not isinstance(message, Message):
        raise Refused(f"expected a message, found a {type(message).__name__}")
    # Flower sets a message's id on arrival; its classes offer no public way to.
    message.metadata.__dict__["_message_id"] = message_id
    return message


def _read(
    object_id: str, parts: Mapping[str, bytes], known: dict[str, Any], room: list[float]
) -> Any:
    if object_id not in known:
        content = parts[object_id]
        kind, children, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__qualname__:
            about = json.loads(get_object_body(content, Array))
            chunks = [_body_of_chunk(parts[child]) for child in children]
            run = [chunks[index] for index in about["arraychunk_ids"]]
            room[0] -= (size := sum(map(len, run)))
            if room[0] < 0:
                raise Refused(f"an array of {size} bytes; at most {size + room[0]:.0f} are read")
            known[object_id] = Array(
                dtype=about["dtype"],
                shape=tuple(about["shape"]),
                stype=about["stype"],
                data=b"".join(run),
            )
        else:
            read = {child: _read(child, parts, known, room) for child in children}
            known[object_id] = inflatable_class_registry[kind].inflate(content, read)
    return known[object_id]


def _body_of_chunk(content: bytes) -> memoryview:
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind != ArrayChunk.__qualname__ or children:
        raise Refused(f"expected a part of an array, found a {kind}")
    return memoryview(content)[content.index(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]


class _Chunk(ArrayChunk):
    """A part of an array that never changes: its digest is taken once, not whenever it is sent."""

    is_dirty = False


# Flower writes this into what is sent.
_Chunk.__qualname__ = ArrayChunk.__qualname__
