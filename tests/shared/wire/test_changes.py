"""Updates as small differences: what they lose is known, and hostile ones are refused."""

import struct
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knowmine.shared.errors import Refused, UpdateRefused
from knowmine.shared.wire import packing
from knowmine.shared.wire.changes import pack_change, unpack_change

FORMS = ("bf16", "int8")
BEFORE: dict[str, Any] = {
    "w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "bn.running_var": np.array([1.0, 2.0], np.float32),
    "bn.num_batches_tracked": np.array(40),
}
forms = st.sampled_from(FORMS)
values = hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e5, 1e5, width=32))


def after(change, **more):
    return {**BEFORE, "w": BEFORE["w"] + np.float32(change), **more}


def packed(weights, form="int8", residual=None, seed=0):
    return pack_change(weights, BEFORE, form, residual or {}, seed)


@given(values, forms)
def test_no_number_is_further_off_than_one_step(change, form):
    """A step: 1/127 of the largest in int8, 1/128 of each in bf16."""
    weights = after(change)
    moved = weights["w"] - BEFORE["w"]
    step = np.abs(moved) / 128 if form == "bf16" else np.abs(moved).max() / 127
    off = np.abs(packed(weights, form).weights["w"].astype(np.float64) - weights["w"])
    assert (off <= step * 1.001 + np.abs(weights["w"]) * 2e-7 + 1e-37).all()


@given(values, forms)
def test_the_residual_is_handed_back(change, form):
    """What left and the residual make the change, within float32."""
    weights = after(change)
    made = packed(weights, form)
    total = made.weights["w"].astype(np.float64) + made.residual["w"]
    assert np.allclose(total, weights["w"], rtol=3e-6, atol=1e-6 * (1 + np.abs(change).max()))


@pytest.mark.parametrize("form", FORMS)
def test_both_ends_have_the_same_weights(form):
    """The guard at the site looks at what the server will see."""
    made = packed(after(0.3), form)
    there = unpack_change(made.data, BEFORE, form)
    assert all(np.array_equal(there[n], made.weights[n]) for n in BEFORE)


@pytest.mark.parametrize("form", FORMS)
def test_no_change_is_exactly_none(form):
    """All zeros have no scale, and need none."""
    made = packed(BEFORE, form)
    assert all(np.array_equal(made.weights[n], BEFORE[n]) for n in BEFORE)


@pytest.mark.parametrize("form", FORMS)
def test_one_huge_value_arrives_and_spoils_nothing(form):
    """int8 has no step for the others then; they are right by what is handed back."""
    change = np.full((3, 4), 1e-3, np.float32)
    change[0, 0] = 1e30
    made = packed(after(change), form)
    assert made.weights["w"][0, 0] == pytest.approx(1e30, rel=1e-2)
    assert np.allclose((made.weights["w"] - BEFORE["w"] + made.residual["w"])[1:], 1e-3, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(form, wrong):
    """It would become garbage."""
    change = np.zeros((3, 4), np.float32)
    change[1, 1] = wrong
    with pytest.raises(UpdateRefused, match="w has numbers that are not finite"):
        packed(after(change), form)


@pytest.mark.parametrize("form", FORMS)
def test_with_feedback_the_mean_of_many_rounds_is_right(form):
    """A change far below int8's step arrives all the same, in time."""
    change = np.full((3, 4), 1e-4, np.float32)
    change[0, 0] = 1.0
    total = np.zeros((3, 4))
    residual: dict[str, Any] = {}
    for seed in range(200):
        made = packed(after(change), form, residual, seed)
        total += made.weights["w"].astype(np.float64) - BEFORE["w"]
        residual = made.residual
    assert np.allclose(total / 200, change, rtol=0.01, atol=1e-4)


def test_statistics_and_counters_travel_whole():
    """Bit for bit."""
    counters = {
        "bn.running_var": np.array([0.1, 3], np.float32),
        "bn.num_batches_tracked": np.array(83),
    }
    made = packed(after(1, **counters))
    assert all(np.array_equal(made.weights[n], value) for n, value in counters.items())


def test_int8_takes_a_quarter_of_the_bytes():
    """At least, with a header that is small beside them."""
    draw = np.random.default_rng(0)
    before = {"w": draw.normal(size=100_000).astype(np.float32)}
    later = {"w": before["w"] + draw.normal(size=100_000).astype(np.float32) * np.float32(0.01)}
    made = pack_change(later, before, "int8", {}, 0)
    assert 4 * len(made.data) < before["w"].nbytes


def compressed(**tensors):
    return zstandard.ZstdCompressor().compress(packing.pack(tensors))


GOOD = {
    "w": np.zeros((3, 4), np.uint8),
    "bn.running_var": BEFORE["bn.running_var"],
    "bn.num_batches_tracked": BEFORE["bn.num_batches_tracked"],
    "scales": np.ones(1, np.float32),
}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"w": np.zeros((4, 4), np.uint8)}, "w comes as uint8"),
        ({"w": np.zeros((3, 4), np.float32)}, "w comes as float32"),
        ({"v": np.zeros(1, np.uint8)}, "other tensors"),
        ({"scales": np.ones(2, np.float32)}, "2 scales"),
        ({"scales": np.array([np.nan], np.float32)}, "not finite"),
        ({"scales": np.array([-1], np.float32)}, "negative"),
        ({"scales": np.array([3e38], np.float32)}, "without bounds"),
    ],
)
def test_what_is_no_change_of_this_model_is_refused(spoil, words):
    """Shapes, names and scales are the model's."""
    with pytest.raises(Refused, match=words):
        unpack_change(compressed(**{**GOOD, **spoil}), BEFORE, "int8")


def test_a_bomb_is_not_unpacked():
    """A gigabyte of zeros in some thousand bytes says its size, and stays packed."""
    bomb = zstandard.ZstdCompressor().compress(bytes(100_000_000))
    with pytest.raises(Refused, match="claims to unpack to 100000000 bytes"):
        unpack_change(bomb, BEFORE, "int8")


def test_a_length_that_lies_is_refused():
    """The frame says 1000 bytes and holds a hundred million."""
    bomb = bytearray(zstandard.ZstdCompressor().compress(bytes(100_000_000)))
    assert bomb[4] >> 6 == 2  # the size stands in four bytes, after the window's one
    at = 5 if bomb[4] & 0x20 else 6
    bomb[at : at + 4] = struct.pack("<I", 1000)
    with pytest.raises(Refused):
        unpack_change(bytes(bomb), BEFORE, "int8")


@given(st.binary(max_size=200))
def test_noise_is_refused(noise):
    """With or without the frame's mark."""
    for data in (noise, zstandard.FRAME_HEADER + noise):
        with pytest.raises(Refused):
            unpack_change(data, BEFORE, "int8")
