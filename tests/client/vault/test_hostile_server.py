"""A server that wants more than a round: what it asks for is refused, and nothing of it is done."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knowmine.client.federation.app import client_app
from knowmine.deploy.simulation.grid import LocalGrid
from knowmine.shared.errors import Refused
from knowmine.shared.protocol import PROTOCOL, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.weights import digest_of_manifest, manifest_of
from knowmine.shared.wire import codec, tensors

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

SENT = {"a.weight": np.ones(4, np.float32)}


class Counting:
    """A worker that counts what it was made to do."""

    manifest = manifest_of(SENT)

    def __init__(self):
        self.worked = 0

    def hello(self):
        return Hello("lyon", PROTOCOL, digest_of_manifest(self.manifest), 8, 0, 0, 4)

    def improve(self, task):
        self.worked += 1
        return Update(task.round, SENT, 8, 0, 0.5, 2.0)

    def evaluate(self, task):
        self.worked += 1
        return Scores(task.round, 4, 3.0, 2.0, 9.0)


def asked(change, kind="train"):
    """The site's answer to a task that was changed on its way, and how often it worked."""
    task = {"train": TrainTask, "evaluate": EvaluateTask}[kind](1, 3, Plan(), SENT)
    records = codec.pack_tasks({"lyon": task})["lyon"]
    change(records)
    worker = Counting()
    grid = LocalGrid({1: client_app(lambda _: worker)}, lambda _: None)
    (reply,) = grid.send_and_receive([Message(records, 1, kind)])
    return reply, worker.worked


def with_plan(**values):
    """Changes keys of the plan that travels; a key may lead inside, as mining__images does."""

    def change(records):
        plan: Any = json.loads(records["task"]["plan"])
        for key, value in values.items():
            *way, last = key.split("__")
            at = plan
            for step in way:
                at = at[step]
            at[last] = value
        records["task"]["plan"] = json.dumps(plan)

    return change


def with_heading(**values):
    return lambda records: records["task"].update(values)


ASKED_FOR = {
    "a word that is a path": with_plan(method="../../../etc/cron.d/knowmine"),
    "a path where a number belongs": with_plan(seed="/root/.ssh/authorized_keys"),
    "a folder to write to": with_plan(state="/srv/elsewhere"),
    "code": with_plan(training__loss="__import__('os').system('id')"),
    "a round before the first": with_heading(round=0),
    "a run of no rounds": with_heading(rounds=0),
    "a round after the last": with_heading(round=4),
    "a number that is text": with_heading(round="1"),
    "another version of the messages": with_heading(protocol=PROTOCOL + 1),
    "training without end": with_plan(training__steps=10**12),
    "a learning rate that is not finite": with_plan(training__learning_rate="inf"),
}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("what", ASKED_FOR)
def test_a_task_that_asks_for_more_is_refused(what, kind):
    """Whoever asks gets an error, and nothing was worked out."""
    reply, worked = asked(ASKED_FOR[what], kind)
    assert (reply.has_error(), worked) == (True, 0)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.write_text, (self.path, "boom"))


def bombs(path):
    """Pickles in each place where bytes travel, under each name that a reader may go by."""
    raw = pickle.dumps(Bomb(path))
    objects = np.empty(1, object)
    objects[0] = Bomb(path)
    file = path.with_suffix(".npy")
    np.save(file, objects, allow_pickle=True)
    for data in (raw, file.read_bytes()):
        for stype in ("numpy.ndarray", tensors.STYPE, tensors.CHANGE, "pickle"):
            yield ArrayRecord({"all": Array("uint8", (len(data),), stype, data)})


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path):
    """So the next test can fail."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "boom")))  # noqa: S301 - ours
    assert (tmp_path / "boom").exists()


def test_no_pickle_in_a_task_is_opened(tmp_path):
    """As tensors of every kind that Flower knows."""
    for record in bombs(tmp_path / "boom"):

        def put(records, record=record):
            records["weights"] = record

        reply, worked = asked(put)
        assert (reply.has_error(), worked) == (True, 0)
    assert not (tmp_path / "boom").exists()


def test_no_pickle_in_an_answer_is_opened(tmp_path):
    """By the server, which trusts its sites no more."""
    for record in bombs(tmp_path / "boom"):
        records = codec.pack_reply(Update(1, SENT, 8, 0, 0.5, 2.0))
        records["weights"] = record
        with pytest.raises(Refused):
            codec.unpack_update(records, TrainTask(1, 3, Plan(), SENT))
    assert not (tmp_path / "boom").exists()


def test_records_beside_the_task_are_not_looked_at():
    """A note, an app to load, a file: none has a place."""

    def more(records):
        records["fab"] = ConfigRecord({"content": b"PK\3\4", "path": "/srv/app"})

    reply, worked = asked(more)
    assert (reply.has_error(), worked) == (False, 1)
    assert set(reply.content) == set(codec.pack_reply(Update(1, SENT, 8, 0, 0.5, 2.0)))


def test_a_goodbye_with_a_task_is_no_goodbye():
    """It would end the site's run and have it work at once."""
    records = RecordDict({"goodbye": ConfigRecord({"protocol": 1}), "task": ConfigRecord({})})
    assert not codec.is_goodbye(records)
