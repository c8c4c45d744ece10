"""Carry Flower's messages between a server and sites in one process, without a network."""

import itertools
from collections.abc import Callable, Iterable, Mapping

from knowmine.shared.errors import CannotWrite, KnowmineError, UsageError
from knowmine.shared.wire.flower_objects import through_the_wire

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID = 1


def context_of(node: int) -> Context:
    """The Flower context of the server or of a node, with no configuration."""
    return Context(run_id=RUN_ID, node_id=node, node_config={}, state=RecordDict(), run_config={})


class LocalGrid(Grid):
    """A Flower grid whose nodes are ClientApps in this process.

    Messages are serialised as on the wire, so that server and sites share no memory. A node works
    when its reply is pulled. The server pulls one reply at a time, so at most one update is in
    memory. As in Flower, an exception in a node becomes an error reply; Ctrl-C and a full disk end
    the run.

    started: called with the node's number before it works.
    """

    def __init__(self, apps: Mapping[int, ClientApp], started: Callable[[int], None]) -> None:
        self._apps, self._started = dict(apps), started
        self._contexts = {node: context_of(node) for node in apps}
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)
        # Message() reads the identity of its run from the process, as Flower's own grids set it.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = RUN_ID

    def set_run(self, run: Run) -> None:
        """Do nothing: there is only one run."""

    @property
    def run(self) -> Run:
        """Raise `UsageError`: Flower keeps no record of this run."""
        raise UsageError("a local grid keeps no Flower run; read the run's journal instead")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node. `Grid` requires this method although Flower deprecates it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes; none ever leaves."""
        return list(self._apps)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """All nodes; a site's name is in its `Hello`."""
        return [NodeInfo(node_id=node) for node in self._apps]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Let the nodes of these messages work, and return their replies."""
        return [self._work(self._waiting.pop(i)) for i in message_ids if i in self._waiting]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push the messages, then pull all replies."""
        return self.pull_messages(self.push_messages(messages))

    def _work(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self._started(node)
        arrived = through_the_wire(message)
        try:
            reply = self._apps[node](message=arrived, context=self._contexts[node])
        except CannotWrite:
            raise  # all sites share this machine's disk: stop, and resume when there is room
        except OSError as error:
            raise CannotWrite(
                f"cannot write {error.filename or 'a file'} ({error.strerror}): the finished "
                "rounds are safe; make room and go on with --resume"
            ) from error
        except KnowmineError as error:
            reply = Message(Error(code=2, reason=str(error)), reply_to=arrived)
        except Exception as error:  # noqa: BLE001 - as in Flower, a bug in a node is an error reply
            reply = Message(
                Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=arrived
            )
        reply.metadata.__dict__["_message_id"] = f"reply-{message.metadata.message_id}"
        return through_the_wire(reply)
