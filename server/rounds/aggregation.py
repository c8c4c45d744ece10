"""Average named arrays as they arrive, in the memory of one model.

The order in which sites are added changes the result by float32 rounding. A run that must repeat
bit for bit therefore adds them in a fixed order, sorted by name.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from knowmine.shared.errors import RunFailed
from knowmine.shared.protocol import Update
from knowmine.shared.weights import Array, Weights

CHUNK = 1 << 17
"""Elements averaged at once: few enough for the cache, enough that threads rarely take turns."""
PIECE = 1 << 20
"""Elements that one thread takes at a time: waking a thread for less is not worth it."""

PSEUDO_LABEL_WEIGHT = 0.25
"""Weight of a pseudo-labelled image, beside 1 for a labelled one: it may be wrong. Chosen, not measured."""


class RunningMean:
    """A weighted mean that keeps no site's weights.

    It holds one accumulator for each tensor, whatever the number of sites. Floats are averaged
    within float32 rounding at each step. Whole numbers are averaged exactly and rounded once, at
    the end.

    >>> mean = RunningMean()
    >>> mean.add({"w": np.array([0.0], np.float32)}, 3)
    >>> mean.add({"w": np.array([4.0], np.float32)}, 1)
    >>> mean.result()
    {'w': array([1.], dtype=float32)}
    """

    def __init__(self) -> None:
        self.sites = 0
        self.total_weight = 0.0
        self._sums: dict[str, Array] = {}
        self._dtypes: dict[str, np.dtype] = {}

    def add(self, weights: Weights, weight: float) -> None:
        """Add one site's weights. Weight 0 adds nothing."""
        if not 0 <= weight < np.inf:
            raise RunFailed(f"cannot average with weight {weight}; expected a number from 0 up")
        if weight == 0:
            return
        if not self.sites:
            self._dtypes = {name: array.dtype for name, array in weights.items()}
            self._sums = {name: _accumulator(array) for name, array in weights.items()}
        elif weights.keys() != self._sums.keys():
            odd = sorted(weights.keys() ^ self._sums.keys())
            raise RunFailed(f"cannot average other tensors than the first site's: {odd[:3]}")
        self.sites += 1
        self.total_weight += weight
        floats = [name for name in weights if self._dtypes[name].kind == "f"]
        for name in weights.keys() - set(floats):
            self._sums[name] += weights[name] * np.float64(weight)
        fraction = weight / self.total_weight
        pieces = [piece for name in floats for piece in _pieces(self._sums[name], weights[name])]
        # NumPy releases the interpreter's lock while it calculates. One thread works on each
        # element, so the result is the same bit for bit with any number of threads.
        for _ in _threads().map(lambda piece: _move_towards(piece[0], piece[1], fraction), pieces):
            pass

    def result(self) -> dict[str, Array]:
        """The mean, each tensor in its dtype; raise `RunFailed` if no site was added.

        These are the accumulators themselves, not copies, so add nothing afterwards.
        """
        if not self.sites:
            raise RunFailed(
                "no site sent anything to average: all were refused, absent, or have neither "
                "labelled nor pseudo-labelled images; see the refusals in the log"
            )
        return {name: self._finished(name) for name in self._sums}

    def _finished(self, name: str) -> Array:
        total, dtype = self._sums[name], self._dtypes[name]
        if dtype.kind == "f":
            return total.astype(dtype, copy=False)
        return np.asarray(np.rint(total / self.total_weight)).astype(dtype)


def update_weight(update: Update) -> float:
    """An update's weight in the mean: its images, with pseudo-labelled ones counted for less.

    A site weighs as many images as it trained on (FedAvg, McMahan et al. 2017, algorithm 1).
    """
    return update.labelled + PSEUDO_LABEL_WEIGHT * update.pseudo_labelled


def _accumulator(array: Array) -> Array:
    if array.dtype.kind != "f":
        return np.zeros(array.shape, np.float64)
    return np.zeros(array.shape, np.promote_types(array.dtype, np.float32))


@cache
def _threads() -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ThreadPoolExecutor(cores, thread_name_prefix="aggregation")


def _pieces(mean: Array, value: Array) -> Iterator[tuple[Array, Array]]:
    """Flat views of both, of PIECE elements at most."""
    target, source = mean.reshape(-1), value.reshape(-1)  # the accumulator is contiguous: a view
    for start in range(0, target.size, PIECE):
        yield target[start : start + PIECE], source[start : start + PIECE]


def _move_towards(mean: Array, value: Array, fraction: float) -> None:
    """Move `mean` by (value - mean) * fraction, in place, in the mean's dtype.

    Float64 in between would save a rounding or two, but took 1.6 times as long.
    """
    if fraction == 1:
        np.add(value, mean.dtype.type(0), out=mean)  # no negative zero, as in the formula
        return
    step = np.empty(min(mean.size, CHUNK), mean.dtype)
    for start in range(0, mean.size, CHUNK):
        target = mean[start : start + CHUNK]
        moved = step[: target.size]
        np.subtract(value[start : start + CHUNK], target, out=moved)
        moved *= mean.dtype.type(fraction)
        target += moved
