"""Check what crosses between a site and the server, one claim at a time.

`client/egress/release.py` and `server/rounds/admission.py` are lists of these checks, each in its
own order and with its own error. Whatever the value is, a check either passes or refuses it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knowmine.shared.errors import Refused
from knowmine.shared.weights import Array, Manifest, TensorSpec

MAX_IMAGES = 10_000_000
"""More images than any hospital has; a count above is a mistake or an attack."""

MAX_FLOAT = 1e6
"""Trained weights stay far below; one value above it can dominate the mean of all sites."""

MAX_COUNTER = 10**12
"""Most batches that batch norm can have counted; float64 is exact for such whole numbers."""

SLACK = 1e-6
"""Tolerance of a bound, relative to it or to 1: a float32 mean of ones may be 1.0000001."""


@dataclass(frozen=True)
class Door:
    """A place where messages are checked: whom a refusal names, and which error it raises.

    who: start of every message, such as `site 'lyon' sent`.
    """

    who: str
    error: type[Refused]

    def refuse(self, what: str, seen: str, expected: str, repair: str) -> Refused:
        """The error: what was seen (shown by `shown` if it is theirs), expected, and what to do."""
        return self.error(f"{self.who} {what} as {seen}; expected {expected}: {repair}")

    def kind(self, value: Any, kind: type) -> None:
        """The value has exactly this class; a subclass could carry more."""
        if type(value) is not kind:
            raise self.refuse(
                kind.__name__.lower(),
                shown(value),
                f"an answer of type {kind.__name__}",
                "both ends need the same version of knowmine",
            )

    def names(self, weights: Any, manifest: Manifest) -> None:
        """The names are exactly the manifest's."""
        repair = "give all sites the same model settings (model.encoder, model.decoder_channels)"
        if not isinstance(weights, Mapping):
            raise self.refuse("weights", shown(weights), "named tensors", repair)
        missing = sorted(name for name in manifest if name not in weights)
        odd = sorted(shown(name) for name in weights if name not in manifest)
        if missing or odd:
            without = f"without {_few(missing)}" if missing else ""
            with_ = f"with unknown {_few(odd)}" if odd else ""
            raise self.error(
                f"{self.who} weights {' and '.join(filter(None, (without, with_)))}; "
                f"expected exactly the model's {len(manifest)} tensors: {repair}"
            )

    def shape(self, name: str, array: Any, spec: TensorSpec) -> None:
        """The tensor is a plain NumPy array of the manifest's shape."""
        repair = "give all sites the same model settings (model.classes, model.decoder_channels)"
        if type(array) is not np.ndarray:
            raise self.refuse(name, shown(array), f"an array of shape {spec.shape}", repair)
        if array.shape != tuple(spec.shape):
            raise self.refuse(name, f"{array.shape}", f"shape {tuple(spec.shape)}", repair)

    def dtype(self, name: str, array: Array, spec: TensorSpec) -> None:
        """The tensor has the manifest's dtype, in this machine's byte order."""
        if array.dtype != np.dtype(spec.dtype):
            raise self.refuse(
                name,
                array.dtype.str if array.dtype.name == spec.dtype else array.dtype.name,
                spec.dtype,
                "send weights in the precision and byte order they came in",
            )

    def finite(self, name: str, array: Array) -> None:
        """The tensor holds no NaN and no infinity."""
        if array.dtype.kind != "f" or not array.size:
            return
        # min and max propagate NaN, so no array of flags is needed.
        for value in (array.min(), array.max()):
            if not np.isfinite(value):
                raise self.refuse(
                    name,
                    f"a tensor holding {value}",
                    "finite numbers",
                    "its training diverged; lower training.learning_rate or check its images",
                )

    def counters(self, name: str, array: Array) -> None:
        """Whole numbers and variances are not negative: their square roots are taken."""
        if not array.size or not (array.dtype.kind in "iu" or name.endswith("running_var")):
            return
        if (lowest := array.min()) < 0:
            raise self.refuse(
                name,
                f"a tensor holding {lowest}",
                "0 or more",
                "its batch-norm state is damaged; start the site again",
            )

    def bounded(self, name: str, array: Array) -> None:
        """No number is so large that it dominates the mean of all sites."""
        if not array.size:
            return
        limit = MAX_COUNTER if array.dtype.kind in "iu" else MAX_FLOAT
        for value in (array.min(), array.max()):
            if not -limit <= value <= limit:
                raise self.refuse(
                    name,
                    f"a tensor holding {value}",
                    f"at most {limit:g} either way",
                    "its training diverged; lower training.learning_rate",
                )

    def count(self, what: str, value: Any, *, low: int = 0, high: int = MAX_IMAGES) -> int:
        """A whole number, not a bool. NumPy's are accepted and returned as plain int."""
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if not whole or not low <= value <= high:
            raise self.refuse(
                what, shown(value), f"a whole number from {low} to {high}", "send what was counted"
            )
        return int(value)

    def number(self, what: str, value: Any, *, low: float, high: float) -> float:
        """A finite number from `low` to `high`, returned as plain float."""
        if isinstance(value, np.integer | np.floating):
            value = float(value)  # NumPy would compare in float16, where the bounds overflow
        real = isinstance(value, int | float)
        least, most = low - SLACK * max(1.0, abs(low)), high + SLACK * max(1.0, abs(high))
        # NaN fails the comparison too. Python's whole numbers have no size limit: compare first.
        if not real or isinstance(value, bool) or not least <= value <= most:
            raise self.refuse(
                what, shown(value), f"a number from {low:g} to {high:g}", "send what was measured"
            )
        return min(max(float(value), low), high)

    def numbers(
        self, what: str, values: Any, length: int, *, low: float, high: float
    ) -> tuple[float, ...]:
        """A tuple of `length` such numbers."""
        if type(values) is not tuple or len(values) != length:
            seen = f"{len(values)} numbers" if type(values) is tuple else shown(values)
            raise self.refuse(
                what,
                seen,
                f"a tuple of {length} numbers",
                "both ends need the same version of knowmine",
            )
        return tuple(
            self.number(f"{what}[{place}]", value, low=low, high=high)
            for place, value in enumerate(values)
        )

    def one_of(self, what: str, value: Any, choices: Sequence[str]) -> str:
        """A word from a closed list."""
        if type(value) is not str or value not in choices:
            raise self.refuse(
                what,
                shown(value),
                f"one of {', '.join(choices)}",
                "both ends need the same version of knowmine",
            )
        return value

    def text(self, what: str, value: Any, pattern: str, repair: str) -> str:
        """A short text of a closed form."""
        if type(value) is not str or not re.fullmatch(pattern, value):
            raise self.refuse(what, shown(value), f"text like {pattern}", repair)
        return value


def shown(value: Any) -> str:
    """A hostile value for a message: short, and none of its code runs.

    >>> shown("x" * 100), shown(3), shown(10**5000), shown({})
    ("'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...'", '3', 'a number of 16610 bits', 'a dict')
    """
    if type(value) is str:
        return repr(value if len(value) <= 40 else value[:40] + "...")
    if type(value) is int and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, bool | int | float | np.generic | None) and not isinstance(
        value, np.flexible | np.object_
    ):
        return str(value)
    return f"a {type(value).__name__}"


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
