"""Who answers the server's questions at a site: in this process, or behind the airlock."""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from knowmine.shared.errors import WeightsError
from knowmine.shared.protocol import (
    Calibration,
    EvaluateTask,
    Hello,
    Mined,
    Scores,
    TrainTask,
    Update,
    calibration_of,
)
from knowmine.shared.weights import (
    Manifest,
    digest_of,
    load_notes,
    load_weights,
    save_weights,
)

if TYPE_CHECKING:  # torch takes seconds, and a process behind the airlock does without
    from knowmine.client.site.site import Site


class Worker(Protocol):
    """Answers the server's questions."""

    @property
    def manifest(self) -> Manifest:
        """The tensors of the model that is installed at this site."""

    def hello(self) -> Hello:
        """Who this site is and what it has."""

    def improve(self, task: TrainTask) -> Update:
        """Improve the task's weights on this site's images."""

    def evaluate(self, task: EvaluateTask) -> Scores:
        """Score the task's weights on this site's images."""


class SiteWorker:
    """A `Worker` in this process."""

    def __init__(self, site: "Site") -> None:
        self._site = site

    @property
    def manifest(self) -> Manifest:
        """The tensors of the site's model."""
        return self._site.models.manifest

    def hello(self) -> Hello:
        """Who the site is and what it has."""
        return self._site.hello()

    def improve(self, task: TrainTask) -> Update:
        """One round: see `client.site.round`."""
        from knowmine.client.site.round import improve

        return improve(self._site, task)

    def evaluate(self, task: EvaluateTask) -> Scores:
        """Score on the site's test and calibration images."""
        from knowmine.client.site.round import evaluate

        return evaluate(self._site, task)


class Remembering:
    """A `Worker` that keeps its last answers on disk, and gives them again when asked again.

    A server that was killed asks for the round under way once more, and so does one whose
    connection broke while the answer was on its way: hours of training are not repeated.
    """

    def __init__(self, worker: Worker, folder: Path) -> None:
        """Keep them in `folder`, which must exist."""
        self._worker, self._folder = worker, folder

    @property
    def manifest(self) -> Manifest:
        """The tensors of the worker's model."""
        return self._worker.manifest

    def hello(self) -> Hello:
        """Never remembered: images may have come and gone."""
        return self._worker.hello()

    def improve(self, task: TrainTask) -> Update:
        """The update that was made for this very task, or a new one."""
        path = self._folder / f"update-{_digest(task)}.safetensors"
        try:
            weights = load_weights(path)
            notes = json.loads(load_notes(path)["update"])
            return Update(weights=weights, mined=Mined(**notes.pop("mined")), **notes)
        except (WeightsError, KeyError, TypeError, ValueError):
            pass  # not there, or not whole: work it out
        update = self._worker.improve(task)
        fields = {**update.__dict__, "mined": asdict(update.mined)}
        del fields["weights"]
        with suppress(OSError):  # a full disk: the answer is worth more than its copy
            save_weights(path, update.weights, {"update": json.dumps(fields)})
            self._forget("update-*", path)
        return update

    def evaluate(self, task: EvaluateTask) -> Scores:
        """The scores that were found for this very task, or new ones."""
        path = self._folder / f"scores-{_digest(task)}.safetensors"
        try:
            notes = json.loads(load_notes(path)["scores"])
            sums = calibration_of(notes.pop("calibration"))
            return Scores(calibration=sums, **notes)
        except (WeightsError, KeyError, TypeError, ValueError):
            pass
        scores = self._worker.evaluate(task)
        with suppress(OSError):
            save_weights(path, {}, {"scores": json.dumps(asdict(scores))})
            self._forget("scores-*", path)
        return scores

    def _forget(self, pattern: str, but: Path) -> None:
        for path in self._folder.glob(f"{pattern}.safetensors"):
            if path != but:
                path.unlink(missing_ok=True)


def _digest(task: TrainTask | EvaluateTask) -> str:
    """What the answer to a task follows from."""
    sums = task.calibration if isinstance(task, TrainTask) else Calibration()
    parts = (
        type(task).__name__,
        str(task.round),
        str(task.rounds),
        task.plan.model_dump_json(),
        json.dumps(asdict(sums)),
        digest_of(task.weights),
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
