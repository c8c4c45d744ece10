"""A Flower grid of a few nodes in this process, and nodes that behave well and badly."""

import itertools

import numpy as np

from knowmine.shared.protocol import Hello, Mined, Scores, Update
from knowmine.shared.wire import codec

from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

WEIGHTS = {"w": np.ones(2, np.float32)}


class TinyGrid(Grid):
    """Nodes are functions from a message to a reply; one that returns None stays silent.

    They work when their reply is pulled; `log` says in which order things happened, and
    `processes` names the process that a node runs in now.
    """

    def __init__(self, **nodes):
        self._nodes = dict(enumerate(nodes.values(), start=11))
        self._waiting, self._ids, self.log = {}, itertools.count(), []
        self.processes = {}
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def set_run(self, run):
        """There is one run."""

    @property
    def run(self):
        raise NotImplementedError

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self._nodes)

    def get_nodes(self):
        return [
            NodeInfo(node_id=node, last_activated_at=self.processes.get(node, "first"))
            for node in self._nodes
        ]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            ids.append(str(next(self._ids)))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids):
        replies = []
        for message_id in list(message_ids):
            if message_id not in self._waiting:
                continue
            message = self._waiting.pop(message_id)
            node = message.metadata.dst_node_id
            reply = self._nodes[node](message)
            if reply is None:
                self._waiting[message_id] = message
            else:
                self.log.append(f"pulled {node}")
                replies.append(reply)
        return replies

    def send_and_receive(self, messages, *, timeout=None):
        raise NotImplementedError


def site(name, labelled=8):
    """A node that answers as a good site does."""

    def answer(message):
        replies: dict[str, Hello | Update | Scores] = {
            "query": Hello(name, 1, "ab" * 32, labelled, 9, 2, 4),
            "train": Update(1, WEIGHTS, labelled, 0, 0.5, 1.0, Mined()),
            "evaluate": Scores(1, 4, 2.0, 1.0, 9.0),
        }
        content = codec.pack_reply(replies[message.metadata.message_type])
        return Message(content, reply_to=message)

    return answer


def silent(message):
    """A node that is never heard of."""


def failing(message):
    return Message(Error(code=2, reason="RunFailed: the loss became nan"), reply_to=message)


def babbling(message):
    return Message(RecordDict(), reply_to=message)
