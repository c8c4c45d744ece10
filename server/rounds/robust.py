"""Aggregate updates although some may be wrong or hostile, in memory that many sites do not fill.

The updates of a round wait in an unnamed file in the run's folder. Rules that need all sites at
once read it back block by block, so they need the memory of one model and one block a site.

clipped   the weighted mean of changes, each at most as long as the round's median change
trimmed   per element, the mean without the TRIM highest and TRIM lowest fraction of the sites
median    per element, the median of the sites

Trimmed mean and median count every site alike (Yin et al. 2018, algorithm 1), so a site that
claims more images has no more influence. Clipping bounds how far one site can move the model
(Sun et al. 2019).
"""

import math
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np

from knowmine.server.rounds.aggregation import RunningMean
from knowmine.shared.errors import RunFailed
from knowmine.shared.weights import Array, Weights

Rule: TypeAlias = Literal["mean", "clipped", "trimmed", "median"]
TRIM = 0.2
"""Fraction of the sites left out at either end; with three sites or more, at least one."""
BLOCK_BYTES = 1 << 24
"""Bytes read back at once, of all sites together."""


class Aggregate(Protocol):
    """The updates of one round, from which the next model is made."""

    sites: int

    def add(self, weights: Weights, weight: float) -> None:
        """Add one site's model with its weight. Weight 0 adds nothing."""

    def result(self) -> dict[str, Array]:
        """The aggregate, each tensor in its dtype; raise `RunFailed` if there is no update."""


def aggregate_by(rule: Rule, before: Weights, folder: Path) -> Aggregate:
    """A new aggregate for one round.

    before: the model that the sites were sent. folder: has room for their updates.
    """
    if rule == "mean":
        return RunningMean()
    if rule == "clipped":
        return ClippedMean(before, folder)
    return ElementWise(rule, folder)


class ClippedMean:
    """A weighted mean in which no site moves the model farther than the median site does."""

    def __init__(self, before: Weights, folder: Path) -> None:
        self.sites = 0
        self._before, self._kept = before, _Spool(folder)
        self._norms: list[float] = []
        self._counts: list[float] = []

    def add(self, weights: Weights, weight: float) -> None:
        """Keep the model and note how far it is from the model before."""
        if not 0 <= weight < np.inf:
            raise RunFailed(f"cannot average with weight {weight}; expected a number from 0 up")
        if weight == 0:
            return
        self._kept.write(weights)
        self._norms.append(_distance(self._before, weights))
        self._counts.append(weight)
        self.sites += 1

    def result(self) -> dict[str, Array]:
        """The mean of the clipped changes, on top of the model before."""
        mean, limit = RunningMean(), float(np.median(self._norms)) if self._norms else 0.0
        for site, (norm, weight) in enumerate(zip(self._norms, self._counts, strict=True)):
            model = self._kept.read(site)
            if norm > limit:
                shorter = limit / norm
                for name, value in model.items():
                    if value.dtype.kind == "f":
                        value -= self._before[name]
                        value *= value.dtype.type(shorter)
                        value += self._before[name]
            mean.add(model, weight)
        return mean.result()


class ElementWise:
    """The trimmed mean or median of each number over the sites."""

    def __init__(self, rule: Literal["trimmed", "median"], folder: Path) -> None:
        self.sites = 0
        self._rule, self._kept = rule, _Spool(folder)

    def add(self, weights: Weights, weight: float) -> None:
        """Keep the model. Its weight only matters if it is 0: the site did not train."""
        if not 0 <= weight < np.inf:
            raise RunFailed(f"cannot average with weight {weight}; expected a number from 0 up")
        if weight == 0:
            return
        self._kept.write(weights)
        self.sites += 1

    def result(self) -> dict[str, Array]:
        """The trimmed mean or median, element by element."""
        if not self.sites:
            return RunningMean().result()  # raises and says why there is none
        return {name: self._of(name) for name in self._kept.like}

    def _of(self, name: str) -> Array:
        like = self._kept.like[name]
        out = np.empty(like.size, like.dtype)
        for start, block in self._kept.blocks(name):
            middle = self._middle(block)
            if like.dtype.kind != "f":
                middle = np.rint(middle)
            out[start : start + block.shape[1]] = middle
        return out.reshape(like.shape)

    def _middle(self, block: Array) -> Array:
        """block: (sites, N). The result is (N,) float64."""
        if self._rule == "median":
            middle: Array = np.median(block.astype(np.float64), axis=0)
            return middle
        cut = max(math.floor(TRIM * self.sites), 1) if self.sites >= 3 else 0
        kept = np.sort(block, axis=0)[cut : self.sites - cut]
        mean: Array = kept.mean(axis=0, dtype=np.float64)
        return mean


class _Spool:
    """Models of one shape in a file, which is gone as soon as this object is."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this
        weakref.finalize(self, self._file.close)
        self.like: dict[str, Array] = {}
        self._at: dict[str, int] = {}
        self._size = self._models = 0

    def write(self, weights: Weights) -> None:
        if not self.like:
            # Views without memory: only shape and dtype are needed.
            self.like = {
                name: np.broadcast_to(np.zeros((), a.dtype), a.shape) for name, a in weights.items()
            }
            for name, array in weights.items():
                self._at[name] = self._size
                self._size += array.nbytes
        elif weights.keys() != self.like.keys():
            odd = sorted(weights.keys() ^ self.like.keys())
            raise RunFailed(f"cannot average other tensors than the first site's: {odd[:3]}")
        self._file.seek(self._models * self._size)
        for name in self.like:
            self._file.write(np.asarray(weights[name], order="C").reshape(-1).view(np.uint8).data)
        self._models += 1

    def read(self, model: int) -> dict[str, Array]:
        return {
            name: self._part(model, name, 0, like.size).reshape(like.shape)
            for name, like in self.like.items()
        }

    def blocks(self, name: str) -> Iterator[tuple[int, Array]]:
        """First element and values of all models, (models, N), over one tensor."""
        like = self.like[name]
        length = max(BLOCK_BYTES // (like.itemsize * self._models), 1)
        for start in range(0, like.size, length):
            count = min(length, like.size - start)
            yield (
                start,
                np.stack([self._part(m, name, start, count) for m in range(self._models)]),
            )

    def _part(self, model: int, name: str, start: int, count: int) -> Array:
        values = np.empty(count, self.like[name].dtype)
        self._file.seek(model * self._size + self._at[name] + start * values.itemsize)
        read = self._file.readinto(values.view(np.uint8).data)
        if read != values.nbytes:
            raise RunFailed(f"an update on disk has {read} bytes; expected {values.nbytes}")
        return values


def _distance(before: Weights, after: Weights) -> float:
    squares = 0.0
    for name, value in after.items():
        if value.dtype.kind == "f":
            change = (value - before[name]).reshape(-1).astype(np.float64)
            squares += float(np.dot(change, change))
    return math.sqrt(squares)
