"""Write and read Flower's messages as the objects that travel, without Flower's copies.

Flower cuts a message into objects, each named by its digest, and an array into chunks. What comes
in is hostile until it is read here and unpacked by `codec.py`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from knowmine.shared.errors import Refused
from knowmine.shared.wire import quiet_flower  # noqa: F401 - before Flower is imported

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

MAX_ARRAY_BYTES = 2**32
"""Default limit of all arrays in a message together."""
SMALL_BYTES = 2_000_000
"""Limit of everything that is not weights: settings, sums, signatures, names of tensors."""


def as_record(data: bytes, stype: str) -> ArrayRecord:
    """Bytes as a record of one array in Flower's chunks, each a view: nothing is copied.

    stype: the array's name for their format.
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
    """The message that arrived in `parts`, by object id.

    most: bytes that its arrays may hold together, even if a small part is named often. Everything
    else may be `SMALL_BYTES` together, because as Python objects it grows more than twentyfold.

    Flower's own reader holds a large array three times before it is done. This one joins its
    chunks directly.
    Raises `Refused` for anything but a message; other damage raises other exceptions.
    """
    message = _Reader(parts, most).read(message_id)
    if not isinstance(message, Message):
        raise Refused(f"expected a message, found a {type(message).__name__}")
    # Flower sets a message's id on arrival; its classes offer no public way to do it.
    message.metadata.__dict__["_message_id"] = message_id
    return message


class _Reader:
    """Reads the objects of one message, each once."""

    def __init__(self, parts: Mapping[str, bytes], most: float) -> None:
        self._parts, self._known = parts, dict[str, Any]()
        self._arrays, self._others = _Bound(most, "arrays"), _Bound(SMALL_BYTES, "other records")

    def read(self, object_id: str) -> Any:
        """An object with all that is in it."""
        if object_id not in self._known:
            content = self._parts[object_id]
            self._others.take(len(content))
            kind, children, _ = get_object_head_values_from_object_content(content)
            if kind == Array.__qualname__:
                self._known[object_id] = self._array(content, children)
            else:
                inside = {child: self.read(child) for child in children}
                self._known[object_id] = inflatable_class_registry[kind].inflate(content, inside)
        return self._known[object_id]

    def _array(self, content: bytes, children: Sequence[str]) -> Array:
        about = json.loads(get_object_body(content, Array))
        chunks = [_body_of_chunk(self._parts[child]) for child in children]
        run = [chunks[index] for index in about["arraychunk_ids"]]
        self._arrays.take(sum(map(len, run)))
        return Array(
            dtype=about["dtype"],
            shape=tuple(about["shape"]),
            stype=about["stype"],
            data=b"".join(run),
        )


class _Bound:
    """How many bytes of one kind may still be read."""

    def __init__(self, most: float, what: str) -> None:
        self._left, self._what = most, what

    def take(self, size: int) -> None:
        if size > self._left:
            raise Refused(f"{size} bytes of {self._what}; expected at most {self._left:.0f}")
        self._left -= size


def _body_of_chunk(content: bytes) -> memoryview:
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind != ArrayChunk.__qualname__ or children:
        raise Refused(f"expected a part of an array, found a {kind}")
    return memoryview(content)[content.index(HEAD_BODY_DIVIDER) + len(HEAD_BODY_DIVIDER) :]


class _Chunk(ArrayChunk):
    """A chunk that never changes: its digest is computed once, not each time it is sent."""

    is_dirty = False


# Flower writes this name into what it sends.
_Chunk.__qualname__ = ArrayChunk.__qualname__
