"""Weights as bytes: what goes in comes out, and other readers agree."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from knowmine.shared.errors import Refused
from knowmine.shared.wire.packing import DTYPES, pack, unpack

dtypes: Any = sorted(DTYPES.values(), key=str)
arrays = st.sampled_from(dtypes).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
)
weights = st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), arrays, max_size=5)


@given(weights)
def test_what_goes_in_comes_out(some):
    """Names, order, shapes, dtypes and bits."""
    some.pop("__metadata__", None)
    out = unpack(pack(some))
    assert list(out) == list(some)
    assert all(out[n].dtype == a.dtype and out[n].shape == a.shape for n, a in some.items())
    assert all(out[n].tobytes() == a.tobytes() for n, a in some.items())


@given(weights)
def test_safetensors_reads_what_we_write(some):
    """And we what it writes."""
    some.pop("__metadata__", None)
    theirs = load(pack(some))
    ours = unpack(save(some))
    assert all(theirs[n].tobytes() == ours[n].tobytes() == a.tobytes() for n, a in some.items())


def test_tensors_begin_where_their_dtype_may():
    """A counter behind an odd number of floats is aligned all the same."""
    out = unpack(pack({"w": np.ones(3, np.float32), "n": np.ones((), np.int64)}))
    assert all(array.flags.aligned for array in out.values())


def test_nothing_is_copied():
    """The arrays are read-only views of the bytes that came."""
    out = unpack(pack({"w": np.ones(3, np.float32)}))
    assert not out["w"].flags.owndata and not out["w"].flags.writeable


def test_a_name_that_is_no_text_is_refused():
    """JSON can spell half a surrogate; a digest of the weights could not be taken."""
    data = pack({"abcdef": np.zeros(2, np.float32)}).replace(b"abcdef", b"\\ud800")
    with pytest.raises(Refused, match="no text"):
        unpack(data)


@pytest.mark.parametrize(
    "header",
    [
        b"no JSON at all",
        b"[" * 9999,
        b"\xff\xfe",
        b'{"w": 3}',
        b'{"w": {"dtype": "F32", "shape": [1]}}',
        b'{"w": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": 4}}',
    ],
    ids=["no JSON", "deep", "no text", "no entry", "no place", "dtype", "shape", "offsets"],
)
def test_a_header_that_is_none_is_refused(header):
    """In words, not as whatever Python stumbles over."""
    with pytest.raises(Refused, match="header"):
        unpack(len(header).to_bytes(8, "little") + header + bytes(4))
