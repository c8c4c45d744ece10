"""No transport reaches the wire past the site's door."""

import ast
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from knowmine.client.audit.log import Chain
from knowmine.client.egress.policy import Policy
from knowmine.client.egress.porter import Porter
from knowmine.client.federation.app import client_app
from knowmine.deploy.simulation.grid import LocalGrid
from knowmine.shared.protocol import PROTOCOL, EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.settings import Plan
from knowmine.shared.weights import digest_of_manifest, manifest_of
from knowmine.shared.wire import codec

from flwr.app import Message

ROOT = Path(__file__).parents[3]
SENT = {"a.weight": np.ones(4, np.float32)}
KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)


class Lying:
    """A worker that answers what it was told to, whatever was asked."""

    manifest = manifest_of(SENT)

    def __init__(self, update=None, scores=None):
        self.update = update or Update(1, {"a.weight": np.full(4, 1.5, np.float32)}, 8, 0, 0.5, 2.0)
        self.scores = scores or Scores(1, 4, 3.0, 2.0, 9.0)
        self.worked = 0

    def hello(self):
        return Hello("lyon", PROTOCOL, digest_of_manifest(self.manifest), 8, 0, 0, 4)

    def improve(self, task):
        self.worked += 1
        return self.update

    def evaluate(self, task):
        return self.scores


def ask(worker, kind, porter=None, form="none"):
    """What arrives when the site's app is asked over the wire."""
    app = client_app(lambda _: worker, porter_of=porter and (lambda _: porter))
    grid = LocalGrid({1: app}, lambda _: None)
    plan = Plan.model_validate({"transport": {"update": form}})
    task = {"train": TrainTask, "evaluate": EvaluateTask}[kind](1, 3, plan, SENT)
    content = codec.pack_tasks({"lyon": task})["lyon"]
    (reply,) = grid.send_and_receive([Message(content, 1, kind)])
    return reply


def test_an_honest_answer_arrives():
    """By the door."""
    assert codec.unpack_update(ask(Lying(), "train").content).labelled == 8


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(Update(1, {"pixels": np.zeros(9, np.float32)}, 8, 0, 0.5, 2.0), id="tensor"),
        pytest.param(
            Update(1, {"a.weight": np.full(4, 255, np.float32)}, 8, 0, 0.5, 2.0), id="pixels"
        ),
        pytest.param(Update(2, SENT, 8, 0, 0.5, 2.0), id="round"),
        pytest.param(Update(1, SENT, 8, 0, float("nan"), 2.0), id="nan"),
    ],
)
def test_an_answer_that_may_not_leave_never_arrives(update):
    """An error does, without a word of it."""
    reply = ask(Lying(update), "train")
    assert reply.has_error() and not reply.has_content()


def test_the_sites_policy_holds_for_every_transport(tmp_path):
    """Its porter stands in the app, and costs no work where the answer is no."""
    worker = Lying()
    with Chain.open(tmp_path / "audit" / "receipts.jsonl", KEY) as chain:
        reply = ask(worker, "train", Porter(Policy(rounds=0), chain))
        assert [r.kind for r in chain.receipts] == ["opened", "train", "refused"]
    assert reply.has_error() and worker.worked == 0


def test_what_is_sent_as_a_change_is_what_was_checked():
    """Rounded, it still passes the door before it leaves."""
    task = TrainTask(1, 3, Plan.model_validate({"transport": {"update": "int8"}}), SENT)
    seen = codec.unpack_update(ask(Lying(), "train", form="int8").content, task)
    assert np.allclose(seen.weights["a.weight"], 1.5, atol=0.01)
    assert ask(Lying(), "train", Porter(Policy(max_update_norm=0.5)), form="int8").has_error()


def test_a_change_from_few_cases_never_leaves():
    """The weights that came go back in its place."""
    task = TrainTask(1, 3, Plan.model_validate({"transport": {"update": "int8"}}), SENT)
    reply = ask(Lying(), "train", Porter(Policy(min_cases=9)), form="int8")
    seen = codec.unpack_update(reply.content, task)
    assert np.array_equal(seen.weights["a.weight"], SENT["a.weight"]) and seen.labelled == 0


def test_small_test_sets_tell_nothing():
    """Four test images are fewer than five."""
    reply = ask(Lying(), "evaluate", Porter(Policy(min_cases=5)))
    assert codec.unpack_scores(reply.content) == Scores(1, 0, 0.0, 0.0, 0.0)


def calls_of(name):
    """The source files that call something of that name."""
    files = [p for side in ("client", "deploy") for p in (ROOT / side).rglob("*.py")]
    return {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    }


def test_there_is_one_app_and_it_packs_what_the_porter_gave():
    """Simulation, `flwr run` and courier all use it: no other file makes or packs an answer."""
    assert calls_of("let_out") == {"client/federation/app.py"}
    # what_leaves packs what it lists, and sends nothing.
    assert calls_of("pack_reply") == {"client/federation/app.py", "client/check/disclosure.py"}
    # Flower imports an app by name before there is a site: that one hands all on to client_app's.
    assert calls_of("ClientApp") == {"client/federation/app.py", "deploy/flower/apps.py"}
    assert calls_of("client_app") == {
        "client/federation/service.py",
        "deploy/simulation/simulate.py",
        "deploy/flower/apps.py",
    }
