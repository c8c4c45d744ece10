"""Quantise an update, and add the residual of the last round's update to it first.

The residual is what rounding took (error feedback, Seide et al. 2014). A round's residual is on
disk before its update leaves. If a round is asked for again after a crash of either side, it
starts from the same residual as the first time. So the reply is the same bytes, and nothing is
added twice.
"""

import json
from pathlib import Path

from knowmine.shared.errors import WeightsError
from knowmine.shared.protocol import TrainTask, Update
from knowmine.shared.weights import (
    Array,
    digest_of,
    load_notes,
    load_weights,
    manifest_of,
    save_weights,
)
from knowmine.shared.wire.changes import Change, Form, pack_change


class Feedback:
    """One site's residuals, by round."""

    def __init__(self, folder: Path | None = None) -> None:
        """Keep them in `folder`, or in memory without one, as a simulated site does."""
        self._folder = folder
        self._memory: dict[int, tuple[str, dict[str, Array]]] = {}

    def pack(self, update: Update, task: TrainTask, form: Form) -> Change:
        """The update as a change of the task's weights, plus the last round's residual."""
        # Equal updates are rounded equally, and different ones by different draws.
        seed = int(digest_of(update.weights)[:16], 16)
        run = json.dumps([task.rounds, task.plan.model_dump_json()])
        before = self._newest(task.round, run)
        residual = self._load(before) if before else {}
        wanted, found = manifest_of(task.weights), manifest_of(residual)
        if any(wanted.get(name) != spec for name, spec in found.items()):
            residual = {}  # of another model
        change = pack_change(update.weights, task.weights, form, residual, seed)
        self._save(task.round, run, change.residual)
        self._keep({task.round, before})
        return change

    def _newest(self, before: int, run: str) -> int:
        """The last round of this run that is before `before` and has a residual, or 0."""
        rounds = [r for r in self._rounds() if r < before and self._run_of(r) == run]
        return max(rounds, default=0)

    def _rounds(self) -> list[int]:
        if self._folder is None:
            return list(self._memory)
        return [int(path.stem[9:]) for path in self._folder.glob("residual-*.safetensors")]

    def _run_of(self, round_: int) -> str:
        if self._folder is None:
            return self._memory[round_][0]
        try:
            return load_notes(self._path(round_)).get("run", "")
        except WeightsError:
            return ""

    def _load(self, round_: int) -> dict[str, Array]:
        if self._folder is None:
            return self._memory[round_][1]
        try:
            return dict(load_weights(self._path(round_)))
        except WeightsError:  # half a file; without it rounding is still right on average
            return {}

    def _save(self, round_: int, run: str, residual: dict[str, Array]) -> None:
        if self._folder is None:
            self._memory[round_] = (run, residual)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        save_weights(self._path(round_), residual, {"run": run})

    def _keep(self, rounds: set[int]) -> None:
        for old in set(self._rounds()) - rounds:
            if self._folder is None:
                del self._memory[old]
            else:
                self._path(old).unlink(missing_ok=True)

    def _path(self, round_: int) -> Path:
        assert self._folder is not None
        return self._folder / f"residual-{round_:06}.safetensors"
