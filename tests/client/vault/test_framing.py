"""A message of the airlock has one spelling, and every other one is refused."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from knowmine.client.vault import airlock_pb2 as pb
from knowmine.client.vault import framing
from knowmine.shared.errors import Refused
from tests.client.vault.fuzz import fuzzed


def chunk(tensor, data):
    """A part that holds a piece of a tensor."""
    return pb.TaskPart(weights=pb.Chunk(tensor=tensor, data=data))


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\x02\x0a\x00",  # text where the task's round, a number, belongs
        b"\x12\x05\x08\x00\x9a\x3e\x00",  # a field beside tensor and data
        b"\xfa\x01\x09mueller a",  # an unknown field
        b"\x0a\x80\x80\x80\x80\x08",  # two gigabytes are promised
        b"\xff" * 64,
        b"\x12\x04\x08\x00\x08\x01",  # one number twice
        b"\x12\x03\x08\x80\x00",  # zero in two bytes
    ],
)
def test_bytes_that_are_no_listed_message_are_refused(content):
    """Not a byte crosses that airlock.proto does not account for."""
    with pytest.raises(Refused):
        framing.strictly(pb.TaskPart)(content)


def slowly_strict(kind, content):
    """The check as it was before it was made fast: written again, a message is its own bytes."""
    message = kind()
    try:
        message.ParseFromString(content)
    except DecodeError:
        return False
    message.DiscardUnknownFields()
    return message.SerializeToString() == content


def quickly_strict(kind, content):
    """Whether the parser takes it; what it takes is what protobuf reads."""
    try:
        part = framing.strictly(kind)(content)
    except Refused:
        return False
    seen = kind.FromString(content)
    if isinstance(part, framing.Piece):
        assert (seen.weights.tensor, seen.weights.data) == part
    else:
        assert seen == part
    return True


def roundabout(number, padding):
    """A number as protobuf may read it but never writes it: with `padding` bytes that say nothing."""
    digits = [number >> shift & 0x7F for shift in range(0, max(number.bit_length(), 1), 7)]
    digits += [0] * padding
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


@st.composite
def written_chunks(draw):
    """Parts with a piece of tensor, written in any way that protobuf reads, and some beside."""
    padding = st.sampled_from([0, 0, 0, 1, 3])

    def field(number, payload):
        tag = roundabout(number << 3 | (0 if isinstance(payload, int) else 2), draw(padding))
        if isinstance(payload, int):
            return tag + roundabout(payload, draw(padding))
        return tag + roundabout(len(payload), draw(padding)) + payload

    numbers = st.sampled_from([0, 1, 127, 128, 300, 2**32 - 1, 2**32, 2**64 - 1])
    data = st.binary(max_size=6) | st.sampled_from([b"\0" * 127, b"\0" * 128, b"\0" * 16_384])
    inner = st.tuples(st.just(1), numbers) | st.tuples(st.just(2), data)
    strange = st.tuples(st.sampled_from([1, 2, 3, 99]), numbers | st.binary(max_size=4))
    lists = st.lists(inner, max_size=3) | st.tuples(
        st.tuples(st.just(1), numbers), st.tuples(st.just(2), data)
    )
    chunk = b"".join(field(*each) for each in draw(lists))
    chunk += b"".join(field(*each) for each in draw(st.just([]) | st.lists(strange, max_size=1)))
    content = field(2, chunk)
    beside: st.SearchStrategy[Any] = st.just([]) | st.lists(strange, max_size=1)
    before, after = draw(beside), draw(beside)
    content = b"".join(field(*each) for each in before) + content
    content += b"".join(field(*each) for each in after)
    return content + draw(st.just(b"") | st.binary(max_size=3))


def test_the_fast_check_refuses_what_the_slow_one_does_and_nothing_else():
    """Fields doubled, out of order, unknown, empty, numbers in too many bytes: all ways to write."""
    verdicts = set()

    def check(content):
        for kind in (pb.TaskPart, pb.UpdatePart):
            slow = slowly_strict(kind, content)
            verdicts.add(slow)
            assert quickly_strict(kind, content) == slow

    fuzzed(check, written_chunks())
    assert verdicts == {True, False}, "only one kind of bytes was tried"


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 127, 128, 16_383, 16_384, 1_000_000]))
def test_a_piece_of_tensor_is_written_and_read_as_protobuf_does(tensor, length):
    """The fast way out gives protobuf's bytes, and the fast way in takes from them what it would."""
    data = b"\x12" * length
    for kind in (pb.TaskPart, pb.UpdatePart):
        content = kind(weights=pb.Chunk(tensor=tensor, data=data)).SerializeToString()
        assert framing.serialised(framing.Piece(tensor, memoryview(data))) == content
        assert framing.strictly(kind)(content) == framing.Piece(tensor, memoryview(data))


@given(st.data())
def test_no_single_changed_byte_of_a_chunk_gets_past_the_fast_check_alone(data):
    """Damage to a real piece of tensor: both checks say the same."""
    content = bytearray(
        chunk(
            data.draw(st.sampled_from([0, 3, 200])), b"\x08\x01\x12\x01a" * 40
        ).SerializeToString()
    )
    start = data.draw(st.integers(0, 12) | st.integers(0, len(content)))
    content[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    for kind in (pb.TaskPart, pb.UpdatePart):
        assert quickly_strict(kind, bytes(content)) == slowly_strict(kind, bytes(content))


def refused_or_whole(content):
    """A parser refuses, or gives a message that is exactly the bytes."""
    for kind in (pb.TaskPart, pb.UpdatePart, pb.Scores, pb.Introduction, pb.Question):
        try:
            message = framing.strictly(kind)(content)
        except Refused:
            continue
        assert framing.serialised(message) == content


def test_no_bytes_make_a_parser_do_anything_but_parse_or_refuse():
    """Made up from nothing."""
    fuzzed(refused_or_whole, st.binary(max_size=200))
