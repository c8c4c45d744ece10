"""Our reader of Flower's objects agrees with Flower's, and no message can make it hold too much."""

from pathlib import Path

import numpy as np
import pytest

from knowmine.shared.errors import Refused
from knowmine.shared.protocol import EvaluateTask
from knowmine.shared.settings import Plan
from knowmine.shared.wire import flower_objects
from knowmine.shared.wire.codec import pack_tasks
from knowmine.shared.wire.flower_objects import SMALL_BYTES, read_message
from knowmine.shared.wire.tensors import PackedWeights
from tests.flower_contract import imports_of, missing

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

LARGE = {"a": np.arange(3_000_000, dtype=np.float32), "b": np.zeros(3_000_000, np.float32)}


@pytest.mark.parametrize(("module", "name"), imports_of(Path(flower_objects.__file__)))
def test_flower_has_what_is_imported(module, name):
    """By name, so that an update of Flower fails here and not in a round."""
    assert not missing(module, name)


def a_task():
    """The records of a task of 24 MB in several chunks."""
    return pack_tasks({"lyon": EvaluateTask(1, 2, Plan(), LARGE)})["lyon"]


def parts_of(message):
    """A message as it lies in Flower's object store."""
    return {name: thing.deflate() for name, thing in get_all_nested_objects(message).items()}


def test_our_reader_agrees_with_flowers():
    """The same records from the same parts, chunks that are equal among them."""
    message = Message(a_task(), 1, "evaluate")
    parts = parts_of(message)
    theirs = inflate_object_from_contents(message.object_id, dict(parts))
    ours = read_message(message.object_id, parts)
    assert ours.object_id == theirs.object_id


def test_what_is_sent_to_many_is_digested_once(monkeypatch):
    """The second site costs no look at the model's bytes."""
    weights = PackedWeights(LARGE)
    digested = []

    def noted(content):
        digested.append(len(content))
        return get_object_id(content)

    monkeypatch.setattr("flwr.supercore.inflatable.inflatable_object.get_object_id", noted)
    for node in (1, 2):
        tasks = pack_tasks({"lyon": EvaluateTask(1, 2, Plan(), weights)})
        with no_object_id_recompute():
            get_all_nested_objects(Message(tasks["lyon"], node, "evaluate"))
    assert digested
    assert max(digested) < 10_000


def test_one_chunk_named_a_hundred_thousand_times_is_refused():
    """A small answer cannot fill the reader's memory."""
    message = Message(a_task(), 1, "evaluate")
    parts = parts_of(message)
    name = next(key for key, content in parts.items() if content.startswith(b"Array "))
    head, body = parts[name].split(b"\0", 1)
    many = body.replace(b'"arraychunk_ids": [0', b'"arraychunk_ids": [0' + b", 0" * 100_000)
    start, _, _ = head.rpartition(b" ")
    parts[name] = start + b" %d\0" % len(many) + many
    with pytest.raises(Refused, match="bytes of arrays; expected at most"):
        read_message(message.object_id, parts)


def test_arrays_are_counted_together():
    """Many that are small enough each are too much."""
    array = Array(dtype="uint8", shape=(1000,), stype="x", data=bytes(1000))
    other = Array(dtype="uint8", shape=(1000,), stype="y", data=bytes(1000))
    records = RecordDict({"a": ArrayRecord({"one": array, "two": other})})
    message = Message(records, 1, "evaluate")
    assert read_message(message.object_id, parts_of(message), 2000)
    with pytest.raises(Refused, match="expected at most 999"):
        read_message(message.object_id, parts_of(message), 1999)


@pytest.mark.parametrize("records", [1, 20])
def test_what_is_no_array_is_small_together(records):
    """Lists of numbers grow to 23 times their bytes when they are read."""

    def parts_with(size):
        text = "x" * (size // records)
        content = RecordDict()
        for i in range(records):
            content[str(i)] = ConfigRecord({f"of {i}": text})
        message = Message(content, 1, "evaluate")
        return message.object_id, parts_of(message)

    assert read_message(*parts_with(SMALL_BYTES - 10_000))
    with pytest.raises(Refused, match="bytes of other records; expected at most"):
        read_message(*parts_with(SMALL_BYTES))


def test_a_long_description_of_an_array_is_no_array():
    """What an array says of itself counts with the rest."""
    message = Message(a_task(), 1, "evaluate")
    parts = parts_of(message)
    name = next(key for key, content in parts.items() if content.startswith(b"Array "))
    parts[name] += b" " * SMALL_BYTES
    with pytest.raises(Refused, match="bytes of other records"):
        read_message(message.object_id, parts)


def test_a_thing_that_is_no_chunk_is_no_part_of_an_array():
    """Nor is a message that is no message read as one."""
    message = Message(a_task(), 1, "evaluate")
    parts = parts_of(message)
    chunk = next(key for key, content in parts.items() if content.startswith(b"ArrayChunk"))
    record = next(key for key, content in parts.items() if content.startswith(b"ConfigRecord"))
    with pytest.raises(Refused, match="found a ConfigRecord"):
        read_message(message.object_id, {**parts, chunk: parts[record]})
    with pytest.raises(Refused, match="expected a message"):
        read_message(record, parts)
