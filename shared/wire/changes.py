"""An update as its difference from the weights that were sent, in half the bytes or fewer.

bf16   the upper half of each float32
int8   whole steps of a scale, one scale a tensor: the largest difference is 127 steps

Both round up or down at random, with the nearer value the more probable, so that the mean over
sites and rounds is right (QSGD, Alistarh et al. 2017). What rounding took is the residual, which
the site adds to its next update (error feedback, Seide et al. 2014). Batch norm's running
statistics and counters travel whole. zstandard compresses the result. It is never unpacked into
more bytes than the model in this form has, whatever length the sender claims.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import zstandard

from knowmine.shared.errors import Refused, UpdateRefused
from knowmine.shared.weights import Array, Weights
from knowmine.shared.wire import packing

Form: TypeAlias = Literal["bf16", "int8"]
SCALES = "scales"
"""The name under which int8's scales travel, one for each tensor that is quantised."""
STEPS = 127
LEVEL = 3
"""Of zstandard: higher ones take longer than the network saves."""
WHOLE = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Change:
    """A packed update.

    data: what travels. weights: what the other end unpacks from it. residual: what rounding took,
    to be added to the next update.
    """

    data: bytes
    weights: dict[str, Array]
    residual: dict[str, Array]


def pack_change(
    weights: Weights, before: Weights, form: Form, residual: Weights, seed: int
) -> Change:
    """Pack `weights` as a change of `before`.

    residual: of the update before; empty at first. seed: of the rounding.
    Raises `UpdateRefused` for numbers that are not finite: quantised, they would be garbage.
    """
    draw = np.random.default_rng(seed)
    codes: dict[str, Array] = {}
    scales, left = list[float](), dict[str, Array]()
    for name, value in weights.items():
        if not _is_quantised(name, value):
            codes[name] = value
            continue
        change = value - before[name]
        if name in residual:
            change += residual[name]
        if not np.isfinite(change).all():
            raise UpdateRefused(
                f"{name} has numbers that are not finite, and {form} cannot hold them: the "
                "training diverged; lower training.learning_rate"
            )
        if form == "bf16":
            codes[name] = _to_bf16(change, draw)
            sent = _from_bf16(codes[name], change.shape)
        else:
            scale = np.float32(np.abs(change).max(initial=0)) / np.float32(STEPS)
            scales.append(float(scale))
            codes[name] = _to_int8(change, scale, draw)
            sent = _from_int8(codes[name], scale)
        left[name] = change - sent
    if form == "int8":
        codes[SCALES] = np.array(scales, np.float32)
    data = zstandard.ZstdCompressor(level=LEVEL).compress(packing.pack(codes))
    return Change(data, unpack_change(data, before, form), left)


def unpack_change(data: bytes, before: Weights, form: Form) -> dict[str, Array]:
    """The weights that `data` makes of `before`; raise `Refused` if it is no such change.

    Hostile input is checked in this order: 1. the length that it claims, before any of it is
    unpacked, is at most what this model can have; 2. the tensors are the model's; 3. each has its
    size; 4. scales are not negative, and small enough that scaled values are finite.
    """
    most = sum(a.nbytes for a in before.values()) + packing.MAX_HEADER_BYTES
    try:
        says = zstandard.get_frame_parameters(data).content_size
        if not 0 < says <= most:  # 1
            raise Refused(f"an update claims to unpack to {says} bytes; expected at most {most}")
        codes = packing.unpack(zstandard.ZstdDecompressor().decompress(data, max_output_size=most))
    except zstandard.ZstdError as error:
        raise Refused(f"an update cannot be unpacked: {error}") from error
    scales = codes.pop(SCALES, np.zeros(0, np.float32))
    quantised = [name for name, value in before.items() if _is_quantised(name, value)]
    count = len(quantised) if form == "int8" else 0
    if codes.keys() != before.keys() or scales.shape != (count,):  # 2
        odd = sorted(codes.keys() ^ before.keys())[:3]
        raise Refused(f"an update of other tensors than the model's: {odd}, {scales.size} scales")
    most_scale = np.finfo(np.float32).max / (STEPS + 1)  # a code may say -128
    if scales.dtype != np.float32 or not ((scales >= 0) & (scales <= most_scale)).all():  # 4
        raise Refused("an update with scales that are negative, not finite or without bounds")
    scale_of = dict(zip(quantised, scales, strict=False))
    weights: dict[str, Array] = {}
    for name, value in before.items():
        code = codes[name]
        if name not in quantised:
            weights[name] = code  # admission checks its shape and dtype
            continue
        shape = (*value.shape, 2) if form == "bf16" else value.shape
        if code.dtype != np.uint8 or code.shape != shape:  # 3
            raise Refused(f"{name} comes as {code.dtype} {code.shape}; expected uint8 {shape}")
        change = (
            _from_bf16(code, value.shape) if form == "bf16" else _from_int8(code, scale_of[name])
        )
        change += value
        weights[name] = change
    return weights


def _is_quantised(name: str, value: Array) -> bool:
    return value.dtype == np.float32 and not name.endswith(WHOLE)


def _to_int8(change: Array, scale: np.float32, draw: np.random.Generator) -> Array:
    if not scale:  # nothing changed, or by less than float32 can express
        return np.zeros(change.shape, np.uint8)
    steps = change / scale
    steps += draw.random(change.shape, np.float32)
    np.floor(steps, out=steps)
    np.clip(steps, -STEPS, STEPS, out=steps)
    return steps.astype(np.int8).view(np.uint8)


def _from_int8(code: Array, scale: np.float32) -> Array:
    steps: Array = code.view(np.int8).astype(np.float32)
    steps *= scale
    return steps


def _to_bf16(change: Array, draw: np.random.Generator) -> Array:
    """The upper 16 bits, (..., 2) uint8; the lower bits decide whether they are rounded up."""
    bits = np.ascontiguousarray(change).reshape(-1).view(np.uint32)
    noise = draw.integers(0, 1 << 16, bits.size, np.uint32)
    # Rounding up a full exponent would give infinity, so the largest numbers are cut off.
    large = (bits & 0x7FFF0000) >= 0x7F7F0000
    upper = (np.where(large, bits, bits + noise) >> 16).astype("<u2")
    return upper.view(np.uint8).reshape((*change.shape, 2))


def _from_bf16(code: Array, shape: tuple[int, ...]) -> Array:
    upper = np.ascontiguousarray(code).reshape(-1).view("<u2").astype(np.uint32)
    values: Array = (upper << 16).view(np.float32).reshape(shape)
    return values
