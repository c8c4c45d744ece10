"""Say what happens: the run's log on disk, and the progress that a person watches.

A log line is one JSON object: time, level, event and a few fields. It carries counts, never
pixels, and nothing that unlocks anything: fields called like a secret are masked.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from json import dumps
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self

import numpy as np

from knowmine.shared.errors import UsageError
from knowmine.shared.verbosity import verbose

Level = Literal["debug", "info", "warning", "error"]

_SECRETS = frozenset(
    ("apikey", "credential", "credentials", "key", "passphrase", "password", "secret", "token")
)
_HEADER = frozenset(("time", "level", "event", "missed"))


class RunLog:
    """Append-only JSON lines; see `open_log` and `silent`."""

    def __init__(
        self,
        file: BinaryIO | None,
        also: "Telling | None" = None,
        echo: Callable[[str], None] | None = None,
    ) -> None:
        """also: is told of each event. echo: is given each line as it is written."""
        self._file, self._also, self._echo = file, also, echo
        self._missed = 0

    def event(self, name: str, /, *, level: Level = "info", **fields: Any) -> None:
        """Write one line and flush it.

        A line that cannot be written (a full disk) never stops the run: the next one that can
        says how many were missed.
        """
        if self._also is not None:
            self._also(name, fields)
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now, "level": level, "event": name}
        if self._missed:
            line["missed"] = self._missed
        for key, value in fields.items():
            line[f"{key}_" if key in _HEADER else key] = plain({key: value}, mask=True)[key]
        # A line that failed may have left its first half: start on a fresh one.
        start = "\n" if self._missed else ""
        text = dumps(line, ensure_ascii=True, allow_nan=False)
        if self._echo is not None:
            self._echo(text)
        content = f"{start}{text}\n".encode()
        try:
            complete = self._file.write(content) == len(content)
        except OSError:
            complete = False
        self._missed = 0 if complete else self._missed + 1

    def close(self) -> None:
        """Close the file; later events go nowhere."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


Telling = Callable[[str, Mapping[str, Any]], None]
"""Who is told of each event too, by its name and fields."""


def open_log(path: Path, also: Telling | None = None) -> RunLog:
    """Open the log at `path` to append to; raise `UsageError` where that is impossible."""
    try:
        torn = path.exists() and path.stat().st_size > 0 and not _ends_in_newline(path)
        file = path.open("ab", buffering=0)
        if torn:  # a killed process left half a line
            file.write(b"\n")
    except OSError as error:
        raise UsageError(
            f"cannot write the log {path} ({error.strerror}): choose a folder you can write to"
        ) from error
    return RunLog(file, also, _on_standard_error if verbose() else None)


def silent() -> RunLog:
    """Make a log that keeps nothing."""
    return RunLog(None)


class Progress(Protocol):
    """Where a long step says how far it is. Steps follow each other and never nest."""

    def start(self, step: str, total: int) -> None:
        """Begin `step`, which is `total` units long."""

    def advance(self, n: int = 1) -> None:
        """Say that `n` more units are done."""

    def done(self) -> None:
        """End the step."""


class Silent:
    """A `Progress` that shows nothing."""

    def start(self, step: str, total: int) -> None:
        """Show nothing."""

    def advance(self, n: int = 1) -> None:
        """Show nothing."""

    def done(self) -> None:
        """Show nothing."""


def plain(value: Any, *, mask: bool = False) -> Any:
    """`value` as JSON can hold it: NumPy scalars become numbers, paths text, NaN null.

    Arrays and objects are named, never written out. `mask` hides what is called like a secret.

    >>> plain({"loss": np.float32(0.5), "mask": np.zeros((2, 2), np.uint8), "worst": math.inf})
    {'loss': 0.5, 'mask': '<uint8 (2, 2)>', 'worst': None}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path | BaseException):
        return str(value)
    if isinstance(value, np.ndarray):
        return f"<{value.dtype.name} {value.shape}>"
    if isinstance(value, Mapping):
        return {
            str(key): "***" if mask and _is_secret(str(key)) else plain(inner, mask=mask)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(inner, mask=mask) for inner in value]
    if isinstance(value, set | frozenset):
        return [plain(inner, mask=mask) for inner in sorted(value, key=str)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(named, mask=mask)
    return f"<{type(value).__name__}>"


def _is_secret(name: str) -> bool:
    """Whether a word of `name` says that it unlocks something: site_key, authToken, but not monkey.

    >>> _is_secret("siteKey"), _is_secret("keypoints")
    (True, False)
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return any(word.lower().removesuffix("s") in _SECRETS for word in words)


def _on_standard_error(line: str) -> None:
    with suppress(OSError, ValueError):  # whoever read along is gone
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"
