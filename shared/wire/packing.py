"""Pack weights as one string of bytes in safetensors' layout, and read them back as views of it.

A network has hundreds of tensors. Sent one by one, each would cost the transport two round trips,
which took longer than the bytes. safetensors' own reader copies every tensor. This one copies
none, and accepts the header only if all its numbers add up.

```
8 bytes   length of the header, little endian
header    JSON: {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
tensors   back to back, without a gap
```
"""

import itertools
import json
import math
from typing import Any

import numpy as np

from knowmine.shared.errors import Refused
from knowmine.shared.weights import Array, Weights

MAX_TENSORS = 20_000
MAX_HEADER_BYTES = 4_000_000
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F64": np.dtype("<f8"), "F16": np.dtype("<f2"),
          "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "U8": np.dtype("u1")}  # fmt: skip

EMPTY = np.zeros(0, np.uint8)


def pack(weights: Weights) -> bytes:
    """The weights as bytes that any reader of safetensors understands; their order is kept."""
    arrays = {name: np.asarray(value, order="C") for name, value in weights.items()}
    names = {dtype: name for name, dtype in DTYPES.items()}
    # The widest dtype first, so that every tensor is aligned.
    in_place = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    ends = itertools.accumulate(arrays[name].nbytes for name in in_place)
    offsets = {
        name: [end - arrays[name].nbytes, end] for name, end in zip(in_place, ends, strict=True)
    }
    header = json.dumps(
        {
            name: {"dtype": names[a.dtype], "shape": a.shape, "data_offsets": offsets[name]}
            for name, a in arrays.items()
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    parts = (arrays[name].reshape(-1).view(np.uint8).data for name in in_place)
    return b"".join((len(header).to_bytes(8, "little"), header, *parts))


def unpack(data: bytes) -> dict[str, Array]:
    """The weights in `data` as read-only views of it.

    Raises `Refused` for bytes that `pack` would not make: nothing is read beyond their end, no
    tensor overlaps another, and no byte is left over.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, len(data) - 8):
        raise Refused(f"weights of {len(data)} bytes claim a header of {length}")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise Refused("the header of the weights is no JSON") from None
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise Refused("the header of the weights is no list of tensors, or too long a list")
    header.pop("__metadata__", None)
    try:
        "".join(header).encode()
    except UnicodeEncodeError:  # half a surrogate, which has no digest
        raise Refused("the name of a tensor in the header of the weights is no text") from None
    try:
        return _views(data, 8 + length, header)
    except (KeyError, TypeError, AttributeError):
        raise Refused("a tensor in the header of the weights lacks dtype, shape or place") from None


def _views(data: bytes, start: int, header: dict[str, Any]) -> dict[str, Array]:
    views: dict[str, Array] = dict.fromkeys(header, EMPTY)
    expected = 0
    for name in sorted(header, key=lambda name: header[name]["data_offsets"]):
        entry = header[name]
        dtype = DTYPES[entry["dtype"]]
        shape = tuple(_whole(side) for side in entry["shape"])
        begin, end = (_whole(offset) for offset in entry["data_offsets"])
        size = math.prod(shape) * dtype.itemsize
        if begin != expected or end - begin != size or start + end > len(data):
            raise Refused(
                f"tensor {name} of shape {shape} needs {size} bytes from {expected} on; its header "
                f"says {begin} to {end} of {len(data) - start}"
            )
        views[name] = np.frombuffer(data, dtype, math.prod(shape), start + begin).reshape(shape)
        expected = end
    if start + expected != len(data):
        raise Refused(f"{len(data) - start - expected} bytes follow the last tensor")
    return views


def _whole(value: object) -> int:
    if type(value) is not int or value < 0:
        raise Refused(f"expected a whole number in the header of the weights, found {value!r}")
    return value
