"""Record which cases took part in which round.

The record stays at the site. It holds no names: only someone who knows a case id and has the
project's key finds the case in it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from knowmine.client.storage.encryption import Seal
from knowmine.shared.errors import CannotWrite

RECORD = "participation.jsonl"


class Named(Protocol):
    """A case, by its case id."""

    @property
    def case_id(self) -> str:
        """The name of image and mask without its ending."""


class Took(NamedTuple):
    """A time at which a case took part, in which round and as what."""

    time: str
    round: int
    as_: str


class Participation:
    """The record in `folder`, written by `seal`'s key."""

    def __init__(self, folder: Path, seal: Seal) -> None:
        self._path, self._seal = folder / RECORD, seal

    def note(self, round_: int, as_: str, cases: Iterable[Named], digests: Iterable[str]) -> None:
        """Write down that these cases took part in a round.

        as_: "trained", "mined" or "scored". digests: of their image files.
        """
        whose = {
            self._seal.alias("case", case.case_id): self._seal.alias("embedding", digest)
            for case, digest in zip(cases, digests, strict=True)
        }
        if not whose:
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        values = {"round": round_, "as": as_, "time": now, "cases": whose}
        line = json.dumps(values, separators=(",", ":"))
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                # Begun on a fresh line, so that one which a crash cut short costs itself alone.
                rest = memoryview(f"\n{line}\n".encode())
                while rest:
                    rest = rest[os.write(file, rest) :]
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise CannotWrite(f"cannot write {self._path} ({error.strerror})") from error

    def rounds_of(self, case_id: str) -> list[Took]:
        """In which rounds a case took part, in order; the receipts' times tell of which run."""
        alias = self._seal.alias("case", case_id)
        return sorted(took for took, cases in self._lines() if alias in cases)

    def embeddings_of(self, case_id: str) -> set[str]:
        """Aliases of a case's embeddings, also where its image is gone."""
        alias = self._seal.alias("case", case_id)
        return {str(cases[alias]) for _, cases in self._lines() if alias in cases}

    def _lines(self) -> Iterable[tuple[Took, Mapping[str, str]]]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in filter(None, lines):
            try:
                values = json.loads(line)
                took = Took(str(values["time"]), int(values["round"]), str(values["as"]))
                yield took, dict(values["cases"])
            except (ValueError, KeyError, TypeError):
                continue
