"""What no good site sends is left out of the round with its reason, and the run goes on."""

import hashlib

import httpx
import numpy as np
import pytest

from knowmine.shared.protocol import Update
from knowmine.shared.weights import manifest_of
from knowmine.shared.wire import codec
from tests.faults.caller import Caller
from tests.faults.tiny import initial

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("nan", "nan"),
        ("shape", "expected shape (1000,)"),
        ("count", "1000000000000"),
        ("old", "round"),
    ],
)
def test_an_answer_that_cannot_be_averaged(stage, fault, reason):
    """NaN, wrong shapes, 1e12 examples, an old round's answer: the other site counts alone."""
    two = stage("lyon", "oslo", run={"rounds": 2, "quorum": 0.5})
    server = two.serve()
    sites = [two.join("lyon", "--fault", fault), two.join("oslo")]
    assert [program.ended() for program in (server, *sites)] == [0, 0, 0]
    rounds = two.summary()["per_round"]
    assert (two.result(), [r["sites"] for r in rounds]) == ([2.0], [["oslo"]] * 2)
    assert reason in rounds[0]["refused"]["lyon"]


class Impostor:
    """An admitted site in the hands of the test: answers as it is told to."""

    def __init__(self, stage, site):
        self.caller = Caller(stage.home(site)).join()
        self.link, self.site = self.caller.link, site

    def until_asked(self, kind):
        """Answer honestly until a question of this kind comes; that question."""
        from tests.faults.tiny import TinyWorker

        worker = TinyWorker(self.site, 1000, 0, "", self.link._state / "diary")
        while True:
            message, run = self.question()
            if message.metadata.message_type == kind:
                return message, run
            self.link._fleet.send(named(self.honest(worker, message)), run)

    def question(self):
        head, tree = self.caller.next_task()
        return self.link._fetch(head, tree), head.metadata.run_id

    @staticmethod
    def honest(worker, message):
        kind = message.metadata.message_type
        if kind == "query":
            reply = worker.hello()
        elif kind == "train":
            reply = worker.improve(codec.unpack_train_task(message.content))
        else:
            reply = worker.evaluate(codec.unpack_evaluate_task(message.content))
        return Message(codec.pack_reply(reply), reply_to=message)


def named(reply):
    reply.metadata.__dict__["_message_id"] = reply.object_id
    return reply


def update(task, add):
    weights = {name: value + np.float32(add) for name, value in task.weights.items()}
    return Update(task.round, weights, 8, 0, 0.5, 0.0)


@pytest.fixture
def two(stage):
    """Lyon is the test's, oslo is good; one round, which both must answer."""
    soon = {"at_least_s": 5.0, "others_factor": 5.0}  # lyon leaves after its answer
    return stage("lyon", "oslo", run={"rounds": 1, "quorum": 0.5}, deadlines=soon)


def test_the_same_answer_twice(two):
    """Counted once; the second is told that nobody waits for it."""
    server, oslo = two.serve(), two.join("oslo", "--work", "1")
    lyon = Impostor(two, "lyon")
    question, run = lyon.until_asked("train")
    task = codec.unpack_train_task(question.content)
    reply = named(Message(codec.pack_reply(update(task, 1)), reply_to=question))
    lyon.link._fleet.send(reply, run)
    two.logged("update", site="lyon")
    statuses = refusals(lambda: lyon.link._fleet.send(reply, run))
    question, run = lyon.until_asked("evaluate")
    lyon.caller.close()
    assert statuses == [410]
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert two.result() == [1.0]
    assert two.summary()["per_round"][0]["sites"] == ["lyon", "oslo"]


def test_a_second_answer_beside_half_of_a_first(two):
    """The one that began first is waited for; the other is refused."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = Impostor(two, "lyon")
    question, run = lyon.until_asked("train")
    task = codec.unpack_train_task(question.content)
    first, second = (
        named(Message(codec.pack_reply(update(task, add)), reply_to=question)) for add in (1, 5)
    )
    heads_only(lyon.link, first)
    statuses = refusals(lambda: lyon.link._fleet.send(second, run))
    lyon.link._fleet.send(first, run)
    lyon.until_asked("evaluate")
    lyon.caller.close()
    assert statuses == [410]
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert two.result() == [1.0]


def test_an_answer_to_a_question_that_was_never_asked(two):
    """Refused, whatever it holds."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = Impostor(two, "lyon")
    question, run = lyon.until_asked("train")
    question.metadata.__dict__["_message_id"] = hashlib.sha256(b"never").hexdigest()
    reply = named(Message(RecordDict(), reply_to=question))
    assert refusals(lambda: lyon.link._fleet.send(reply, run)) == [410]
    lyon.caller.close()
    two.sites.revoke("lyon")
    assert [server.ended(), oslo.ended()] == [0, 0]


@pytest.mark.parametrize("content", ["nothing", "other records", "weights of another model"])
def test_an_answer_of_another_kind(two, content):
    """Left out with its reason; the run goes on."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = Impostor(two, "lyon")
    question, run = lyon.until_asked("train")
    task = codec.unpack_train_task(question.content)
    other = {"other.weight": np.zeros(3, np.float32)}
    assert manifest_of(other) != manifest_of(initial(1000))
    records = {
        "nothing": RecordDict(),
        "other records": RecordDict({"update": ConfigRecord({"round": "one"})}),
        "weights of another model": codec.pack_reply(Update(task.round, other, 8, 0, 0.5, 0.0)),
    }[content]
    lyon.link._fleet.send(named(Message(records, reply_to=question)), run)
    refusal = two.logged("refused", site="lyon")[0]["reason"]
    lyon.caller.close()
    two.sites.revoke("lyon")
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert two.summary()["per_round"][0]["sites"] == ["oslo"]
    assert refusal


def test_an_answer_of_many_parts_that_is_too_large(two):
    """Each part is one that the server would take; their sum is not, and soon ends it."""
    server, oslo = two.serve(), two.join("oslo", "--work", "0.1")
    lyon = Impostor(two, "lyon")
    question, run = lyon.until_asked("train")
    task = codec.unpack_train_task(question.content)
    many = {f"w{n}": np.full(1_000_000, n, np.float32) for n in range(30)}
    reply = named(
        Message(codec.pack_reply(Update(task.round, many, 8, 0, 0.5, 0.0)), reply_to=question)
    )
    before = server.peak_mb()
    heard = list[int]()
    hooks = lyon.link._fleet.calls._client.event_hooks["response"]
    hooks.insert(0, lambda response: heard.append(response.status_code))
    # Parts go up side by side: one is refused, and another may hear first that the answer is gone.
    with pytest.raises((httpx.HTTPStatusError, ObjectPushError)):
        lyon.link._fleet.send(reply, run)
    assert 413 in heard
    assert server.peak_mb() - before < 60
    refusal = two.logged("refused", site="lyon")[0]["reason"]
    lyon.caller.close()
    two.sites.revoke("lyon")
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert "too large" in refusal


def test_an_answer_that_is_no_message(two):
    """Objects whose digests are right and that are none: an error in place of the answer."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = Impostor(two, "lyon")
    question, run = lyon.until_asked("train")
    record = ConfigRecord({"round": 1})
    reply = named(Message(RecordDict({"update": record}), reply_to=question))
    push_under(lyon.link, reply, record, run)
    reason = two.logged("refused", site="lyon")[0]["reason"]
    lyon.caller.close()
    two.sites.revoke("lyon")
    assert [server.ended(), oslo.ended()] == [0, 0]
    assert "not a readable reply" in reason or "not a knowmine" in reason


def test_an_answer_that_names_a_part_twice(two):
    """Forty levels of two would be read for ever: it is not begun, and the round goes on."""
    server, oslo = two.serve(), two.join("oslo")
    lyon = Impostor(two, "lyon")
    question, _ = lyon.until_asked("train")
    reply = named(Message(RecordDict({"update": ConfigRecord({"round": 1})}), reply_to=question))
    request = announcement(lyon.link, reply)
    tree = request.message_object_trees[0]
    tree.children.append(tree.children[0])
    assert refusals(lambda: lyon.link._fleet.calls.PushMessages(request)) == [400]
    lyon.caller.close()
    two.sites.revoke("lyon")
    assert [server.ended(), oslo.ended()] == [0, 0]


def heads_only(link, reply):
    """Announce an answer and send none of its parts."""
    link._fleet.calls.PushMessages(announcement(link, reply))


def push_under(link, reply, thing, run):
    """Announce an answer under the digest of a thing that is no message, and send that."""
    from flwr.proto.message_pb2 import PushObjectRequest
    from flwr.supercore.inflatable.inflatable_object import get_object_tree

    request = announcement(link, reply)
    request.messages_list[0].metadata.message_id = thing.object_id
    del request.message_object_trees[:]
    request.message_object_trees.append(get_object_tree(thing))
    expected = link._fleet.calls.PushMessages(request)
    link._fleet.calls.PushObject(
        PushObjectRequest(
            node=link._fleet.node,
            run_id=run,
            object_id=thing.object_id,
            object_content=thing.deflate(),
            session_id=expected.session_id,
        )
    )


def announcement(link, reply):
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute

    with no_object_id_recompute():
        return PushMessagesRequest(
            node=link._fleet.node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[get_object_tree(reply)],
            clientapp_runtime_list=[0.0],
        )


def refusals(send):
    """The HTTP status that a request is refused with."""
    try:
        send()
    except httpx.HTTPStatusError as error:
        return [error.response.status_code]
    return []
