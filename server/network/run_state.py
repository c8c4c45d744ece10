"""One run's state in memory: Flower's link state, a node for each admitted site, the open tasks.

Nothing that sites send is on disk. After a restart the server knows nothing of earlier messages:
the sites join again and get the tasks of the current round again.
"""

import threading
from typing import Any

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.network.guard import Members
from knowmine.server.network.mailbox import Doorbell, Uploads
from knowmine.server.network.presence import Presence
from knowmine.shared.errors import RunFailed
from knowmine.shared.wire.codec import RUN_NAME

from flwr.common.constant import (
    HEARTBEAT_MAX_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SubStatus,
)
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager

TASK_BEAT_S = 5.0
"""Seconds between two heartbeats of the run's own task; Flower ends a run without them."""


class RunState:
    """What the listener and the grid share, safe to use from many threads.

    link: Flower's link state; factory: gives it to Flower's middleware. members: whose key is
    whose. presence: which sites are here. uploads: the replies under way. doorbell: wakes the
    sites that wait for a task. news: set when a site joined, left or replied. closing: set when
    the run ends. lapsed: set if Flower ended the run by itself.
    """

    def __init__(self, allow_list: AllowList, silent_s: float) -> None:
        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        self.factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects)
        self.link = self.factory.state()
        self.members = Members(allow_list, public_key_to_bytes)
        self.presence = Presence(silent_s)
        self.uploads, self.doorbell = Uploads(), Doorbell()
        self.news, self.closing, self.lapsed = (threading.Event() for _ in range(3))
        self._changing = threading.Lock()
        self._nodes: dict[str, int] = {}
        self._revoked: set[int] = set()
        self._task_id: int | None = None

    def follow_allow_list(self) -> None:
        """Give every admitted site a node, and remove the nodes of all others."""
        admitted = self.members.node_keys()
        with self._changing:
            for site, key in admitted.items():
                if self.link.get_node_id_by_public_key(key) == self._nodes.get(site, -1):
                    continue
                self._remove(site)
                self._nodes[site] = self.link.create_node(
                    NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_MAX_INTERVAL, name=site
                )
            for site in set(self._nodes) - set(admitted):
                self._remove(site)

    def node_of(self, site: str) -> int | None:
        """Flower's number for a site, or None if it has no node."""
        return self._nodes.get(site)

    def is_revoked(self, node: int | None) -> bool:
        """Whether this node was removed from the run."""
        return node in self._revoked

    def open_run(self) -> tuple[Any, Any]:
        """Open Flower's run and keep it alive; return its task and its description."""
        number = self.link.create_run(
            RUN_NAME, "1", None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (run,) = self.link.get_run_info(run_ids=[number])
        task_id = run.primary_task_id
        token = None if task_id is None else self.link.claim_task(task_id)
        if task_id is None or token is None or not self.link.activate_task(task_id):
            raise RunFailed("Flower did not open a run; is another version of flwr installed?")
        # Message() reads the identity of its run from the process.
        self._task_id = TaskIdentity.task_id = task_id
        TaskIdentity.run_id = number
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        threading.Thread(target=self._beat, args=(task_id,), name="beat", daemon=True).start()
        return self.link.get_task_by_token(token), run

    def close(self) -> None:
        """End the run and wake the sites that wait; doing it twice is harmless."""
        if self._task_id is not None and not self.closing.is_set():
            self.link.finish_task(self._task_id, SubStatus.COMPLETED, "")
        self.closing.set()
        self.doorbell.ring()

    def _remove(self, site: str) -> None:
        if (node := self._nodes.pop(site, None)) is not None:
            self.link.delete_node(NOOP_FLWR_AID, node)
            self._revoked.add(node)
            self.presence.forget(site)

    def _beat(self, task_id: int) -> None:
        while not self.closing.wait(TASK_BEAT_S):
            if not self.link.acknowledge_task_heartbeat(task_id):
                self.lapsed.set()
                self.news.set()
                return
