"""Read and write the airlock's messages as bytes, and refuse all but their one spelling.

A piece of a tensor is framed by hand. Protobuf copies its bytes three times on the way out and
three on the way in, and a fourth time for the check; the frame here costs one copy. The bytes are
those that protobuf writes, and a test compares both.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from knowmine.client.vault import airlock_pb2 as pb
from knowmine.shared.errors import Refused

M = TypeVar("M", bound=Message)


class Piece(NamedTuple):
    """A part of a message that is a piece of a tensor: the tensor's number and a view of bytes."""

    tensor: int
    data: memoryview


def strictly(kind: type[M]) -> Callable[[bytes], M | Piece]:
    """A parser for messages of this kind that refuses whatever airlock.proto does not list."""

    def parse(content: bytes) -> M | Piece:
        if kind in (pb.TaskPart, pb.UpdatePart) and (piece := _piece_of(content)):
            return piece
        message = kind()
        try:
            message.ParseFromString(content)
        except DecodeError:
            raise Refused(f"not a message of the airlock: expected {kind.__name__}") from None
        message.DiscardUnknownFields()
        # A field that is unknown, repeated or written in a roundabout way reads differently.
        if message.SerializeToString() != content:
            raise Refused(f"a {kind.__name__} that holds more than airlock.proto lists")
        return message

    return parse


def serialised(part: Message | Piece) -> bytes:
    """The bytes that protobuf writes for a part."""
    if isinstance(part, Piece):
        return b"".join((_envelope(part.tensor, len(part.data)), part.data))
    return part.SerializeToString()


def _piece_of(content: bytes) -> Piece | None:
    """The piece of tensor that `content` spells, or None if it is anything else.

    Read the numbers at the start, write the envelope that they give, and compare it byte by byte.
    An equal envelope says that all bytes after it are the tensor's, so nothing else fits in.
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
    """The bytes of the number that begins there: five at most, enough for 32 bits."""
    for end in range(place, min(place + 5, len(content))):
        if content[end] < 0x80:
            return content[place : end + 1]
    return content[place : place + 5]


def _envelope(tensor: int, length: int) -> bytes:
    """What protobuf writes before the `length` bytes, at least one, of a piece of tensor.

    Each field has its number and kind, then its value in as few bytes as hold it. A zero is left
    out.
    """
    inner = (b"\x08" + _varint(tensor) if tensor else b"") + b"\x12" + _varint(length)
    return b"\x12" + _varint(len(inner) + length) + inner


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth bit says that more bytes follow."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))
