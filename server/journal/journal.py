"""Keep a run on disk so that a kill at any moment loses at most the current round.

```
RUN/settings.json                      what the run was started with
RUN/checkpoints/0000.safetensors .json the weights it started from
RUN/checkpoints/0001.safetensors       global weights after round 1; the last two are kept
RUN/checkpoints/0001.optimiser.safetensors   the server optimiser's memory, if it has any
RUN/rounds/0001.json                   what round 1 did, and the digests of its checkpoint
RUN/summary.json RUN/model.safetensors written at the end
```
A round is committed once its JSON exists: that file is written last, whole or not at all.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from knowmine.shared.errors import RunFailed, UsageError, WeightsError
from knowmine.shared.files import FolderLock, write_atomically
from knowmine.shared.log import plain
from knowmine.shared.weights import (
    Array,
    Weights,
    digest_of,
    load_weights,
    save_weights,
)

KEPT_CHECKPOINTS = 2
_OURS = ("settings.json", "summary.json", "model.safetensors", "rounds", "checkpoints")


@dataclass(frozen=True)
class Committed:
    """The newest whole round, from which a run continues.

    round: 0 if only the weights that the run starts from are there.
    records: those of all rounds up to this one.
    """

    round: int
    weights: dict[str, Array]
    optimiser_state: dict[str, Array]
    records: list[dict[str, Any]]


class Journal:
    """A run folder, locked against other processes until `close`."""

    def __init__(self, folder: Path, settings: dict[str, Any], lock: FolderLock) -> None:
        """Use `create` or `open`."""
        self.folder = folder
        self.settings = settings
        self._lock = lock

    @classmethod
    def create(cls, folder: Path, settings: Mapping[str, Any]) -> "Journal":
        """Begin a run in `folder`; raise `UsageError` if it holds one or cannot be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the run folder {folder} ({error.strerror}): choose another"
            ) from error
        journal = cls(folder, plain(settings), FolderLock(folder))
        try:
            refuse_used(folder)
            journal._write(folder / "settings.json", _save_json(journal.settings))
            journal._prepare()
        except BaseException:
            journal.close()
            raise
        return journal

    @classmethod
    def open(cls, folder: Path) -> "Journal":
        """Continue the run in `folder`; raise `UsageError` if there is none."""
        file = folder / "settings.json"
        if not file.is_file():
            raise UsageError(
                f"{folder} holds no run (there is no settings.json): check the path, "
                "or start one without `--resume`"
            )
        lock = FolderLock(folder)
        settings = _load_json(file)
        if settings is None:
            lock.release()
            raise UsageError(f"{file} is damaged: put it back from a copy, or start another run")
        journal = cls(folder, settings, lock)
        try:
            journal._prepare()
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Let other processes use the folder."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit_initial(self, weights: Weights) -> None:
        """Keep the weights that the run starts from, as round 0."""
        self.commit_round({"round": 0}, weights, {})

    def commit_round(
        self, record: Mapping[str, Any], weights: Weights, optimiser_state: Weights
    ) -> None:
        """Keep a finished round: `record["round"]` is its number, from 1.

        Raises `RunFailed` if the disk is full; the rounds before are then safe.
        """
        round_ = int(record["round"])
        digests = {"weights": digest_of(weights)}
        self._write(self._weights(round_), lambda path: save_weights(path, weights))
        if optimiser_state:
            digests["optimiser"] = digest_of(optimiser_state)
            self._write(self._optimiser(round_), lambda path: save_weights(path, optimiser_state))
        # From here on the round counts.
        self._write(self._record(round_), _save_json({**record, "checkpoint": digests}))
        for old in (self.folder / "checkpoints").glob("*.safetensors"):
            number = old.name.split(".")[0]
            if number.isdecimal() and int(number) <= round_ - KEPT_CHECKPOINTS:
                old.unlink(missing_ok=True)

    def last(self) -> Committed | None:
        """The newest whole round, or None if nothing was committed yet.

        A damaged round is moved aside (`.broken`), and the one before it is taken. Raises
        `RunFailed` if rounds were committed and none can be read.
        """
        damaged: list[int] = []
        for round_ in reversed(self._committed_rounds()):
            found = self._load(round_)
            if found is not None:
                self._set_aside(damaged)
                return found
            damaged.append(round_)
        if any(damaged):
            raise RunFailed(
                f"no checkpoint in {self.folder / 'checkpoints'} is whole: put back a copy of "
                "that folder, or start another run; nothing was changed"
            )
        self._set_aside(damaged)
        return None

    def records(self) -> list[dict[str, Any]]:
        """The records of all committed rounds from 1, oldest first."""
        records = (_load_json(self._record(round_)) for round_ in self._committed_rounds())
        return [record for record in records if record and record.get("round")]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `RUN/summary.json`."""
        self._write(self.folder / "summary.json", _save_json(summary))

    def read_summary(self) -> dict[str, Any]:
        """What `write_summary` last wrote, or empty."""
        return _load_json(self.folder / "summary.json") or {}

    def finish(self, weights: Weights) -> None:
        """Write the finished model to `RUN/model.safetensors`, with the roster in its notes."""
        notes = {"roster": json.dumps(roster_of(self.records()))}
        self._write(
            self.folder / "model.safetensors", lambda path: save_weights(path, weights, notes)
        )

    def _load(self, round_: int) -> Committed | None:
        """Round `round_`, or None if its record or checkpoint is not what was written."""
        record = _load_json(self._record(round_))
        if record is None or record.get("round") != round_:
            return None
        digests = record.get("checkpoint")
        if not isinstance(digests, dict):
            return None
        try:
            weights = load_weights(self._weights(round_))
            state = load_weights(self._optimiser(round_)) if "optimiser" in digests else {}
        except WeightsError:
            return None
        if digest_of(weights) != digests.get("weights"):
            return None
        if "optimiser" in digests and digest_of(state) != digests["optimiser"]:
            return None
        records = [earlier for earlier in self.records() if earlier["round"] <= round_]
        return Committed(round_, weights, state, records)

    def _set_aside(self, rounds: list[int]) -> None:
        for round_ in rounds:
            # The record is moved last: until then the round is still found, and found damaged.
            for file in (self._weights(round_), self._optimiser(round_), self._record(round_)):
                if file.exists():
                    file.replace(_free_name(file))

    def _committed_rounds(self) -> list[int]:
        names = [file.stem for file in (self.folder / "rounds").glob("*.json")]
        rounds = {int(name) for name in names if name.isdecimal()}
        return sorted(rounds | ({0} if self._record(0).exists() else set()))

    def _record(self, round_: int) -> Path:
        # Round 0 is not a round, so it stays out of the folder that people and scripts read.
        return self.folder / ("rounds" if round_ else "checkpoints") / f"{round_:04}.json"

    def _weights(self, round_: int) -> Path:
        return self.folder / "checkpoints" / f"{round_:04}.safetensors"

    def _optimiser(self, round_: int) -> Path:
        return self.folder / "checkpoints" / f"{round_:04}.optimiser.safetensors"

    def _prepare(self) -> None:
        """Make the folders, and remove what a killed process left half-written."""
        for name in ("rounds", "checkpoints"):
            self._write(self.folder / name, lambda path: path.mkdir(exist_ok=True))
            for stale in (self.folder / name).glob("*.tmp"):
                stale.unlink()
        for name in _OURS:
            (self.folder / f"{name}.tmp").unlink(missing_ok=True)

    def _write(self, path: Path, write: Callable[[Path], None]) -> None:
        """Write `path`; raise `RunFailed` for a full disk, and say which rounds are safe."""
        try:
            write(path)
        except OSError as error:
            safe = max(self._committed_rounds(), default=0)
            free = shutil.disk_usage(self.folder).free / 1e6
            kept = f"rounds up to {safe} are safe" if safe else "no round was finished yet"
            raise RunFailed(
                f"cannot write {path} ({error.strerror or error}; {free:.0f} MB are free there): "
                f"{kept}; make room and go on with `--resume {self.folder}`"
            ) from error


def roster_of(records: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The sites in a model, each with the rounds that it contributed to.

    >>> roster_of([{"round": 1, "sites": ["lyon"]}, {"round": 2, "sites": ["lyon", "oslo"]}])
    {'lyon': [1, 2], 'oslo': [2]}
    """
    roster: dict[str, list[int]] = {}
    for record in records:
        for site in record.get("sites", ()):
            roster.setdefault(site, []).append(record["round"])
    return dict(sorted(roster.items()))


def refuse_used(folder: Path) -> None:
    """Raise `UsageError` if `folder` already holds a run."""
    if any((folder / name).exists() for name in _OURS):
        raise UsageError(
            f"{folder} already holds a run: go on with it by `--resume {folder}`, "
            "or choose another folder"
        )


def _save_json(value: Mapping[str, Any]) -> Callable[[Path], None]:
    content = json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
    return lambda path: write_atomically(path, content.encode())


def _load_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _free_name(path: Path) -> Path:
    name, number = path.with_name(path.name + ".broken"), 1
    while name.exists():
        number += 1
        name = path.with_name(f"{path.name}.broken{number}")
    return name
