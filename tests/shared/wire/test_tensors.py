"""Weights arrive bit for bit as read-only views, and bytes that are no weights are refused."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from knowmine.shared.errors import Refused
from knowmine.shared.protocol import TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.weights import sent_bytes_of
from knowmine.shared.wire import codec, packing, tensors
from knowmine.shared.wire.changes import pack_change
from knowmine.shared.wire.flower_objects import through_the_wire
from knowmine.shared.wire.tensors import PackedWeights

from flwr.app import Array, ArrayRecord, Message
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

WEIGHTS = {
    "head.weight": np.array([[0.1, -0.0], [np.pi, 1e-40]], np.float32),
    "bn.num_batches_tracked": np.array(2**40 + 1),
}
UPDATE = Update(3, WEIGHTS, 12, 5, 0.25, 3.5)


def sent(records):
    """The records as the other end gets them."""
    return through_the_wire(Message(records, 1, "train")).content


@given(
    arrays(
        st.sampled_from([np.float32, np.float64, np.int64, np.float16]),
        array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    )
)
@settings(max_examples=30)
def test_any_tensor_arrives_bit_for_bit(array):
    """Whatever the numbers are, NaN with its payload included."""
    update = replace(UPDATE, weights={"w": array})
    seen = codec.unpack_update(sent(codec.pack_reply(update))).weights["w"]
    assert (seen.dtype, seen.shape, seen.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_a_transposed_tensor_arrives_in_its_shape():
    """The order in memory is the sender's own affair."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    update = replace(UPDATE, weights={"w": array})
    seen = codec.unpack_update(sent(codec.pack_reply(update))).weights["w"]
    assert np.array_equal(seen, array)


def test_tensors_from_the_wire_cannot_be_written_to():
    """They are views of what came."""
    weights = codec.unpack_update(sent(codec.pack_reply(UPDATE))).weights
    with pytest.raises(ValueError, match="read-only"):
        weights["head.weight"][0, 0] = 1


def test_packed_weights_are_a_copy():
    """What the sender does afterwards is not seen at the other end."""
    weights = {"w": np.zeros(2, np.float32)}
    records = codec.pack_reply(replace(UPDATE, weights=weights))
    weights["w"] += 1
    assert not codec.unpack_update(records).weights["w"].any()


def test_packed_weights_go_out_as_they_are():
    """A server that holds its model in this form packs it once."""
    packed = PackedWeights(WEIGHTS)
    assert tensors.pack_weights(packed) is packed.record
    assert list(packed) == list(WEIGHTS) and len(packed) == 2
    assert packed["head.weight"].tobytes() == WEIGHTS["head.weight"].tobytes()


def plan(update):
    return Plan.model_validate({"transport": {"update": update}})


def changed():
    """An update that travels as a change."""
    change = pack_change(WEIGHTS, WEIGHTS, "int8", {}, 0)
    return codec.pack_reply(UPDATE, change.data), len(change.data)


def test_a_change_knows_how_many_bytes_it_took():
    """The record of the round counts what travelled."""
    records, size = changed()
    seen = codec.unpack_update(sent(records), TrainTask(3, 5, plan("int8"), WEIGHTS))
    assert sent_bytes_of(seen.weights) == size


@pytest.mark.parametrize("task", [None, TrainTask(3, 5, plan("none"), WEIGHTS)])
def test_a_change_is_refused_unless_the_plan_asks_for_one(task):
    """Without a task there is nothing that it could change."""
    records, _ = changed()
    with pytest.raises(Refused, match="the plan asks for whole weights"):
        codec.unpack_update(sent(records), task)


# ── what is not weights ────────────────────────────────────────────────────────────────────────


def header(text):
    """The beginning of packed weights with any text for a header."""
    return len(text).to_bytes(8, "little") + text.encode()


def with_bytes(data, stype=tensors.STYPE):
    """An update whose weights are these bytes."""
    records = codec.pack_reply(UPDATE)
    records["weights"] = ArrayRecord({"all": Array("uint8", (len(data),), stype, data)})
    return records


def one(dtype="F32", shape="[2]", offsets="[0, 8]", rest=bytes(8)):
    """Packed weights of one tensor, as these words describe it."""
    words = f'{{"w": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}'
    return header(words) + rest


TWO = packing.pack({"w": np.ones(2, np.float32)})
BAD_TENSORS = {
    "another shape": (one(shape="[3]"), "needs 12 bytes"),
    "another dtype": (one("F64"), "needs 16 bytes"),
    "cut short": (TWO[:-1], "needs 8 bytes"),
    "one byte more": (TWO + b"x", "1 bytes follow"),
    "no bytes": (b"", "claim a header of"),
    "half a length": (TWO[:5], "claim a header of"),
    "a header longer than all": ((10**9).to_bytes(8, "little") + TWO[8:], "claim a header of"),
    "unknown dtype": (one("OBJECT"), "lacks"),
    "a gap": (one(offsets="[4, 12]", rest=bytes(12)), "from 0 on"),
    "backwards": (one(offsets="[8, 0]"), "needs 8 bytes"),
    "negative": (one(shape="[-1, -2]"), "whole number"),
    "a fraction": (one(shape="[2.0]"), "whole number"),
    "endless": (one(shape="[99999999999]"), "needs 399999999996 bytes"),
    "a list": (header("[1, 2]"), "no list of tensors"),
    "open bracket": (header('{"w": ['), "no JSON"),
    "deep": (header("[" * 50_000), "no JSON"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_weights_that_are_none_are_refused(case):
    """A header that lies, bytes that are no weights: refused, whichever parser stumbles."""
    data, words = BAD_TENSORS[case]
    with pytest.raises(Refused, match=words):
        codec.unpack_update(with_bytes(data))


def test_weights_in_another_form_are_refused():
    """Flower's own arrays are NumPy files."""
    with pytest.raises(Refused, match="expected 'safetensors'"):
        codec.unpack_update(with_bytes(TWO, "numpy.ndarray"))


def test_two_tensors_cannot_share_bytes():
    """Else a small message could claim to be a large model."""
    entry = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    words = f'{{"a": {entry}, "b": {entry}}}'
    with pytest.raises(Refused, match=r"tensor b .* from 8 on"):
        codec.unpack_update(with_bytes(header(words) + bytes(8)))
