"""Flower's Grid over the sites that are connected: tasks out and replies in, without HTTP between."""

from collections.abc import Iterable
from typing import Any

from knowmine.server.network.mailbox import Uploads
from knowmine.server.network.memory import give_back
from knowmine.server.network.run_state import RunState
from knowmine.shared.errors import RunFailed
from knowmine.shared.wire.flower_objects import SMALL_BYTES, read_message
from knowmine.shared.wire.quiet_flower import environment_kept

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.superlink.grid import HttpGrid

with environment_kept():  # one of its imports sets an environment variable
    from flwr.superlink.servicer.runtime import runtime_handlers

BAD_REPLY = 2
"""Flower's code for an error in a site's app."""


class FleetGrid(HttpGrid):
    """The grid of one run; `task` and `run` come from `RunState.open_run`."""

    def __init__(self, state: RunState, task: Any, run: Any) -> None:
        super().__init__(token="in-process")  # noqa: S106 - Flower wants one; nothing reads it
        self._state = state
        self._client = _InProcessRuntime(state.link, task, state.uploads)  # type: ignore[assignment]
        self.set_run(run)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The sites that are here, by name; `last_activated_at` changes with each process."""
        self._state.follow_allow_list()
        nodes = []
        for site, arrival in self._state.presence.here().items():
            if (node := self._state.node_of(site)) is not None:
                since = arrival.since
                nodes.append(NodeInfo(node_id=node, name=site, last_activated_at=since))
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put tasks into the sites' mailboxes and wake the sites."""
        messages = list(messages)
        sizes = [_size_of(message.content) for message in messages if message.has_content()]
        # A reply may be as large as its task: the same tensors, and a few numbers.
        self._state.uploads.max_reply_bytes = max(sizes, default=0) + SMALL_BYTES
        pushed = super().push_messages(messages)
        self._state.doorbell.ring()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these tasks that are whole; a partial reply waits for the rest."""
        uploads, tasks = self._state.uploads, list(message_ids)
        lost = {task: "the site was revoked" for task in tasks if self._is_revoked(task)}
        lost |= {task: "the reply is too large" for task in tasks if uploads.is_too_large(task)}
        for task in lost:
            self.abandon(task)
        if lost:
            return [_unreadable(task, reason) for task, reason in lost.items()]
        whole = [task for task in tasks if uploads.is_whole(task)]
        if not whole:
            return []
        try:
            return [reply for task in whole for reply in self._read(task)]
        except Exception as error:  # noqa: BLE001 - a site can put anything into a reply
            reason = f"not a readable reply: {type(error).__name__}"
            return [_unreadable(task, reason) for task in whole]
        finally:
            for task in whole:
                self.abandon(task)
            give_back()

    def abandon(self, message_id: str) -> None:
        """Free what a task and its reply hold; nothing waits for the reply any more."""
        reply = self._state.uploads.forget(message_id)
        self._state.link.delete_messages({message_id})
        for name in filter(None, (message_id, reply)):
            self._state.link.object_store.delete(name)

    def wait(self, seconds: float) -> None:
        """Return when a site joined, left or replied, or after `seconds`.

        Raises `RunFailed` if the process was suspended for so long that Flower ended its run.
        """
        if self._state.lapsed.is_set():
            raise RunFailed(
                "this machine was suspended for a minute or longer, and Flower gave up the run's "
                "messages; the finished rounds are safe: start the server again and it goes on"
            )
        if self._state.news.wait(seconds):
            self._state.news.clear()

    def _is_revoked(self, task: str) -> bool:
        return self._state.is_revoked(self._state.uploads.node_of(task))

    def _read(self, task: str) -> list[Message]:
        """Read a reply from the object store: Flower's Runtime API would copy each byte twice."""
        request = PullAppMessagesRequest(message_ids=[task])
        found = self._runtime_client.PullMessages(request)
        store, replies = self._state.link.object_store, []
        most = self._state.uploads.most_bytes_of(task)
        for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            names = (node.object_id for node in iterate_object_tree(tree))
            parts = {name: store.get(name) or b"" for name in names}
            store.delete(head.metadata.message_id)
            replies.append(read_message(head.metadata.message_id, parts, most))
        return replies


def _size_of(content: RecordDict) -> int:
    return sum(record.count_bytes() for record in content.values())


def _unreadable(task: str, reason: str) -> Message:
    """An error message in place of a reply that cannot be read; only its task is known."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=task,
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata=metadata, error=Error(code=BAD_REPLY, reason=reason))


class _InProcessRuntime:
    """Flower's Runtime API for its own server process, called directly."""

    def __init__(self, link: Any, task: Any, uploads: Uploads) -> None:
        def push_messages(request: Any, state: Any, task: Any) -> Any:
            for message in request.messages_list:  # before a site can see it and reply
                uploads.expect(message.metadata.message_id, message.metadata.dst_node_id)
            return runtime_handlers.push_messages(request, state, task)

        for name, handler in (
            ("PushMessages", push_messages),
            ("PullMessages", runtime_handlers.pull_messages),
            ("PushObject", runtime_handlers.push_object),
        ):
            setattr(self, name, lambda request, call=handler: call(request, link, task))

    def close(self) -> None:
        """There is no connection."""
