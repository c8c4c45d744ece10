"""Read and write the airlock's messages as bytes, and refuse all but their one spelling.

Protobuf reads and writes. A piece of a tensor is not written a second time to check its spelling:
protobuf's bytes before the data are compared, and the data is all that may follow them.
"""

from collections.abc import Callable
from functools import lru_cache
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
        message = kind()
        try:
            message.ParseFromString(content)
        except DecodeError:
            raise Refused(f"not a message of the airlock: expected {kind.__name__}") from None
        if isinstance(message, pb.TaskPart | pb.UpdatePart) and message.HasField("weights"):
            piece = Piece(message.weights.tensor, memoryview(message.weights.data))
            head = _head(piece.tensor, len(piece.data))
            if (
                len(piece.data)
                and content.startswith(head)
                and len(content) == len(head) + len(piece.data)
            ):
                return piece
        message.DiscardUnknownFields()
        # A field that is unknown, repeated or written in a roundabout way reads differently.
        if message.SerializeToString() != content:
            raise Refused(f"a {kind.__name__} that holds more than airlock.proto lists")
        return message

    return parse


def serialised(part: Message | Piece) -> bytes:
    """The bytes that protobuf writes for a part."""
    if isinstance(part, Piece):
        return b"".join((_head(part.tensor, len(part.data)), part.data))
    return part.SerializeToString()


@lru_cache(maxsize=4096)
def _head(tensor: int, length: int) -> bytes:
    """What protobuf writes before `length` bytes of a tensor: all of a part but its data.

    Equal for TaskPart and UpdatePart, which number their fields alike.
    """
    whole = pb.TaskPart(weights=pb.Chunk(tensor=tensor, data=bytes(length))).SerializeToString()
    return whole[: len(whole) - length]
