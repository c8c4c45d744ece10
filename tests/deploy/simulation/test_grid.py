"""The local grid carries messages as Flower's own does, and shares no memory."""

from contextlib import suppress

import numpy as np
import pytest

from knowmine.deploy.simulation.grid import LocalGrid
from knowmine.deploy.simulation.progress import Display
from knowmine.server.journal.journal import Journal
from knowmine.server.rounds.app import GridSites
from knowmine.server.rounds.rounds import run_rounds
from knowmine.server.settings import RunSettings
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import silent
from knowmine.shared.protocol import EvaluateTask, Hello, Mined, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.weights import digest_of_manifest, load_weights, manifest_of
from knowmine.shared.wire import codec

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

WEIGHTS = {"w": np.zeros(2, np.float32)}
DIGEST = digest_of_manifest(manifest_of(WEIGHTS))


def node(name, improve):
    """A ClientApp that trains by `improve`."""
    app = ClientApp()

    @app.query()
    def hello(message, context):
        greeting = Hello(name, 1, DIGEST, 8, 9, 2, 4)
        return Message(codec.pack_reply(greeting), reply_to=message)

    @app.train()
    def train(message, context):
        task = codec.unpack_train_task(message.content)
        update = Update(task.round, improve(task.weights), 8, 0, 0.5, 1.0, Mined())
        return Message(codec.pack_reply(update), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        task = codec.unpack_evaluate_task(message.content)
        return Message(codec.pack_reply(Scores(task.round, 0, 0, 0, 0)), reply_to=message)

    return app


def one_more(weights):
    return {"w": weights["w"] + np.float32(1)}


def failing(error):
    def improve(weights):
        raise error

    return improve


def grid_of(**improves):
    apps = {n: node(name, f) for n, (name, f) in enumerate(improves.items(), start=2)}
    return LocalGrid(apps, lambda node: None)


def asked(grid, **tasks):
    """The sites' answers to a training task each."""
    sites = GridSites(grid)
    names = [name for name, _ in sites.greet()]
    return dict(sites.train({name: TrainTask(1, 1, Plan(), WEIGHTS) for name in names}))


def test_nothing_is_shared_by_accident():
    """A site that forces its way into the arrays it got does not reach the server's."""

    def vandal(weights):
        shared.append(np.shares_memory(weights["w"], WEIGHTS["w"]))
        with suppress(ValueError):  # it is read-only
            weights["w"][:] = 100
        return one_more(weights)

    shared: list[bool] = []
    answers = asked(grid_of(a=vandal, b=one_more))
    assert shared == [False] and WEIGHTS["w"].tolist() == [0, 0]
    assert answers["b"].weights["w"].tolist() == [1, 1]


def test_a_sites_own_error_reaches_the_server_in_words():
    """As an error reply."""
    answers = asked(grid_of(a=failing(RunFailed("the loss became nan")), b=one_more))
    assert "the loss became nan" in str(answers["a"])


def test_a_sites_bug_reaches_the_server_by_name():
    """With the kind of exception, which is all there is."""
    answers = asked(grid_of(a=failing(ZeroDivisionError("by zero"))))
    assert "ZeroDivisionError: by zero" in str(answers["a"])


def test_ctrl_c_in_a_site_ends_the_run():
    """It is a person's wish and not the site's failure."""
    with pytest.raises(KeyboardInterrupt):
        asked(grid_of(a=failing(KeyboardInterrupt())))


def test_a_round_goes_on_without_the_site_that_failed(tmp_path):
    """Two of three sites are averaged; the record names the third."""
    grid = grid_of(a=one_more, b=failing(RunFailed("out of memory")), c=one_more)
    with Journal.create(tmp_path / "run", {}) as journal:
        weights = run_rounds(
            GridSites(grid),
            journal,
            Plan(),
            RunSettings(rounds=1),
            lambda: WEIGHTS,
            log=silent(),
            watch=Display(),
        )
        [record] = journal.records()
    assert weights["w"].tolist() == [1, 1] and "out of memory" in record["refused"]["b"]
    assert load_weights(tmp_path / "run" / "model.safetensors")["w"].tolist() == [1, 1]


def test_sites_work_when_their_reply_is_pulled():
    """One after the other, so that one update is in memory."""
    started: list[int] = []
    apps = {n: node(str(n), one_more) for n in (2, 3)}
    grid = LocalGrid(apps, started.append)
    ids = list(grid.push_messages([Message(RecordDict(), n, "query") for n in (2, 3)]))
    assert started == []
    assert [len(list(grid.pull_messages([i]))) for i in ids] == [1, 1] and started == [2, 3]


def test_a_reply_is_pulled_once():
    """A second pull finds nothing."""
    grid = grid_of(a=one_more)
    ids = list(grid.push_messages([Message(RecordDict(), 2, "query")]))
    assert [len(list(grid.pull_messages(ids))) for _ in range(2)] == [1, 0]


def test_the_grid_answers_a_scoring_task_too():
    """Both kinds of question take the same way."""
    sites = GridSites(grid_of(a=one_more))
    list(sites.greet())
    [(name, scores)] = sites.evaluate({"a": EvaluateTask(4, 9, Plan(), WEIGHTS)})
    assert name == "a" and isinstance(scores, Scores) and scores.round == 4
