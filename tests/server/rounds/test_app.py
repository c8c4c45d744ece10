"""A Flower grid seen as sites: names, failures and silence."""

import itertools
import time

import pytest

from knowmine.server.rounds.app import GridSites, server_app
from knowmine.server.rounds.deadlines import Deadlines
from knowmine.server.settings import DeadlineSettings
from knowmine.shared.protocol import EvaluateTask, Hello, TrainTask, Update
from knowmine.shared.settings import Plan
from tests.server.rounds.tiny_grid import WEIGHTS, TinyGrid, babbling, failing, silent, site

from flwr.app import Context, RecordDict


def within(seconds):
    return Deadlines(DeadlineSettings(first_s=seconds, at_least_s=seconds))


def greeted(grid, timeout_s=5.0):
    """The sites of a grid, known by name, and what they said."""
    sites = GridSites(grid, within(timeout_s))
    return sites, dict(sites.greet())


def train_tasks(*names):
    return {name: TrainTask(1, 2, Plan(), WEIGHTS) for name in names}


def test_sites_are_known_by_the_names_they_give():
    """Nodes are numbers; a task goes by name and its answer comes back by name."""
    sites, hellos = greeted(TinyGrid(a=site("lyon"), b=site("porto", labelled=3)))
    assert list(hellos) == ["lyon", "porto"]
    [(name, update)] = sites.train(train_tasks("porto"))
    assert (name, update.labelled) == ("porto", 3)


def test_scores_come_back_by_name():
    """As updates do."""
    sites, _ = greeted(TinyGrid(a=site("lyon")))
    [(name, scores)] = sites.evaluate({"lyon": EvaluateTask(1, 9, Plan(), WEIGHTS)})
    assert (name, scores.dice) == ("lyon", 2.0)


def test_a_silent_node_is_an_error_after_the_timeout():
    """The others' answers are not held up."""
    _, hellos = greeted(TinyGrid(a=silent, b=site("porto")), timeout_s=0.05)
    assert list(hellos) == ["porto", "node-11"]
    assert str(hellos["node-11"]) == "no answer within 0 s"


def test_a_round_that_mines_is_not_hurried_by_rounds_without():
    """A first round with SAM takes many times a warm-up round, and gets the time of an unknown."""
    deadlines = Deadlines(DeadlineSettings(first_s=3600, at_least_s=1))
    sites = GridSites(TinyGrid(a=site("lyon")), deadlines)
    list(sites.greet())
    warmup, mining = (TrainTask(round_, 2, Plan(), WEIGHTS) for round_ in (1, 2))

    list(sites.train({"lyon": warmup}))
    assert deadlines.of("lyon", "mine") == 3600

    list(sites.train({"lyon": mining}))
    assert deadlines.of("lyon", "mine") < 3600


def test_an_error_reply_is_an_error_with_its_reason():
    """What the site's transport reports is passed on."""
    _, hellos = greeted(TinyGrid(a=failing))
    assert str(hellos["node-11"]) == "RunFailed: the loss became nan"


def test_a_reply_that_is_no_message_is_an_error():
    """Whatever is in it."""
    _, hellos = greeted(TinyGrid(a=babbling))
    assert "not a knowmine hello" in str(hellos["node-11"])


def test_a_second_node_of_one_name_is_refused():
    """The first keeps the name and its tasks."""
    sites = GridSites(TinyGrid(a=site("lyon", 8), b=site("lyon", 3)))
    (_, hello), (name, error) = sites.greet()
    assert name == "lyon" and str(error) == "two nodes call themselves 'lyon': rename one"
    [(_, update)] = sites.train(train_tasks("lyon"))
    assert isinstance(hello, Hello) and isinstance(update, Update)
    assert update.labelled == hello.labelled == 8


def test_replies_are_fetched_one_at_a_time():
    """The second is not pulled before the first was dealt with."""
    grid = TinyGrid(a=site("lyon"), b=site("porto"))
    sites, _ = greeted(grid)
    grid.log.clear()
    for name, _ in sites.train(train_tasks("lyon", "porto")):
        grid.log.append(f"used {name}")
    assert grid.log == ["pulled 11", "used lyon", "pulled 12", "used porto"]


def test_a_site_that_fails_does_not_stop_the_others():
    """Its error stands in place of its update."""
    calls = []

    def once(message):
        calls.append(message)
        return site("lyon")(message) if len(calls) == 1 else failing(message)

    sites, _ = greeted(TinyGrid(a=once, b=site("porto")))
    answers = dict(sites.train(train_tasks("lyon", "porto")))
    assert "loss became nan" in str(answers["lyon"]) and answers["porto"].labelled == 8


def test_the_server_app_hands_over_its_sites():
    """Flower calls the app with a grid and a context."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    met: list[str] = []
    server_app(lambda sites: met.extend(dict(sites.greet())))(TinyGrid(a=site("lyon")), context)
    assert met == ["lyon"]


def test_an_error_in_the_run_is_not_swallowed():
    """Whoever started the app learns of it."""
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})

    def run(sites):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server_app(run)(TinyGrid(a=site("lyon")), context)


def test_a_site_that_hears_the_goodbye_late_is_waited_for():
    """The other one's quick answer hurries it in a round, but not out of the run."""
    asked = itertools.count()

    def slow(message):
        return site("porto")(message) if next(asked) >= 5 else None

    grid = TinyGrid(a=site("lyon"), b=slow)
    deadlines = Deadlines(DeadlineSettings(first_s=5, at_least_s=0.01))
    sites = GridSites(grid, deadlines, quorum=0.5, wait=lambda _: time.sleep(0.01))
    sites.dismiss()
    assert grid.log == ["pulled 11", "pulled 12"]
