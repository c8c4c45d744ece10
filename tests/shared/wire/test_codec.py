"""What is packed comes out equal at the other end, and nothing else comes out at all."""

from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.shared.errors import Refused
from knowmine.shared.protocol import (
    GATES,
    Calibration,
    EvaluateTask,
    Hello,
    Mined,
    Scores,
    TrainTask,
    Update,
)
from knowmine.shared.settings import Plan
from knowmine.shared.trust.countersign import Confirmation, Head
from knowmine.shared.wire import codec, packing, tensors
from knowmine.shared.wire.flower_objects import through_the_wire

from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

WEIGHTS = {
    "head.weight": np.array([[0.1, -0.0], [np.pi, 1e-40]], np.float32),
    "bn.num_batches_tracked": np.array(2**40 + 1),
    "bn.scale": np.array(1.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
PROBED = Calibration(4, (1.0, 2.0, 3.0, 3.5, 4.0), (4.0, 2.1, 2.1, 3.0), (3.0, 0.1), 2, 1, 1)
PLAN = Plan.model_validate({"method": "paper", "seed": 7, "model": {"classes": 3}})
UPDATE = Update(3, WEIGHTS, 12, 5, 0.25, 3.5, Mined(5, 3, 1, "on", 0.25, 0.9, 0.8))
UNPACKERS: list[Any] = [
    codec.unpack_hello,
    codec.unpack_update,
    codec.unpack_scores,
    codec.unpack_train_task,
    codec.unpack_evaluate_task,
]


def sent(records):
    """The records as the other end gets them."""
    return through_the_wire(Message(records, 1, "train")).content


def same(a, b):
    """Equal, arrays bit for bit in shape, dtype and bytes."""
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if is_dataclass(a):
        return type(a) is type(b) and all(
            same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)
        )
    return (type(a), a) == (type(b), b)


def task(records):
    return codec.pack_tasks({"lyon": records})["lyon"]


MESSAGES: dict[str, Any] = {
    "hello": (
        Hello("lyon", 1, "ab" * 32, 8, 100, 2, 10),
        codec.pack_reply,
        codec.unpack_hello,
    ),
    "update": (UPDATE, codec.pack_reply, codec.unpack_update),
    "scores": (Scores(3, 10, 8.5, 7.5, 120.0, PROBED), codec.pack_reply, codec.unpack_scores),
    "scores of nothing": (Scores(3, 0, 0.0, 0.0, 0.0), codec.pack_reply, codec.unpack_scores),
    "train": (TrainTask(3, 5, PLAN, WEIGHTS, PROBED), task, codec.unpack_train_task),
    "first train": (TrainTask(1, 5, Plan(), WEIGHTS), task, codec.unpack_train_task),
    "evaluate": (EvaluateTask(3, 9, PLAN, WEIGHTS), task, codec.unpack_evaluate_task),
}


def test_a_message_holds_nothing_else():
    """Each record in it has its name."""
    assert set(codec.pack_reply(UPDATE)) == {"update", "mined", "weights"}
    assert set(task(TrainTask(3, 5, PLAN, WEIGHTS))) == {"task", "weights", "calibration"}
    assert set(task(EvaluateTask(3, 5, PLAN, WEIGHTS))) == {"task", "weights"}


@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_arrives_as_it_was(kind):
    """Each type of message, bit for bit."""
    message, pack, unpack = MESSAGES[kind]
    assert same(unpack(sent(pack(message))), message)


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_arrives(gate):
    """Gates travel as numbers and come out as words."""
    update = replace(UPDATE, mined=Mined(gate=gate))
    assert codec.unpack_update(sent(codec.pack_reply(update))).mined.gate == gate


def test_a_reply_to_a_message_arrives_too():
    """Replies refer to what they answer."""
    question = through_the_wire(Message(RecordDict(), 1, "query"))
    reply = Message(codec.pack_reply(UPDATE), reply_to=question)
    assert same(codec.unpack_update(through_the_wire(reply).content), UPDATE)


def test_weights_for_several_sites_are_packed_once():
    """A hundred tasks with one model hold it once."""
    tasks = {name: EvaluateTask(1, 9, PLAN, WEIGHTS) for name in ("lyon", "porto")}
    packed = codec.pack_tasks(tasks)
    assert packed["lyon"]["weights"] is packed["porto"]["weights"]


def test_tasks_with_weights_of_their_own_keep_them():
    """Sharing goes by identity, not by name."""
    tasks = {str(n): EvaluateTask(n, 9, PLAN, {"w": np.array(n)}) for n in (1, 2)}
    packed = codec.pack_tasks(tasks)
    assert [int(codec.unpack_evaluate_task(packed[n]).weights["w"]) for n in "12"] == [1, 2]


# ── what is not a message ──────────────────────────────────────────────────────────────────────


def bent(kind, key, **changes):
    """A packed message with some of a record's fields replaced, or left out where None."""
    message, pack, unpack = MESSAGES[kind]
    records = pack(message)
    for name, value in changes.items():
        if value is None:
            del records[key][name]
        else:
            records[key][name] = value
    return unpack, records


BENT = {
    "another protocol": (bent("train", "task", protocol=2), "speaks protocol 2, this site"),
    "no protocol": (bent("train", "task", protocol=None), "not a knowmine task: KeyError"),
    "unknown plan key": (
        bent("train", "task", plan='{"sede": 3}'),
        "not a knowmine task: ValidationError(.|\n)*sede",
    ),
    "impossible plan": (bent("evaluate", "task", plan='{"seed": -1}'), "seed"),
    "plan is no JSON": (bent("evaluate", "task", plan="{"), "not a knowmine task"),
    "plan is bytes": (bent("evaluate", "task", plan=b"{}"), "plan is not text"),
    "round is a fraction": (bent("train", "task", round=1.5), "expected a whole number"),
    "rounds are a truth": (bent("train", "task", rounds=True), "expected a whole number"),
    "unknown mined": (bent("update", "mined", bonus=1), "missing or unknown.*bonus"),
    "unknown gate": (bent("update", "mined", gate=9), "not a knowmine update"),
    "gate is a list": (bent("update", "mined", gate=[1]), "not a knowmine update"),
    "unknown number": (bent("update", "update", bonus=1), "not a knowmine update"),
    "missing number": (bent("update", "update", loss=None), "not a knowmine update"),
    "missing sum": (bent("scores", "calibration", gram=None), "missing or unknown.*gram"),
    "unknown hello": (bent("hello", "hello", ward="7b"), "missing or unknown.*ward"),
    "name is a list": (bent("hello", "hello", site=["lyon"]), "name is not text"),
}


@pytest.mark.parametrize("case", BENT)
def test_a_bent_message_is_refused(case):
    """The refusal says what was wrong with it."""
    (unpack, records), words = BENT[case]
    with pytest.raises(Refused, match=words):
        unpack(records)


@pytest.mark.parametrize("unpack", UNPACKERS)
@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_is_taken_only_for_what_it_is(kind, unpack):
    """An update is no hello; only a training task has all that a scoring task needs."""
    message, pack, own = MESSAGES[kind]
    if unpack is own or (unpack is codec.unpack_evaluate_task and "train" in kind):
        assert unpack(pack(message))
        return
    with pytest.raises(Refused):
        unpack(pack(message))


scalar = st.integers(-(2**63), 2**63 - 1) | st.floats()
numbers = scalar | st.lists(st.integers(-9, 9), max_size=3) | st.lists(st.floats(), max_size=3)
words: st.SearchStrategy[Any] = (
    numbers | st.text(max_size=4) | st.binary(max_size=4) | st.booleans()
)
names = st.sampled_from(
    ["round", "rounds", "plan", "protocol", "site", "gate", "kept", "loss", "labelled", "images"]
)
TWO = packing.pack({"w": np.ones(2, np.float32)})


def header(text):
    """The beginning of packed weights with any text for a header."""
    return len(text).to_bytes(8, "little") + text.encode()


tensor = st.builds(
    lambda stype, data: Array("uint8", (len(data),), stype, data),
    st.sampled_from([tensors.STYPE, "numpy.ndarray", ""]),
    st.sampled_from([TWO, TWO[:-4], TWO[:9]])
    | st.binary(max_size=20)
    | st.text(st.characters(codec="ascii"), max_size=40).map(header)
    | st.tuples(st.integers(0, len(TWO) - 1), st.integers(0, 255)).map(
        lambda at: TWO[: at[0]] + bytes([at[1]]) + TWO[at[0] + 1 :]
    ),
)
record = (
    st.dictionaries(names, numbers, max_size=4).map(MetricRecord)
    | st.dictionaries(names, words, max_size=4).map(ConfigRecord)
    | st.dictionaries(st.text(max_size=3), tensor, max_size=2).map(ArrayRecord)
)


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
@settings(max_examples=60)
def test_junk_is_refused_and_nothing_else_happens(kind, data):
    """Records replaced, added or left out: a message comes out or Refused is raised."""
    message, pack, unpack = MESSAGES[kind]
    records = pack(message)
    for key in (*records, "extra"):
        fate = data.draw(st.sampled_from(["keep", "replace", "bend", "drop"]))
        if fate == "replace":
            records[key] = data.draw(record)
        elif fate == "bend" and isinstance(records.get(key), MetricRecord):
            records[key][data.draw(st.sampled_from(list(records[key])))] = data.draw(numbers)
        elif fate == "bend" and isinstance(records.get(key), ConfigRecord):
            records[key][data.draw(st.sampled_from(list(records[key])))] = data.draw(words)
        elif fate == "bend" and isinstance(records.get(key), ArrayRecord):
            records[key]["all"] = data.draw(tensor)
        elif fate == "drop" and key in records:
            del records[key]
    with suppress(Refused):
        assert type(unpack(records)) is type(message)


HEAD, SAID = Head(7, "ab" * 32), Confirmation("lyon", "7", 3, 7, "ab" * 32, "cd" * 32, "now", "ef")


def test_a_checkpoint_arrives_beside_an_answer():
    """And no answer has to bring one."""
    records = codec.pack_reply(UPDATE)
    assert codec.unpack_head(sent(records)) is None
    records[codec.HEAD] = codec.pack_head(HEAD)
    arrived = sent(records)
    assert codec.unpack_head(arrived) == HEAD and same(codec.unpack_update(arrived), UPDATE)


@pytest.mark.parametrize(
    "values",
    [
        {"receipts": 7},
        {"receipts": 0, "hash": "ab" * 32},
        {"receipts": 7.0, "hash": "ab" * 32},
        {"receipts": 7, "hash": "AB" * 32},
        {"receipts": 7, "hash": "ab" * 32 + "\n"},
        {"receipts": 7, "hash": b"ab" * 32},
        {"receipts": 7, "hash": "ab" * 32, "note": "x"},
    ],
)
def test_what_is_no_checkpoint_is_refused(values):
    """It goes into the server's record of the round."""
    with pytest.raises(Refused):
        codec.unpack_head(RecordDict({codec.HEAD: ConfigRecord(values)}))


@pytest.mark.parametrize("kind", ["task", "goodbye"])
def test_a_confirmation_arrives_beside_a_task(kind):
    """The goodbye stays one."""
    question = {
        "task": codec.pack_tasks({"lyon": EvaluateTask(3, 9, PLAN, WEIGHTS)}, {"lyon": SAID})[
            "lyon"
        ],
        "goodbye": codec.pack_goodbye(SAID),
    }[kind]
    arrived = sent(question)
    assert codec.unpack_confirmation(arrived) == SAID
    assert codec.is_goodbye(arrived) == (kind == "goodbye")


@pytest.mark.parametrize(
    ("field", "value"),
    [("round", "3"), ("receipts", 7.0), ("head", b"ab"), ("time", "t" * 401), ("more", 1)],
)
def test_what_is_no_confirmation_is_refused(field, value):
    """A site keeps it for years, so it is short and typed."""
    records = RecordDict({codec.CONFIRMATION: ConfigRecord({**vars(SAID), field: value})})
    with pytest.raises(Refused):
        codec.unpack_confirmation(records)
