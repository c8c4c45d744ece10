"""Make an update small, and remember what rounding took from it for the next one.

What was lost of a round's update is on disk before the update leaves, under the round's number.
A round that is asked for again, after a crash of either side, begins from the same residue as the
first time, so the answer is the same bytes and nothing is added twice.
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
    """One site's residues, newest last."""

    def __init__(self, folder: Path | None = None) -> None:
        """Keep them in `folder`; without one in memory, as a simulated site does."""
        self._folder = folder
        self._memory: dict[int, tuple[str, dict[str, Array]]] = {}

    def pack(self, update: Update, task: TrainTask, form: Form) -> Change:
        """The update as a change of the task's weights, with the residue of the round before."""
        # Rounding is drawn anew for each update, and alike for the same one.
        seed = int(digest_of(update.weights)[:16], 16)
        run = json.dumps([task.rounds, task.plan.model_dump_json()])
        before = self._newest(task.round, run)
        lost = self._load(before) if before else {}
        wanted, found = manifest_of(task.weights), manifest_of(lost)
        if any(wanted.get(name) != spec for name, spec in found.items()):
            lost = {}  # of another model
        change = pack_change(update.weights, task.weights, form, lost, seed)
        self._save(task.round, run, change.lost)
        self._keep({task.round, before})
        return change

    def _newest(self, before: int, run: str) -> int:
        """The last round of this run before that one of which there is a residue, or 0."""
        rounds = [r for r in self._rounds() if r < before and self._run_of(r) == run]
        return max(rounds, default=0)

    def _rounds(self) -> list[int]:
        if self._folder is None:
            return list(self._memory)
        return [int(path.stem[5:]) for path in self._folder.glob("lost-*.safetensors")]

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
        except WeightsError:  # half a file: rounding is right on average without it
            return {}

    def _save(self, round_: int, run: str, lost: dict[str, Array]) -> None:
        if self._folder is None:
            self._memory[round_] = (run, lost)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        save_weights(self._path(round_), lost, {"run": run})

    def _keep(self, rounds: set[int]) -> None:
        for old in set(self._rounds()) - rounds:
            if self._folder is None:
                del self._memory[old]
            else:
                self._path(old).unlink(missing_ok=True)

    def _path(self, round_: int) -> Path:
        assert self._folder is not None
        return self._folder / f"lost-{round_:06}.safetensors"
