"""Flower's fleet calls, as one process of a site makes them.

This file and `identity.py` hold every Flower internal of the client side, and the contract test
tests/client/federation/test_link.py covers both. Nothing here opens a port, and no code is taken
from the server.
"""

import ssl
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509

from knowmine.client.federation.byte_budget import ByteBudget
from knowmine.client.federation.identity import Identity
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.federation.tls import http_client, tls_context
from knowmine.client.settings import NetworkSettings
from knowmine.shared.errors import Refused
from knowmine.shared.log import RunLog
from knowmine.shared.wire import codec
from knowmine.shared.wire.flower_objects import SMALL_BYTES, read_message

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_MAX_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    pull_objects,
    push_objects,
)
from flwr.supernode.fleet_http_client import FleetHttpClient

CONNECTION_ERRORS = (httpx.HTTPError, ssl.SSLError, ObjectPullError, ObjectPushError)
"""What a call raises if the connection fails."""


class NotJoined(Exception):
    """The server does not know this process, which has to join again."""


class FleetClient:
    """The calls of one process. They raise `CONNECTION_ERRORS`, and `NotJoined` after `join`.

    folder: holds tls.crt and tls.key. instance: the random name of this process. joined: whether
    the server accepted it. node: the site as the server numbers it, once it joined. calls: Flower's
    own client.
    Raises `UsageError` for certificates or keys that cannot be used.
    """

    def __init__(
        self, settings: NetworkSettings, keys: SiteKeys, folder: Path, log: RunLog
    ) -> None:
        self._settings, self._folder = settings, folder
        self.instance, self.joined = uuid.uuid4().hex, False
        self.node, self._server_certificate = Node(), b""
        self._identity = Identity(keys.node, self.instance, log)
        self._budget = ByteBudget()
        self.calls = FleetHttpClient(
            f"https://{settings.server}",
            timeout=settings.timeout_s,
            verify=tls_context(settings.ca, folder),
            interceptors=[self._identity],
        )
        self.connect()

    def connect(self) -> None:
        """Open new connections, with the certificate that is in the folder now."""
        self.calls._client.close()
        context = tls_context(self._settings.ca, self._folder)
        self.calls._client = http_client(self._settings, context)
        hooks = [self._keep_server_certificate, self._budget.count]
        self.calls._client.event_hooks["response"] = hooks

    def server_key(self) -> object:
        """The public key of the certificate that the server showed last, or None before that."""
        shown = self._server_certificate
        return x509.load_der_x509_certificate(shown).public_key() if shown else None

    def post(self, path: str, content: bytes) -> httpx.Response:
        """Send a signed request that is not one of Flower's."""
        address = f"https://{self._settings.server}{path}"
        request = self.calls._client.build_request("POST", address, content=content)
        self._identity.sign(request)
        return self.calls._client.send(request)

    def join(self, replaces: str) -> None:
        """Make this process the one that works for the site.

        replaces: the name of the site's process before this one; the server lets its successor in
        at once.
        """
        self._identity.replaces = replaces
        request = ActivateNodeRequest(
            public_key=self._identity.public_key, heartbeat_interval=HEARTBEAT_MAX_INTERVAL
        )
        reply = self.calls.ActivateNode(request)
        self.node, self.joined = Node(node_id=reply.node_id), True

    def beat(self) -> None:
        """Say that this process still runs."""
        self.calls.SendNodeHeartbeat(
            SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=HEARTBEAT_MAX_INTERVAL)
        )

    def next_task(self) -> tuple[Message, ObjectTree] | None:
        """Head and parts of a task that waits at the server; None if there is none for a while."""
        found = self._call(self.calls.PullMessages, PullMessagesRequest(node=self.node))
        if not found.messages_list:
            return None
        return message_from_proto(found.messages_list[0]), found.message_object_trees[0]

    def fetch(self, head: Message, tree: ObjectTree, weights_bytes: Callable[[], int]) -> Message:
        """The whole message of a task.

        weights_bytes: the size of the installed model, called only for tasks that carry weights.
        Raises `Refused` for a run that is not knowmine's, and for a message that is too large.
        """
        run_id, message_id = head.metadata.run_id, head.metadata.message_id
        request = GetRunRequest(node=self.node, run_id=run_id)
        run = run_from_proto(self._call(self.calls.GetRun, request).run)
        if run.fab_id != codec.RUN_NAME or run.fab_hash:
            raise Refused(
                f"the server runs {run.fab_id!r}; this site works only for {codec.RUN_NAME!r}"
            )
        # The limit comes from what is installed, never from what the server announces.
        most = SMALL_BYTES
        if head.metadata.message_type != "query":
            most += weights_bytes()
        with self._budget.for_task(most, self._settings.timeout_s) as budget:

            def pull(part: Any) -> Any:
                with budget.part():
                    return self._call(self.calls.PullObject, part)

            parts = pull_objects(
                [node.object_id for node in iterate_object_tree(tree)],
                make_pull_object_fn_protobuf(pull, self.node, run_id),
            )
        received = ConfirmMessageReceivedRequest(
            node=self.node, run_id=run_id, message_object_id=message_id
        )
        self._call(self.calls.ConfirmMessageReceived, received)
        return read_message(message_id, parts, most)

    def send(self, reply: Message, run_id: int) -> None:
        """Send a reply, in the parts that the server does not have yet."""
        if not reply.metadata.message_id:
            reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            head = remove_content_from_message(reply) if reply.has_content() else reply
            request = PushMessagesRequest(
                node=self.node,
                messages_list=[message_to_proto(head)],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            expected = self._call(self.calls.PushMessages, request)
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    lambda part: self._call(self.calls.PushObject, part),
                    self.node,
                    run_id,
                    expected.session_id,
                ),
                object_ids_to_push=set(expected.objects_to_push),
            )

    def close(self) -> None:
        """Leave, if that is possible, and end all connections."""
        try:
            if self.joined:
                # If this fails, the server notices the silence later.
                with suppress(httpx.HTTPError, ssl.SSLError, ValueError, Refused):
                    self.calls.DeactivateNode(DeactivateNodeRequest(node_id=self.node.node_id))
        finally:
            self.calls.close()

    def _call(self, call: Callable[[Any], Any], request: Any) -> Any:
        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise NotJoined from error
            raise

    def _keep_server_certificate(self, response: httpx.Response) -> None:
        """An httpx hook."""
        connection = response.extensions["network_stream"].get_extra_info("ssl_object")
        # The argument goes by position, because this can be OpenSSL's own object.
        self._server_certificate = connection.getpeercert(True) or b""
