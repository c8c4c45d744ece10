"""Named arrays: digests that tell them apart, files that are whole or not there."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knowmine.shared.errors import WeightsError
from knowmine.shared.weights import (
    TensorSpec,
    bytes_of,
    digest_of,
    load_weights,
    manifest_of,
    save_weights,
)

arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8]),
    hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=3),
)
named = st.dictionaries(st.text("abc.", min_size=1, max_size=5), arrays, max_size=3)


@given(named)
@settings(max_examples=50)
def test_saved_weights_come_back_the_same(tmp_path_factory, weights):
    """Names, shapes, dtypes and bytes survive the file, 0-d counters and empty tensors too."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_weights(path, weights)
    loaded = load_weights(path)
    assert (manifest_of(loaded), digest_of(loaded)) == (manifest_of(weights), digest_of(weights))


def test_a_transposed_array_is_saved_as_it_reads(tmp_path):
    """Memory order is no part of a tensor."""
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    save_weights(tmp_path / "w", weights)
    assert load_weights(tmp_path / "w")["w"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_manifest_names_shape_and_dtype():
    """What a model looks like, without its numbers."""
    weights = {"n": np.array(3), "w": np.zeros((2, 1), np.float32)}
    assert manifest_of(weights) == {
        "n": TensorSpec((), "int64"),
        "w": TensorSpec((2, 1), "float32"),
    }


def test_the_order_of_names_does_not_change_the_digest():
    """Two mappings of the same tensors are the same weights."""
    a, b = np.zeros(1), np.ones(2)
    assert digest_of({"a": a, "b": b}) == digest_of({"b": b, "a": a})


@pytest.mark.parametrize(
    "other",
    [
        {"v": np.zeros(4, np.float32)},
        {"w": np.zeros((2, 2), np.float32)},
        {"w": np.zeros(4, np.int32)},
        {"w": np.array([0, 0, 0, 1], np.float32)},
        {"w": np.zeros(4, np.float32), "x": np.zeros(0, np.float32)},
        {},
    ],
    ids=["name", "shape", "dtype", "value", "one more", "none"],
)
def test_any_difference_changes_the_digest(other):
    """A digest stands for names, shapes, dtypes and bytes."""
    assert digest_of({"w": np.zeros(4, np.float32)}) != digest_of(other)


def test_a_scalar_and_a_list_of_one_differ():
    """Shape () is not shape (1,)."""
    assert digest_of({"n": np.array(3)}) != digest_of({"n": np.array([3])})


def test_bytes_are_those_of_the_arrays():
    """4 float32 and 1 int64 are 24 bytes."""
    assert bytes_of({"w": np.zeros(4, np.float32), "n": np.array(1)}) == 24


def test_missing_weights_are_named(tmp_path):
    """The message says where they were looked for."""
    with pytest.raises(WeightsError, match=r"no weights at .*gone\.safetensors"):
        load_weights(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 20, 100])
def test_a_truncated_file_is_refused(tmp_path, kept):
    """A file cut short anywhere is not taken for weights."""
    path = tmp_path / "w.safetensors"
    save_weights(path, {"w": np.zeros(64, np.float32)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="not a complete safetensors file"):
        load_weights(path)


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_any_bytes_are_weights_or_refused(tmp_path_factory, content):
    """Junk never gets past the loader as another error."""
    path = tmp_path_factory.mktemp("junk") / "w"
    path.write_bytes(content)
    with suppress(WeightsError):
        load_weights(path)


def test_a_folder_is_not_weights(tmp_path):
    """A path of the wrong kind is refused in words."""
    with pytest.raises(WeightsError):
        load_weights(tmp_path)
