"""Describe, digest, save and load named arrays.

A model travels as `Weights`, a plain mapping from tensor name to NumPy array. Nothing here needs
torch, and nothing is ever unpickled: files are safetensors.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from knowmine.shared.errors import WeightsError
from knowmine.shared.files import write_atomically

Array: TypeAlias = NDArray[Any]
Weights: TypeAlias = Mapping[str, Array]


class TensorSpec(NamedTuple):
    """Shape and dtype of one tensor: `TensorSpec((16, 3, 3, 3), "float32")`."""

    shape: tuple[int, ...]
    dtype: str


Manifest: TypeAlias = Mapping[str, TensorSpec]


def manifest_of(weights: Weights) -> dict[str, TensorSpec]:
    """The manifest of these weights: each name with its shape and dtype.

    >>> manifest_of({"head.bias": np.zeros(2, np.float32)})
    {'head.bias': TensorSpec(shape=(2,), dtype='float32')}
    """
    return {name: TensorSpec(array.shape, array.dtype.name) for name, array in weights.items()}


def digest_of(weights: Weights) -> str:
    """SHA-256 over names, shapes, dtypes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.asarray(weights[name], order="C")
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.data)
    return digest.hexdigest()


def bytes_of_manifest(manifest: Manifest) -> int:
    """Bytes that such weights take in memory.

    >>> bytes_of_manifest({"head.weight": TensorSpec((2, 3), "float32")})
    24
    """
    sizes = (math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in manifest.values())
    return sum(sizes)


def digest_of_manifest(manifest: Manifest) -> str:
    """SHA-256 over names, shapes and dtypes: equal if two sides have the same model."""
    lines = [f"{name}|{spec.shape}|{spec.dtype}" for name, spec in sorted(manifest.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class Received(dict[str, Array]):
    """Weights that travelled in fewer bytes than they take in memory, namely `sent_bytes`."""

    sent_bytes = 0


def sent_bytes_of(weights: Weights) -> int:
    """Bytes in which these weights travelled."""
    return weights.sent_bytes if isinstance(weights, Received) else bytes_of(weights)


def bytes_of(weights: Weights) -> int:
    """Bytes of all arrays together, without headers."""
    return sum(array.nbytes for array in weights.values())


def save_weights(path: Path, weights: Weights, notes: Mapping[str, str] | None = None) -> None:
    """Write `weights` to `path` as safetensors, all or nothing: a reader never sees half a file.

    `notes` are short strings kept in the file's header.
    """
    write_atomically(path, weights_to_bytes(weights, notes))


def weights_to_bytes(weights: Weights, notes: Mapping[str, str] | None = None) -> bytes:
    """What `save_weights` writes."""
    # Not ascontiguousarray: it turns the shape () of a batch counter into (1,).
    arrays = {name: np.asarray(array, order="C") for name, array in weights.items()}
    return save(arrays, metadata=dict(notes) if notes else None)


def load_weights(path: Path) -> dict[str, Array]:
    """Read a safetensors file; raise `WeightsError` if it is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise WeightsError(f"no weights at {path}") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a complete safetensors file ({error}); "
            "it was cut short or is another kind of file: make or fetch it again"
        ) from error


def load_notes(path: Path) -> dict[str, str]:
    """The notes of a safetensors file; raise `WeightsError` if it is missing or damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"no whole safetensors file at {path} ({error})") from error
