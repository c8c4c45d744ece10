"""Only what airlock.proto lists crosses the airlock, and both ends check what they are sent."""

import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from knowmine.client.vault import airlock_pb2, codec
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
from tests.drawn_decoder import drawn_decoder

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
FUZZ_S = float(os.environ.get("KNOWMINE_FUZZ_S", "20"))
"""Seconds of each run of the fuzzer, divided among its targets."""


def parts_of(task=TASK):
    """A task's parts, ready to be spoilt."""
    return list(codec.pack_task(task, MANIFEST))


def arrive(parts):
    """What the vault makes of parts that crossed as bytes."""
    parse = codec.strictly(pb.TaskPart)
    wired = [parse(codec.serialised(part)) for part in parts]
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
            {*Plan.model_fields, "round", "rounds", "calibration", "decoder"}
            - {"model", "transport"},
        ),
        (pb.Calibration, {field.name for field in fields(Calibration)}),
        (pb.Mined, {field.name for field in fields(Mined)}),
        (pb.Update, {field.name for field in fields(Update)} - {"weights"}),
        (pb.Scores, {field.name for field in fields(Scores)}),
        (
            pb.Introduction,
            {field.name for field in fields(Hello)} - {"site", "model_digest"}
            | {"model_fingerprint", "isolation"},
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
def test_a_number_that_nobody_chose_is_no_zero(rounds):
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


SHARING = Plan(mining=MiningSettings(share_decoder=True))


def test_sams_decoder_crosses_both_ways_behind_the_models_tensors():
    """Into the vault with either task and out with an update, every bit, and told apart again."""
    mine, theirs = drawn_decoder(1), drawn_decoder(2)
    task = replace(TASK, plan=SHARING, decoder=theirs)
    question = EvaluateTask(3, 5, SHARING, WEIGHTS, theirs)
    asked = codec.unpack_evaluate_task(codec.pack_task(question, MANIFEST), MODEL, MANIFEST)
    update = replace(UPDATE, decoder=mine)
    answered = codec.unpack_update(
        codec.pack_update(update, MANIFEST), MANIFEST, shares_decoder=True
    )
    for seen, sent in ((arrive(parts_of(task)), theirs), (asked, theirs), (answered, mine)):
        assert digest_of(seen.decoder) == digest_of(sent)
        assert digest_of(seen.weights) == digest_of(WEIGHTS)


def test_a_decoder_that_the_plan_does_not_share_stays_in_the_vault():
    """The courier refuses its heading, before `egress` would."""
    parts = codec.pack_update(replace(UPDATE, decoder=drawn_decoder()), MANIFEST)
    with pytest.raises(Refused, match="the plan that it was sent shares none"):
        codec.unpack_update(parts, MANIFEST)


def test_a_decoder_that_the_plan_does_not_share_stays_outside_the_vault():
    """Its heading is refused, before a tensor is read."""
    with pytest.raises(Refused, match="SAM's decoder by a plan that shares none"):
        arrive(parts_of(replace(TASK, decoder=drawn_decoder())))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: {**d, "sam.mask_decoder.more": np.zeros(1, np.float32)}, "with unknown"),
        (lambda d: dict(list(d.items())[1:]), "without sam.mask_decoder.transformer"),
        (
            lambda d: {**d, "sam.mask_decoder.iou_token.weight": np.zeros(3, np.float32)},
            r"iou_token.weight as \(3,\); expected shape \(1, 256\)",
        ),
    ],
)
def test_another_decoder_than_sams_is_not_packed(spoil, words):
    """The list of its tensors is a constant."""
    with pytest.raises(Refused, match=words):
        codec.pack_update(replace(UPDATE, decoder=spoil(drawn_decoder())), MANIFEST)


@pytest.mark.parametrize("sums", [SUMS, Calibration()])
def test_scores_arrive_as_they_were_sent(sums):
    """With the probe set's sums or without."""
    scores = Scores(2, 9, 7.5, 6.5, 30.0, sums)
    assert codec.unpack_scores(codec.pack_scores(scores)) == scores


def test_no_message_is_longer_than_a_chunk_and_its_envelope():
    """Weights cross in pieces of at most a million bytes."""
    parts = parts_of()
    assert max(len(part.data) for part in parts[1:]) == codec.CHUNK_BYTES == 1_000_000
    assert max(len(codec.serialised(part)) for part in parts) <= codec.MESSAGE_BYTES


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
        ({"mining__share": float("inf")}, "mining.share"),
        ({"mining__keep_first": 1.0, "mining__keep_last": 0.1}, "keep_last"),
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


# ----------------------------------------------------------------------- hostile bytes


@pytest.mark.parametrize(
    "content",
    [
        b"\x0a\x02\x0a\x00",  # text where the task's round, a number, belongs
        b"\x12\x05\x08\x00\x9a\x3e\x00",  # a field beside tensor and data
        b"\xfa\x01\x09mueller a",  # a field that nobody knows
        b"\x0a\x80\x80\x80\x80\x08",  # two gigabytes are promised
        b"\xff" * 64,
        b"\x12\x04\x08\x00\x08\x01",  # one number twice
        b"\x12\x03\x08\x80\x00",  # zero in two bytes
    ],
)
def test_bytes_that_are_no_listed_message_are_refused(content):
    """Not a byte crosses that airlock.proto does not account for."""
    with pytest.raises(Refused):
        codec.strictly(pb.TaskPart)(content)


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
        part = codec.strictly(kind)(content)
    except Refused:
        return False
    seen = kind.FromString(content)
    if isinstance(part, codec.Piece):
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
        assert codec.serialised(codec.Piece(tensor, memoryview(data))) == content
        assert codec.strictly(kind)(content) == codec.Piece(tensor, memoryview(data))


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


def fuzzed(check, examples):
    """Run a check on what hypothesis makes up, for its share of the time."""
    share = FUZZ_S / 4

    class Over(Exception):
        pass

    end = time.monotonic() + share
    runs = 0

    @settings(
        max_examples=10**9,
        deadline=timedelta(seconds=5),
        database=None,
        phases=[Phase.generate],  # `Over` is no failure to make smaller
        suppress_health_check=list(HealthCheck),
    )
    @given(examples)
    def run(example):
        nonlocal runs
        if time.monotonic() > end:
            raise Over
        check(example)
        runs += 1

    with pytest.raises(Over):
        run()
    assert runs, "the time was over before anything was tried"


def refused_or_whole(content):
    """A parser refuses, or gives a message that is exactly the bytes."""
    for kind in (pb.TaskPart, pb.UpdatePart, pb.Scores, pb.Introduction, pb.Question):
        try:
            message = codec.strictly(kind)(content)
        except Refused:
            continue
        assert codec.serialised(message) == content


def test_no_bytes_make_a_parser_do_anything_but_parse_or_refuse():
    """Made up from nothing."""
    fuzzed(refused_or_whole, st.binary(max_size=200))


SMALL = {"norm.running_var": np.ones(4, np.float32), "head.bias": np.zeros(1, np.float32)}
SMALL_PARTS = [
    codec.serialised(part)
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
            parts = [codec.strictly(pb.TaskPart)(bytes(content)) for content in contents]
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
            arrived: Any = codec.strictly(pb.Scores)(message.SerializeToString())
            scores = codec.unpack_scores(arrived)
        except Refused:
            return
        assert scores.calibration.empty <= scores.calibration.images
        assert len(scores.calibration.fused) in (0, 5)

    count = st.integers(0, 2**32 - 1)
    fuzzed(check, st.tuples(count, count, st.floats(), st.lists(st.floats(), max_size=40)))
