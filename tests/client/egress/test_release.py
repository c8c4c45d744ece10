"""What leaves a site: the model's weights and a few numbers, and nothing that rides along."""

import dataclasses
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.client.egress.release import release
from knowmine.shared.errors import EgressRefused
from knowmine.shared.protocol import GATES, Calibration, Hello, Mined, Scores, Update
from knowmine.shared.weights import TensorSpec

MANIFEST = {
    "a.weight": TensorSpec((2,), "float32"),
    "b.num_batches_tracked": TensorSpec((), "int64"),
}
UPDATE = Update(
    round=1,
    weights={"b.num_batches_tracked": np.array(3), "a.weight": np.zeros(2, np.float32)},
    labelled=8,
    pseudo_labelled=4,
    loss=0.123456789,
    seconds=9.87654321,
    mined=Mined(kept=4, gate="on", mean_agreement=0.777777777),
)
PROBED = Calibration(
    images=2,
    fused=(0.5, 1.0, 1.5, 1.999999999, 2.0),
    gram=(2.0, 1.23456789, 1.23456789, 1.0),
    target=(1.5, 0.5) * 5,
    empty=1,
)
SCORES = Scores(round=1, test_images=3, dice=2.3456789, iou=2.0, hd95=41.5, calibration=PROBED)
HELLO = Hello("lyon", 1, "ab" * 32, labelled=8, unlabelled=100, calibration=2, test=10)
REPLIES: dict[str, Any] = {"update": UPDATE, "scores": SCORES, "hello": HELLO}

R = TypeVar("R", Update, Scores, Hello, Mined, Calibration)

junk = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=3)
    | st.sampled_from([np.float16(3), np.int8(2), np.bool_(True), np.float64("nan"), np.str_("on")])
    | st.tuples(st.floats(), st.integers())
    | st.dictionaries(st.sampled_from(["a.weight", "x"]), st.integers(), max_size=2)
    | st.sampled_from([object(), [], np.zeros(2), np.array([None]), Mined(), PROBED])
)


def replace(reply: R, **changes: Any) -> R:
    """A reply bent in ways that its types forbid."""
    return dataclasses.replace(reply, **changes)


def released(reply: Any) -> Any:
    return release(reply, manifest=MANIFEST)


def numbers_in(reply: Any) -> Iterator[float]:
    """All floats that leave with a reply, however deep."""
    for field in fields(reply):
        value = getattr(reply, field.name)
        if isinstance(value, float):
            yield value
        elif isinstance(value, tuple):
            yield from value
        elif isinstance(value, Mined | Calibration):
            yield from numbers_in(value)


@pytest.mark.parametrize("kind", REPLIES)
def test_numbers_leave_with_six_decimals(kind):
    """The last digits of a float could carry something: they are cut."""
    assert all(value == round(value, 6) for value in numbers_in(released(REPLIES[kind])))


def test_the_weights_leave_as_they_are():
    """Weights are the one thing that leaves in full."""
    seen = released(UPDATE).weights
    assert all(seen[name] is UPDATE.weights[name] for name in MANIFEST)


def test_tensors_leave_in_the_models_order():
    """Even an order could say something."""
    assert list(released(UPDATE).weights) == list(MANIFEST)


def test_numpy_numbers_leave_as_plain_ones():
    """A NumPy scalar is a number like any other."""
    seen = released(replace(UPDATE, labelled=np.int64(8), loss=np.float32(0.5)))
    assert (type(seen.labelled), type(seen.loss)) == (int, float)


def test_what_is_hung_on_a_reply_stays_here():
    """The reply that leaves is built from its fields alone."""
    reply = replace(SCORES)
    object.__setattr__(reply, "names", ["patient-7"])
    assert not hasattr(released(reply), "names")


def test_a_site_without_calibration_images_says_nothing_of_them():
    """Sums over nothing leave as nothing."""
    odd = replace(SCORES, calibration=Calibration(images=0, target=(7.0,)))
    assert released(odd).calibration == Calibration()


class Larger(Scores):
    """A reply that could carry more."""


def tensor(name: str, array: Any) -> Update:
    return replace(UPDATE, weights={**UPDATE.weights, name: array})


MAY_NOT_LEAVE: dict[str, tuple[Any, str]] = {
    "1 pixels": (np.zeros((3, 224, 224)), "reply as a ndarray; expected an Update, Scores"),
    "1 a subclass": (Larger(1, 0, 0.0, 0.0, 0.0), "reply as a Larger"),
    "2 one tensor more": (tensor("image", np.zeros(2)), "with unknown 'image'"),
    "2 one tensor fewer": (replace(UPDATE, weights={}), "without a.weight"),
    "3 another shape": (
        tensor("a.weight", np.zeros((224, 224), np.float32)),
        r"a.weight as \(224, 224\); expected shape \(2,\)",
    ),
    "4 another dtype": (
        tensor("a.weight", np.zeros(2, np.uint8)),
        "a.weight as uint8; expected float32",
    ),
    "5 not a number": (
        tensor("a.weight", np.array([0, np.nan], np.float32)),
        "a tensor holding nan",
    ),
    "6 a negative counter": (tensor("b.num_batches_tracked", np.array(-2)), "holding -2"),
    "7 huge": (tensor("a.weight", np.array([0, 1e7], np.float32)), "holding 10000000.0"),
    "8 a truth value": (replace(UPDATE, labelled=True), "labelled as True"),
    "8 a fraction": (replace(SCORES, test_images=2.5), "test_images as 2.5"),
    "9 infinite": (replace(UPDATE, loss=float("inf")), "loss as inf"),
    "9 more than there are": (
        replace(SCORES, iou=3.5),
        "iou as 3.5; expected a number from 0 to 3",
    ),
    "9 hidden in a tuple": (
        replace(SCORES, calibration=replace(PROBED, target=(1.0, 2.0, 3.0) * 5)),
        "calibration.gram as 4 numbers; expected a tuple of 9 numbers",
    ),
    "10 a free text": (
        replace(UPDATE, mined=replace(UPDATE.mined, gate="patient-7")),
        "mined.gate as 'patient-7'; expected one of unused, on, off, uncalibrated, pooled",
    ),
    "10 a name in a name": (replace(HELLO, site="Jane Doe"), "its name as 'Jane Doe'"),
    "10 a text for a digest": (replace(HELLO, model_digest="Jane"), "model_digest as 'Jane'"),
}


@pytest.mark.parametrize("case", MAY_NOT_LEAVE)
def test_what_may_not_leave_is_stopped(case):
    """The refusal names thing, finding and expectation."""
    reply, words = MAY_NOT_LEAVE[case]
    with pytest.raises(EgressRefused, match="this site was about to send .*" + words):
        released(reply)


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, f.name) for kind in REPLIES for f in fields(REPLIES[kind])]
)
@given(value=junk)
@settings(max_examples=15)
def test_junk_leaves_clean_or_not_at_all(kind, field, value):
    """Whatever a field holds, it is plain and finite outside, or `EgressRefused`."""
    try:
        seen = released(replace(REPLIES[kind], **{field: value}))
    except EgressRefused:
        return
    assert all(np.isfinite(number) for number in numbers_in(seen))


@pytest.mark.parametrize("field", [f.name for f in fields(Mined)])
@given(value=junk)
@settings(max_examples=15)
def test_junk_in_what_was_mined_leaves_clean_or_not_at_all(field, value):
    """The same within `Mined`."""
    try:
        seen = released(replace(UPDATE, mined=replace(UPDATE.mined, **{field: value}))).mined
    except EgressRefused:
        return
    assert seen.gate in GATES and type(seen.kept) is int


@given(junk)
def test_anything_else_stays_here(value):
    """Only the three replies leave."""
    with pytest.raises(EgressRefused):
        released(value)
