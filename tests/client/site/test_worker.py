"""A site that gets a task twice works once."""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from knowmine.client.site.worker import Remembering
from knowmine.shared.protocol import (
    Calibration,
    EvaluateTask,
    Hello,
    Mined,
    Scores,
    TrainTask,
    Update,
)
from knowmine.shared.settings import Plan
from knowmine.shared.weights import manifest_of

WEIGHTS = {"w": np.arange(4, dtype=np.float32), "count": np.array(3)}
TRAIN = TrainTask(2, 5, Plan(), WEIGHTS, Calibration())
SCORE = EvaluateTask(2, 5, Plan(), WEIGHTS)


@dataclass
class Counting:
    """Adds 1 to all weights, and records its calls."""

    worked: list = field(default_factory=list)
    manifest = manifest_of(WEIGHTS)

    def hello(self):
        self.worked.append("hello")
        return Hello("lyon", 1, "ab", 1, 2, 3, 4)

    def improve(self, task):
        self.worked.append("train")
        weights = {name: value + 1 for name, value in task.weights.items()}
        mined = Mined(3, 1, gate="on")
        return Update(task.round, weights, 8, 3, 0.5, 1.5, mined)

    def evaluate(self, task):
        self.worked.append("score")
        sums = Calibration(2, (1.0,) * 5, (1.0,) * 36, (1.0,) * 6)
        return Scores(task.round, 4, 2.5, 1.25, 9.0, sums)


@pytest.fixture
def worker(tmp_path):
    return Remembering(Counting(), tmp_path)


def another(worker):
    """The next process at the same folder."""
    return Remembering(Counting(), worker._folder)


def test_an_update_is_remembered_by_the_next_process(worker):
    """Weights, counts and what was mined."""
    first, later = worker.improve(TRAIN), another(worker)
    again = later.improve(TRAIN)
    assert later._worker.worked == []
    assert replace(again, weights={}) == replace(first, weights={})
    assert all((again.weights[name] == first.weights[name]).all() for name in first.weights)
    assert manifest_of(again.weights) == manifest_of(first.weights)


def test_scores_are_remembered_by_the_next_process(worker):
    """With the sums of the calibration set."""
    first, later = worker.evaluate(SCORE), another(worker)
    assert (later.evaluate(SCORE), later._worker.worked) == (first, [])


@pytest.mark.parametrize(
    "other",
    [
        replace(TRAIN, round=3),
        replace(TRAIN, rounds=6),
        replace(TRAIN, plan=Plan(seed=1)),
        replace(TRAIN, weights={**WEIGHTS, "count": np.array(4)}),
        replace(TRAIN, calibration=Calibration(1, (1.0,) * 5, (1.0,) * 36, (1.0,) * 6)),
    ],
    ids=["round", "rounds", "plan", "weights", "calibration"],
)
def test_another_task_is_worked_on(worker, other):
    """Whatever differs."""
    worker.improve(TRAIN)
    worker.improve(other)
    assert worker._worker.worked == ["train", "train"]


def test_only_the_last_answers_are_kept(worker):
    """One of each kind, because a model is large."""
    for round_ in (1, 2, 3):
        worker.improve(replace(TRAIN, round=round_))
        worker.evaluate(replace(SCORE, round=round_))
    assert len(list(worker._folder.iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 40, -1])
def test_a_damaged_answer_is_computed_again(worker, keep):
    """Its file lost its end."""
    worker.improve(TRAIN)
    [file] = worker._folder.iterdir()
    file.write_bytes(file.read_bytes()[:keep])
    assert (another(worker).improve(TRAIN).labelled, len(worker._worker.worked)) == (8, 1)


def test_an_introduction_is_never_remembered(worker):
    """Images may have come and gone."""
    worker.hello()
    worker.hello()
    assert worker._worker.worked == ["hello", "hello"]


def test_an_answer_that_cannot_be_kept_is_still_given(worker):
    """A full disk, or a folder that went away."""
    worker._folder.rmdir()
    assert worker.improve(TRAIN).labelled == 8
    assert worker.evaluate(SCORE).test_images == 4
