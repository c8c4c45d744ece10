"""Streaming means: as good as the float64 mean, in the memory of one model."""

import tracemalloc
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knowmine.server.rounds.aggregation import CHUNK, PIECE, RunningMean, update_weight
from knowmine.shared.errors import RunFailed
from knowmine.shared.protocol import Update
from knowmine.shared.weights import Array

EPSILON = float(np.finfo(np.float32).eps)


@st.composite
def sites(draw, values):
    """Some sites' arrays of one shape, (N, ...), and a weight for each."""
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
    count = draw(st.integers(1, 6))
    stacked = draw(values((count, *shape)))
    weight = st.floats(0.01, 1e4) | st.integers(1, 10_000)
    return stacked, draw(st.lists(weight, min_size=count, max_size=count))


def float_arrays(shape):
    return hnp.arrays(np.float32, shape, elements=st.floats(-1e6, 1e6, width=32))


def counter_arrays(shape):
    return hnp.arrays(np.int64, shape, elements=st.integers(0, 10**6))


def averaged(stacked: Iterable[Array], weights: Sequence[float]) -> Array:
    mean = RunningMean()
    for array, weight in zip(stacked, weights, strict=True):
        mean.add({"w": np.asarray(array)}, weight)
    return mean.result()["w"]


@given(sites(float_arrays))
def test_floats_are_within_float32_rounding_of_the_float64_mean(drawn):
    """The roundings of one step for each site: its difference, its share, and the sum.

    Beside zero floats have steps of their own, the smallest number there is.
    """
    stacked, weights = drawn
    exact = np.average(stacked.astype(np.float64), axis=0, weights=weights)
    steps = EPSILON * np.abs(stacked).max() + np.finfo(np.float32).smallest_subnormal
    tolerance = 2.5 * len(weights) * steps
    assert (np.abs(averaged(stacked, weights) - exact) <= tolerance).all()


@given(sites(float_arrays))
def test_floats_keep_shape_and_dtype(drawn):
    """The mean looks like what was averaged."""
    stacked, weights = drawn
    result = averaged(stacked, weights)
    assert (result.shape, result.dtype.name) == (stacked.shape[1:], "float32")


@given(sites(counter_arrays))
def test_whole_numbers_are_the_rounded_mean(drawn):
    """Counters are averaged exactly and rounded to the nearest, once."""
    stacked, weights = drawn
    exact = np.average(stacked.astype(np.float64), axis=0, weights=weights)
    result = averaged(stacked, weights)
    assert result.dtype == np.int64
    assert (np.abs(result - exact) <= 0.5 + 1e-6).all()


@given(
    hnp.arrays(np.float32, (3,), elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6),
)
def test_sites_that_agree_are_not_changed(array, weights):
    """The mean of equal models is that model, bit for bit."""
    assert averaged([array] * len(weights), weights).tobytes() == (array + 0.0).tobytes()


def test_weights_are_shares():
    """Three parts of 0 and one part of 4 make 1."""
    result = averaged(np.array([[0.0], [4.0]], np.float32), [3, 1])
    assert result.tolist() == [1.0]


def test_a_weight_of_nothing_adds_nothing():
    """A site that trained on nothing has no say."""
    mean = RunningMean()
    mean.add({"w": np.ones(1, np.float32)}, 2)
    mean.add({"w": np.full(1, np.nan, np.float32)}, 0)
    assert (mean.result()["w"].tolist(), mean.sites, mean.total_weight) == ([1.0], 1, 2.0)


def test_nothing_added_has_no_mean():
    """The message says why there may be none."""
    with pytest.raises(RunFailed, match="no site sent anything to average"):
        RunningMean().result()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_an_impossible_weight_is_refused(weight):
    """Weights are finite and not negative."""
    with pytest.raises(RunFailed, match="cannot average with weight"):
        RunningMean().add({"w": np.zeros(1, np.float32)}, weight)


def test_other_tensors_than_the_first_sites_are_refused():
    """A name that some lack cannot be averaged."""
    mean = RunningMean()
    mean.add({"w": np.zeros(1, np.float32)}, 1)
    with pytest.raises(RunFailed, match="other tensors"):
        mean.add({"v": np.zeros(1, np.float32)}, 1)


def test_what_was_added_is_left_alone():
    """A site's arrays are read, never written."""
    first = np.zeros(2, np.float32)
    averaged([first, np.ones(2, np.float32)], [1, 1])
    assert first.tolist() == [0.0, 0.0]


def test_tensors_larger_than_a_chunk_are_averaged_whole():
    """The seams between chunks leave no mark."""
    size = PIECE + 2 * CHUNK + 3
    stacked = [np.zeros(size, np.float32), np.arange(size, dtype=np.float32)]
    assert (averaged(stacked, [1, 1]) == np.arange(size) / 2).all()


def test_a_transposed_array_is_averaged_as_it_reads():
    """Memory order is no part of a tensor."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert (averaged([array, array], [1, 3]) == array).all()


def test_memory_does_not_grow_with_the_number_of_sites():
    """One accumulator and small chunks, for 20 sites as for two."""
    model = {"w": np.ones(2_000_000, np.float32)}
    tracemalloc.start()
    mean = RunningMean()
    for _ in range(20):
        mean.add(model, 1)
    mean.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * model["w"].nbytes + 16 * CHUNK * 8


def test_pseudo_labelled_images_count_for_less():
    """10 labels and 40 pseudo-labels at a quarter weigh 20."""
    update = Update(1, {}, labelled=10, pseudo_labelled=40, loss=0.1, seconds=1.0)
    assert update_weight(update) == 20


def test_threads_change_nothing():
    """A model of many tensors is averaged to the bit as each of them alone."""
    draw = np.random.default_rng(0)
    models = [
        {str(n): draw.normal(size=PIECE // 3 + n).astype(np.float32) for n in range(6)}
        for _ in range(3)
    ]
    mean = RunningMean()
    for weight, model in enumerate(models, 1):
        mean.add(model, weight)
    alone = {n: averaged([m[n] for m in models], [1, 2, 3]) for n in models[0]}
    together = mean.result()
    assert all(np.array_equal(together[n], alone[n]) for n in alone)
