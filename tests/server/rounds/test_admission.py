"""What a site sends is averaged only if it can be."""

import dataclasses
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.server.rounds.admission import admit, admit_hello, admit_scores
from knowmine.shared.errors import UpdateRefused
from knowmine.shared.protocol import Calibration, Hello, Mined, Scores, Update
from knowmine.shared.weights import TensorSpec

MANIFEST = {
    "head.weight": TensorSpec((1, 2), "float32"),
    "bn.running_var": TensorSpec((2,), "float32"),
    "bn.num_batches_tracked": TensorSpec((), "int64"),
}
GOOD = Update(
    round=2,
    weights={
        "head.weight": np.array([[0.5, -0.5]], np.float32),
        "bn.running_var": np.ones(2, np.float32),
        "bn.num_batches_tracked": np.array(7),
    },
    labelled=10,
    pseudo_labelled=5,
    loss=0.25,
    seconds=3.5,
    mined=Mined(kept=5, dropped=3, empty=1, gate="on", fuse_weight=0.5, mean_agreement=0.9),
)
PROBED = Calibration(
    images=4,
    fused=(1.0, 2.0, 3.0, 3.5, 4.0),
    gram=(4.0, 2.0, 2.0, 3.0),
    target=(3.0, 2.0) * 5,
    empty=2,
    empty_predicted=2,
    empty_right=1,
)
SCORES = Scores(round=2, test_images=10, dice=8.5, iou=7.5, hd95=120.0, calibration=PROBED)
HELLO = Hello("lyon", 1, "ab" * 32, labelled=8, unlabelled=100, calibration=2, test=10)

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
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)
    | st.sampled_from([object(), [], np.zeros(2), np.array(["a"]), np.array([None]), Mined()])
)


def replace(reply: R, **changes: Any) -> R:
    """A reply bent in ways that its types forbid."""
    return dataclasses.replace(reply, **changes)


def admitted(update: Update) -> Update:
    return admit(update, site="lyon", round=2, manifest=MANIFEST)


def scored(scores: Scores) -> Scores:
    return admit_scores(scores, site="lyon", round=2, features=2)


def greeted(hello: Hello) -> Hello:
    return admit_hello(hello, protocol=1, model_digest="ab" * 32)


def with_tensor(name: str, array: Any) -> Update:
    return replace(GOOD, weights={**GOOD.weights, name: array})


def test_a_good_update_comes_back_as_it_was():
    """Nothing is changed on the way in."""
    seen = admitted(GOOD)
    assert replace(seen, weights={}) == replace(GOOD, weights={})
    assert all(seen.weights[name] is GOOD.weights[name] for name in MANIFEST)


def test_numpy_numbers_come_back_plain():
    """What follows can write JSON."""
    seen = admitted(replace(GOOD, labelled=np.int64(4), loss=np.float32(0.5)))
    assert (type(seen.labelled), type(seen.loss)) == (int, float)


BAD_UPDATES: dict[str, tuple[Any, str]] = {
    "1 another round": (
        replace(GOOD, round=1),
        "site 'lyon' sent round as 1; expected round 2",
    ),
    "2 a tensor missing": (
        replace(GOOD, weights={k: v for k, v in GOOD.weights.items() if k != "head.weight"}),
        "sent weights without head.weight; expected exactly the model's 3 tensors",
    ),
    "2 a tensor too many": (
        with_tensor("backdoor", np.zeros(1)),
        "with unknown 'backdoor'",
    ),
    "2 no tensors": (replace(GOOD, weights=None), "sent weights as None"),
    "3 another shape": (
        with_tensor("head.weight", np.zeros((2, 2), np.float32)),
        r"sent head.weight as \(2, 2\); expected shape \(1, 2\): .*model.classes",
    ),
    "3 no array": (with_tensor("head.weight", [[0.5, 0.5]]), "sent head.weight as a list"),
    "4 another dtype": (
        with_tensor("head.weight", np.zeros((1, 2), np.float64)),
        "sent head.weight as float64; expected float32",
    ),
    "4 another byte order": (
        with_tensor("head.weight", np.zeros((1, 2), ">f4")),
        "sent head.weight as >f4; expected float32",
    ),
    "5 not a number": (
        with_tensor("head.weight", np.array([[0, np.nan]], np.float32)),
        "sent head.weight as a tensor holding nan; expected finite numbers",
    ),
    "5 infinite": (
        with_tensor("head.weight", np.array([[0, -np.inf]], np.float32)),
        "holding -inf; expected finite numbers",
    ),
    "6 a negative counter": (
        with_tensor("bn.num_batches_tracked", np.array(-1)),
        "sent bn.num_batches_tracked as a tensor holding -1; expected 0 or more",
    ),
    "6 a negative variance": (
        with_tensor("bn.running_var", np.array([1, -0.5], np.float32)),
        "sent bn.running_var as a tensor holding -0.5",
    ),
    "7 huge": (
        with_tensor("head.weight", np.array([[0, 2e6]], np.float32)),
        "holding 2000000.0; expected at most 1e[+]06 either way",
    ),
    "7 a huge counter": (
        with_tensor("bn.num_batches_tracked", np.array(2**62)),
        "sent bn.num_batches_tracked",
    ),
    "8 a negative count": (
        replace(GOOD, labelled=-1),
        "sent labelled as -1; expected a whole number from 0 to 10000000",
    ),
    "8 an absurd count": (replace(GOOD, pseudo_labelled=10**9), "sent pseudo_labelled"),
    "8 a truth value": (replace(GOOD, labelled=True), "sent labelled as True"),
    "8 a fraction": (replace(GOOD, labelled=1.0), "sent labelled as 1.0"),
    "9 a loss that is none": (replace(GOOD, loss=float("nan")), "sent loss as nan"),
    "9 negative time": (replace(GOOD, seconds=-1.0), "sent seconds as -1.0"),
    "10 a share above 1": (
        replace(GOOD, mined=replace(GOOD.mined, mean_quality=1.5)),
        "sent mined.mean_quality as 1.5; expected a number from 0 to 1",
    ),
    "10 an unknown gate": (
        replace(GOOD, mined=replace(GOOD.mined, gate="ajar")),
        "sent mined.gate as 'ajar'; expected one of unused, on, off, uncalibrated, pooled",
    ),
    "10 nothing mined at all": (replace(GOOD, mined=None), "sent mined as None"),
    "no update": (None, "sent update as None; expected an answer of type Update"),
}


@pytest.mark.parametrize("case", BAD_UPDATES)
def test_an_update_that_cannot_be_averaged_is_refused(case):
    """The refusal names site, thing, finding and expectation."""
    update, words = BAD_UPDATES[case]
    with pytest.raises(UpdateRefused, match=words):
        admitted(update)


def test_a_federation_can_bound_its_sites_more_tightly():
    """`max_images` holds for every count."""
    with pytest.raises(UpdateRefused, match="from 0 to 9"):
        admit(GOOD, site="lyon", round=2, manifest=MANIFEST, max_images=9)


def test_a_float32_mean_of_ones_is_a_mean():
    """1.0000001 is rounding, and comes in as 1."""
    mined = replace(GOOD.mined, mean_agreement=np.float32(1.0000001))
    assert admitted(replace(GOOD, mined=mined)).mined.mean_agreement == 1.0


@pytest.mark.parametrize("field", list(vars(GOOD)))
@given(value=junk)
@settings(max_examples=30)
def test_junk_in_an_update_is_admitted_sane_or_refused(field, value):
    """Whatever a field holds, nothing else is ever raised."""
    try:
        seen = admitted(replace(GOOD, **{field: value}))
    except UpdateRefused:
        return
    assert seen.round == 2 and seen.labelled >= 0 and seen.loss >= 0


@pytest.mark.parametrize("field", list(vars(GOOD.mined)))
@given(value=junk)
@settings(max_examples=20)
def test_junk_in_what_was_mined_is_admitted_sane_or_refused(field, value):
    """The same within `Mined`."""
    try:
        seen = admitted(replace(GOOD, mined=replace(GOOD.mined, **{field: value}))).mined
    except UpdateRefused:
        return
    assert seen.kept >= 0 and 0 <= seen.fuse_weight <= 1


@given(st.dictionaries(st.sampled_from([*MANIFEST, "x", 3, None]), junk))
def test_junk_for_weights_is_refused(weights):
    """Tensors are the model's or nothing."""
    with pytest.raises(UpdateRefused):
        admitted(replace(GOOD, weights=weights))


def test_good_scores_come_back_as_they_were():
    """Nothing is changed on the way in."""
    assert scored(SCORES) == SCORES


BAD_SCORES = {
    "11 another round": (replace(SCORES, round=3), "sent round as 3; expected round 2"),
    "12 more than there are": (
        replace(SCORES, dice=10.5),
        "sent dice as 10.5; expected a number from 0 to 10",
    ),
    "12 scores of nothing": (replace(SCORES, test_images=0), "sent dice as 8.5"),
    "12 a negative distance": (replace(SCORES, hd95=-1.0), "sent hd95 as -1.0"),
    "13 sums too few": (
        replace(SCORES, calibration=replace(PROBED, fused=(1.0,))),
        "sent calibration.fused as 1 numbers; expected a tuple of 5 numbers",
    ),
    "13 another list of features": (
        replace(SCORES, calibration=replace(PROBED, gram=(1.0,) * 9, target=(1.0,) * 15)),
        "sent calibration.gram as 9 numbers; expected a tuple of 4 numbers",
    ),
    "13 too good": (
        replace(SCORES, calibration=replace(PROBED, fused=(4.5, 0.0, 0.0, 0.0, 0.0))),
        r"sent calibration.fused\[0\] as 4.5",
    ),
    "13 not a number": (
        replace(SCORES, calibration=replace(PROBED, target=(float("nan"),) * 10)),
        r"sent calibration.target\[0\] as nan",
    ),
    "13 features of more images than there are": (
        replace(SCORES, calibration=replace(PROBED, gram=(5.0, 2.0, 2.0, 3.0))),
        r"sent calibration.gram\[0\] as 5.0; expected a whole number from 0 to 4",
    ),
    "13 features of next to no image": (
        replace(SCORES, calibration=replace(PROBED, gram=(1e-6, 2.0, 2.0, 3.0))),
        r"sent calibration.gram\[0\] as 1e-06; expected a whole number",
    ),
    "13 features of fewer than none": (
        replace(SCORES, calibration=replace(PROBED, gram=(-4.0, 2.0, 2.0, 3.0))),
        r"sent calibration.gram\[0\] as -4.0; expected a whole number",
    ),
    "13 features of one image that are large": (
        replace(SCORES, calibration=replace(PROBED, gram=(1.0, 2.0, 2.0, 101.0))),
        "sent calibration.gram as 101 in it; expected at most 100 for each of 1 images",
    ),
    "13 a Dice of one image that is large": (
        replace(
            SCORES, calibration=replace(PROBED, gram=(1.0, 1.0, 1.0, 1.0), target=(11.0,) * 10)
        ),
        r"sent calibration.target\[0\] as 11.0; expected a number from -10 to 10",
    ),
    "13 products that differ by order": (
        replace(SCORES, calibration=replace(PROBED, gram=(4.0, 2.0, 2.1, 3.0))),
        "sent calibration.gram as sums that differ by order",
    ),
    "13 a negative square": (
        replace(SCORES, calibration=replace(PROBED, gram=(4.0, 0.0, 0.0, -1.0))),
        "sent calibration.gram as negative squares",
    ),
    "13 products of nothing real": (
        replace(SCORES, calibration=replace(PROBED, gram=(4.0, 4.0, 4.0, 1.0))),
        "sent calibration.gram as negative squares",
    ),
    "13 right more often than asked": (
        replace(SCORES, calibration=replace(PROBED, empty_right=3)),
        "sent calibration.empty_right as 3; expected a whole number from 0 to 2",
    ),
}


@pytest.mark.parametrize("case", BAD_SCORES)
def test_scores_that_cannot_be_pooled_are_refused(case):
    """The refusal names site, thing, finding and expectation."""
    scores, words = BAD_SCORES[case]
    with pytest.raises(UpdateRefused, match=words):
        scored(scores)


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), min_size=1, max_size=60)
)
def test_no_honest_sums_of_features_are_refused(rows):
    """Whatever the features of an image are, and in 6 decimals, as they leave a site."""
    x = np.array(rows)
    x[:, 0] = 1
    gram = tuple(round(float(value), 6) for value in (x.T @ x).ravel())
    sums = Calibration(len(x), (0.0,) * 5, gram, (0.0,) * 30)
    scores = replace(SCORES, calibration=sums)
    assert admit_scores(scores, site="lyon", round=2, features=6).calibration.gram == gram


def test_sums_over_no_calibration_image_are_empty():
    """Whatever came with them is left out."""
    seen = scored(replace(SCORES, calibration=Calibration(images=0, gram=(9.0,))))
    assert seen.calibration == Calibration()


@pytest.mark.parametrize("field", list(vars(SCORES)))
@given(value=junk)
@settings(max_examples=20)
def test_junk_in_scores_is_admitted_sane_or_refused(field, value):
    """Whatever a field holds, nothing else is ever raised."""
    try:
        seen = scored(replace(SCORES, **{field: value}))
    except UpdateRefused:
        return
    assert 0 <= seen.dice <= seen.test_images


@pytest.mark.parametrize("field", list(vars(PROBED)))
@given(value=junk)
@settings(max_examples=20)
def test_junk_in_calibration_sums_is_admitted_poolable_or_refused(field, value):
    """What is admitted adds up with another site's sums."""
    try:
        seen = scored(replace(SCORES, calibration=replace(PROBED, **{field: value})))
    except UpdateRefused:
        return
    assert (seen.calibration + PROBED).images >= 4


def test_a_good_introduction_comes_back_as_it_was():
    """The site may take part."""
    assert greeted(HELLO) == HELLO


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("site", "Lyon", "a site sent its name as 'Lyon'; .*lower-case"),
        ("site", "a" * 41, "lower-case"),
        ("site", "lyon\n", "lower-case"),
        ("site", "../lyon", "lower-case"),
        ("protocol", 2, "site 'lyon' sent protocol as 2; expected 1: install the same version"),
        ("model_digest", "cd" * 32, "site 'lyon' sent model_digest as 'cdcd"),
        ("labelled", -1, "sent labelled as -1"),
        ("unlabelled", 10**9, "sent unlabelled"),
    ],
)
def test_a_site_that_does_not_fit_is_refused(field, value, words):
    """The refusal says what to repair."""
    with pytest.raises(UpdateRefused, match=words):
        greeted(replace(HELLO, **{field: value}))


@pytest.mark.parametrize("field", list(vars(HELLO)))
@given(value=junk)
@settings(max_examples=20)
def test_junk_in_an_introduction_is_admitted_sane_or_refused(field, value):
    """Whatever a field holds, nothing else is ever raised."""
    with suppress(UpdateRefused):
        assert greeted(replace(HELLO, **{field: value})).labelled >= 0
