"""Only what airlock.proto lists crosses the airlock, and both ends check what they are sent."""

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from knowmine.client.vault import airlock_pb2, codec, framing
from knowmine.client.vault import airlock_pb2 as pb
from knowmine.shared.errors import Refused
from knowmine.shared.protocol import (
    Calibration,
    EvaluateTask,
    Hello,
    Mined,
    Scores,
    TrainTask,
    Update,
)
from knowmine.shared.settings import MiningSettings, ModelSettings, Plan, TrainingSettings
from knowmine.shared.weights import digest_of, manifest_of
from tests.client.vault.fuzz import fuzzed

ROOT = Path(__file__).parents[3]
MODEL = ModelSettings()
WEIGHTS: dict[str, Any] = {
    "stem.weight": np.linspace(-1, 1, 300_000, dtype=np.float32).reshape(3, 100_000),
    "norm.running_var": np.ones(4, np.float32),
    "norm.num_batches_tracked": np.array(7, np.int64),
    "head.bias": np.zeros(1, np.float32),
}
MANIFEST = manifest_of(WEIGHTS)
SUMS = Calibration(10, (5.0,) * 5, (0.5,) * 36, (1.0,) * 30, 2, 1, 1)
TASK = TrainTask(2, 5, Plan(), WEIGHTS, SUMS)
UPDATE = Update(2, WEIGHTS, 12, 30, 0.25, 61.5, Mined(30, 10, 2, "on", 0.25, 0.75, 0.5))


def parts_of(task=TASK):
    """A task's parts, ready to be spoilt."""
    return list(codec.pack_task(task, MANIFEST))


def arrive(parts):
    """What the vault makes of parts that crossed as bytes."""
    parse = framing.strictly(pb.TaskPart)
    wired = [parse(framing.serialised(part)) for part in parts]
    return codec.unpack_train_task(wired, MODEL, MANIFEST)


def chunk(tensor, data):
    """A part that holds a piece of a tensor."""
    return pb.TaskPart(weights=pb.Chunk(tensor=tensor, data=data))


# ----------------------------------------------------------------------- the list


def test_no_text_and_one_kind_of_bytes_can_cross():
    """airlock.proto has no string, and bytes only for tensors."""
    kinds = {
        (message.name, field.name): field.type
        for message in airlock_pb2.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    free = (9, 12, 10)  # string, bytes, group
    assert [place for place, kind in kinds.items() if kind in free] == [("Chunk", "data")]


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (pb.Training, set(TrainingSettings.model_fields)),
        (pb.Mining, set(MiningSettings.model_fields)),
        (
            pb.Task,
            {*Plan.model_fields, "round", "rounds", "calibration"} - {"model", "transport"},
        ),
        (pb.Calibration, {field.name for field in fields(Calibration)}),
        (pb.Mined, {field.name for field in fields(Mined)}),
        (pb.Update, {field.name for field in fields(Update)} - {"weights"}),
        (pb.Scores, {field.name for field in fields(Scores)}),
        (
            pb.Introduction,
            {field.name for field in fields(Hello)} - {"site", "model_digest", "calibration"}
            | {"model_fingerprint", "isolation", "calibration"},
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_list_and_the_protocol_name_the_same_fields(message, names):
    """A field that is new in the one cannot be forgotten in the other."""
    assert set(message.DESCRIPTOR.fields_by_name) == names


def test_the_checked_in_code_is_made_from_the_list(tmp_path):
    """Whoever reads airlock.proto reads what runs."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT}", f"--python_out={tmp_path}"]
    subprocess.run(
        [*command, f"--pyi_out={tmp_path}", str(ROOT / "client/vault/airlock.proto")], check=True
    )
    for name in ("airlock_pb2.py", "airlock_pb2.pyi"):
        assert (tmp_path / "client/vault" / name).read_text() == (
            ROOT / "client/vault" / name
        ).read_text()


# ----------------------------------------------------------------------- there and back


def test_a_task_arrives_as_it_was_sent():
    """Round, settings, sums and every bit of the weights."""
    arrived = arrive(parts_of())
    assert replace(arrived, weights={}) == replace(TASK, weights={})
    assert digest_of(arrived.weights) == digest_of(WEIGHTS)


@pytest.mark.parametrize("rounds", [None, 0, 3])
def test_an_unset_number_is_no_zero(rounds):
    """A warm-up that is not set follows from the run's rounds; none at all is a choice."""
    task = replace(TASK, plan=Plan(mining=MiningSettings(warmup_rounds=rounds)))
    assert arrive(parts_of(task)).plan.mining.warmup_rounds == rounds


@pytest.mark.parametrize("method", ["supervised", "self-training", "paper", "knowmine"])
def test_every_word_of_a_setting_has_its_number(method):
    """Words travel as their places in closed lists."""
    training = TrainingSettings(batch_norm="local", orientation="any")
    task = replace(TASK, plan=Plan(method=method, training=training))
    assert arrive(parts_of(task)).plan == task.plan


def test_an_evaluate_task_arrives_as_it_was_sent():
    """The same parts, without sums."""
    task = EvaluateTask(3, 5, Plan(), WEIGHTS)
    arrived = codec.unpack_evaluate_task(codec.pack_task(task, MANIFEST), MODEL, MANIFEST)
    assert (arrived.round, arrived.rounds, arrived.plan) == (3, 5, Plan())


def test_an_update_arrives_as_it_was_sent():
    """Counts, means and every bit of the weights."""
    arrived = codec.unpack_update(codec.pack_update(UPDATE, MANIFEST), MANIFEST)
    assert replace(arrived, weights={}) == replace(UPDATE, weights={})
    assert digest_of(arrived.weights) == digest_of(WEIGHTS)


@pytest.mark.parametrize("sums", [SUMS, Calibration()])
def test_scores_arrive_as_they_were_sent(sums):
    """With calibration sums or without."""
    scores = Scores(2, 9, 7.5, 6.5, 30.0, sums)
    assert codec.unpack_scores(codec.pack_scores(scores)) == scores


def test_no_message_is_longer_than_a_chunk_and_its_envelope():
    """Weights cross in pieces of at most a million bytes."""
    parts = parts_of()
    assert max(len(part.data) for part in parts[1:]) == codec.CHUNK_BYTES == 1_000_000
    assert max(len(framing.serialised(part)) for part in parts) <= codec.MESSAGE_BYTES


# ----------------------------------------------------------------------- hostile tensors

SPOILT = {
    "an extra tensor": (lambda p: [*p, chunk(4, b"\0" * 4)], "more than the installed model's 4"),
    "a tensor of no model": (lambda p: [*p[:-1], chunk(99, b"\0" * 4)], "tensor number 99"),
    "two tensors swapped": (lambda p: [*p[:-2], p[-1], p[-2]], "tensor number 3"),
    "a tensor missing": (lambda p: p[:-1], "too few tensors"),
    "a larger shape": (lambda p: [*p[:-1], chunk(3, b"\0" * 8)], "8 bytes of tensor number 3"),
    "a half dtype": (lambda p: [*p[:-1], chunk(3, b"\0" * 2)], "2 bytes of tensor number 3"),
    "many tiny chunks": (
        lambda p: [p[0], *(chunk(0, b"\0" * 4) for _ in range(9))],
        "4 bytes of tensor number 0; expected 1000000",
    ),
    "NaN": (lambda p: [*p[:-1], chunk(3, np.float32("nan").tobytes())], "nan"),
    "infinity": (lambda p: [*p[:-1], chunk(3, np.float32("inf").tobytes())], "inf"),
    "a huge number": (lambda p: [*p[:-1], chunk(3, np.float32(1e30).tobytes())], "at most 1e"),
    "a negative variance": (
        lambda p: [*p[:3], chunk(1, np.full(4, -1, np.float32).tobytes()), *p[4:]],
        "0 or more",
    ),
    "no task": (lambda p: p[1:], "no task first"),
    "a second task": (lambda p: [*p[:-1], p[0]], "too few tensors"),
    "an empty part": (lambda p: [*p[:-1], pb.TaskPart()], "too few tensors"),
    "nothing": (lambda p: [], "no task first"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT)
def test_tensors_that_are_not_the_installed_models_are_refused(spoil, words):
    """Which tensor, how long and what in it: nothing is left to the sender."""
    with pytest.raises(Refused, match=words):
        arrive(spoil(parts_of()))


@pytest.mark.parametrize(
    "weights",
    [
        {**WEIGHTS, "patient.name": np.zeros(1, np.float32)},
        {"renamed": WEIGHTS["head.bias"], **{n: WEIGHTS[n] for n in list(WEIGHTS)[:-1]}},
        {**WEIGHTS, "head.bias": np.zeros(2, np.float32)},
        {**WEIGHTS, "head.bias": np.zeros(1, np.float64)},
    ],
    ids=["extra", "renamed", "shape", "dtype"],
)
def test_the_sender_does_not_even_pack_other_tensors(weights):
    """Each end is the first to check what it sends."""
    with pytest.raises(Refused):
        codec.pack_update(replace(UPDATE, weights=weights), MANIFEST)


# ----------------------------------------------------------------------- hostile settings


def task_with(**changes):
    """The first part of a task, changed by dotted name."""
    part = parts_of()[0]
    for name, value in changes.items():
        *path, last = name.split("__")
        message = part.task
        for step in path:
            message = getattr(message, step)
        setattr(message, last, value)
    return [part, *parts_of()[1:]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0, "round": 0}, "rounds as 0"),
        ({"rounds": 2**32 - 1}, "rounds as 4294967295"),
        ({"round": 6}, "round as 6"),
        ({"training__steps": 10**9}, "training.steps as 1000000000"),
        ({"training__steps": 0}, "training.steps as 0"),
        ({"training__batch": 10**9}, "training.batch"),
        ({"training__learning_rate": float("nan")}, "training.learning_rate"),
        ({"mining__fraction": float("inf")}, "mining.fraction"),
        ({"mining__renew": 1.5}, "mining.renew"),
        ({"method": 0}, "no known method"),
        ({"method": 99}, "no known method"),
        ({"training__orientation": -1}, "no known orientation"),
        ({"calibration__empty": 11}, "calibration.empty"),
    ],
    ids=str,
)
def test_settings_outside_their_range_are_refused(changes, words):
    """A round is one of a run that ends, and the site's machine has a bound."""
    with pytest.raises(Refused, match=words):
        arrive(task_with(**changes))


def test_sums_of_another_length_are_refused():
    """A list of numbers is as long as it must be."""
    parts = parts_of()
    parts[0].task.calibration.gram.append(1.0)
    with pytest.raises(Refused, match=r"calibration\.gram as 37 numbers"):
        arrive(parts)


@pytest.mark.parametrize("value", ["../../etc/cron.d/x", "7", None, 1.5, -1, 2**40])
def test_a_number_is_a_number_before_it_is_packed(value):
    """Neither text nor a number too large has a place in a task."""
    with pytest.raises(Refused, match="a round that airlock"):
        codec.pack_task(replace(TASK, round=value), MANIFEST)


def test_the_network_is_no_setting_of_a_task():
    """Whatever model a server names, the vault's own is trained; a path in a name goes nowhere."""
    other = ModelSettings(encoder="../../../etc/passwd")
    assert arrive(parts_of(replace(TASK, plan=Plan(model=other)))).plan.model == MODEL


# ----------------------------------------------------------------------- damaged messages


SMALL = {"norm.running_var": np.ones(4, np.float32), "head.bias": np.zeros(1, np.float32)}
SMALL_PARTS = [
    framing.serialised(part)
    for part in codec.pack_task(replace(TASK, weights=SMALL), manifest_of(SMALL))
]


def test_no_damage_to_a_task_makes_anything_but_a_task_or_a_refusal():
    """Real messages with bytes put in, taken out and changed."""

    def check(damage):
        contents = [bytearray(part) for part in SMALL_PARTS]
        for part, place, cut, put in damage:
            content = contents[part % len(contents)]
            start = place % (len(content) + 1)
            content[start : start + cut] = put
        try:
            parts = [framing.strictly(pb.TaskPart)(bytes(content)) for content in contents]
            task = codec.unpack_train_task(parts, MODEL, manifest_of(SMALL))
        except Refused:
            return
        assert manifest_of(task.weights) == manifest_of(SMALL)
        assert 1 <= task.round <= task.rounds <= codec.MAX_ROUNDS
        assert all(np.isfinite(array).all() for array in task.weights.values())

    small = st.integers(0, 300)
    damage = st.tuples(small, small, st.integers(0, 9), st.binary(max_size=9))
    fuzzed(check, st.lists(damage, min_size=1, max_size=4))


def test_no_answer_makes_anything_but_an_answer_or_a_refusal():
    """The courier trusts the vault no more than the vault the courier."""

    def check(values):
        numbers = {"round": values[0], "test_images": values[1], "dice": values[2]}
        sums = pb.Calibration(images=values[0], fused=values[3], gram=values[3], empty=values[1])
        message = pb.Scores(**numbers, calibration=sums)
        try:
            arrived: Any = framing.strictly(pb.Scores)(message.SerializeToString())
            scores = codec.unpack_scores(arrived)
        except Refused:
            return
        assert scores.calibration.empty <= scores.calibration.images
        assert len(scores.calibration.fused) in (0, 5)

    count = st.integers(0, 2**32 - 1)
    fuzzed(check, st.tuples(count, count, st.floats(), st.lists(st.floats(), max_size=40)))
