"""Robust rules: what wrong sites cannot do, and what all rules agree on."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knowmine.server.rounds.robust import BLOCK_BYTES, aggregate_by
from knowmine.shared.errors import RunFailed

ROBUST = ("clipped", "trimmed", "median")
ONE_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The folder holds nothing between two examples: the files in it have no name."""

stacks = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 7), st.integers(1, 9)),
    elements=st.floats(-1000, 1000, width=32),
)


def aggregated(rule, folder, stack, weights=None, before=None):
    before = np.zeros(stack.shape[1:], stack.dtype) if before is None else before
    aggregate = aggregate_by(rule, {"w": before}, folder)
    for value, weight in zip(stack, weights or [1] * len(stack), strict=True):
        aggregate.add({"w": value}, weight)
    return aggregate.result()["w"]


@ONE_FOLDER
@given(stacks)
def test_the_median_is_that_of_all_sites(tmp_path, stack):
    """Block by block as at once."""
    expected = np.median(stack.astype(np.float64), axis=0).astype(np.float32)
    assert np.array_equal(aggregated("median", tmp_path, stack), expected)


@ONE_FOLDER
@given(stacks, st.sampled_from(ROBUST))
def test_no_rule_leaves_the_range_of_the_sites(tmp_path, stack, rule):
    """With a model before that is one of theirs."""
    result = aggregated(rule, tmp_path, stack, before=stack[0])
    room = 1e-3
    assert (stack.min(0) - room <= result).all() and (result <= stack.max(0) + room).all()


@ONE_FOLDER
@given(stacks, st.sampled_from(("trimmed", "median")), st.randoms())
def test_the_order_of_the_sites_means_nothing(tmp_path, stack, rule, random):
    """To the bit: elements are sorted before they are added."""
    shuffled = np.array(random.sample(list(stack), len(stack)))
    assert np.array_equal(aggregated(rule, tmp_path, stack), aggregated(rule, tmp_path, shuffled))


@pytest.mark.parametrize("rule", ROBUST)
def test_sites_that_agree_are_not_changed(tmp_path, rule):
    """Up to one rounding, whatever their counts."""
    value = np.array([0.1, -3, 1e5], np.float32)
    result = aggregated(rule, tmp_path, np.stack([value] * 4), [1, 5, 2, 9])
    assert np.allclose(result, value, rtol=2e-7)


@pytest.mark.parametrize("rule", ROBUST)
def test_one_wild_site_of_five_moves_little(tmp_path, rule):
    """Where the plain mean would go to 200000, with a claim to all the images even further."""
    stack = np.array([[1], [1.1], [0.9], [1], [1e6]], np.float32)
    result = aggregated(rule, tmp_path, stack, [1, 1, 1, 1, 1])
    assert abs(result[0] - 1) < 0.11


def test_trimming_leaves_out_one_at_either_end(tmp_path):
    """Of five, 20 %: the mean of 1, 2 and 6."""
    stack = np.array([[-50], [1], [6], [2], [80]], np.float32)
    assert aggregated("trimmed", tmp_path, stack).tolist() == [3]


def test_clipping_shortens_to_the_median_change(tmp_path):
    """Changes of 1, 2 and 30: the last becomes 2, and the mean is 5/3."""
    result = aggregated("clipped", tmp_path, np.array([[1], [2], [30]], np.float32))
    assert result[0] == pytest.approx(5 / 3)


def test_counters_stay_whole(tmp_path):
    """The median of 1 and 4 is 2.5, rounded to even."""
    result = aggregated("median", tmp_path, np.array([[1], [4]]))
    assert (result.tolist(), result.dtype.name) == ([2], "int64")


@pytest.mark.parametrize("rule", ROBUST)
def test_sites_that_trained_on_nothing_have_no_say(tmp_path, rule):
    """As in the plain mean."""
    stack = np.array([[1], [7]], np.float32)
    assert aggregated(rule, tmp_path, stack, [1, 0]).tolist() == [1]


@pytest.mark.parametrize("rule", ROBUST)
def test_nothing_added_has_no_result(tmp_path, rule):
    """The message says why there may be none."""
    with pytest.raises(RunFailed, match="no site sent anything"):
        aggregate_by(rule, {"w": np.zeros(1, np.float32)}, tmp_path).result()


@pytest.mark.parametrize("rule", ROBUST)
def test_memory_does_not_grow_with_the_number_of_sites(tmp_path, rule):
    """A model and some blocks; 12 sites' models together are twelve."""
    model = {"w": np.ones(4_000_000, np.float32)}
    aggregate = aggregate_by(rule, model, tmp_path)
    tracemalloc.start()
    for _ in range(12):
        aggregate.add(model, 1)
    aggregate.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.2 * model["w"].nbytes + 5 * BLOCK_BYTES


def test_nothing_is_left_in_the_folder(tmp_path):
    """The file has no name, so that even kill -9 leaves none."""
    aggregated("median", tmp_path, np.ones((3, 2), np.float32))
    assert not list(tmp_path.iterdir())
