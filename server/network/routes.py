"""The web app that sites reach: nine routes of Flower's Fleet API, and two of our own.

There is no Control API and no Runtime API, so no site can start a run or hand out code. A request
passes TLS 1.3 (`trust.py`), then `guard.py`, then Flower's check that the site's node key signed
the time; only then does it reach a route.
"""

import asyncio
import hashlib
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.network.guard import Guard, Sender, status_of
from knowmine.server.network.run_state import RunState
from knowmine.shared.errors import Refused
from knowmine.shared.log import RunLog
from knowmine.shared.protocol import PROTOCOL
from knowmine.shared.wire.codec import CERTIFICATE_PATH, CHECK_PATH

from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.routing import ProtobufRoute
from flwr.supercore.protobuf.translation import (
    PROTOBUF_REQUEST_DEPENDENCY,
    ProtobufTranslationMiddleware,
)
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.servicer.fleet import fleet_handlers

PREFIX, JOIN = "/v1/fleet", "/activate-node"
LONG_POLL_S = 20.0
"""A request for a task is held this long, so that a new task reaches the site at once. Proxies cut
connections that are silent for a minute."""


def fleet_app(run: RunState, allow_list: AllowList, log: RunLog, max_bytes: int) -> FastAPI:
    """The app with its middleware, outermost first, and all routes.

    max_bytes: the largest body of one request.
    """
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(
                Guard,
                members=run.members,
                presence=run.presence,
                before_joining=frozenset((PREFIX + JOIN, CHECK_PATH)),
                key_header=FLEET_HTTP_PUBLIC_KEY_HEADER,
                max_bytes=max_bytes,
            ),
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    app.state.linkstate_factory = run.factory
    app.include_router(_FleetRoutes(run, log).router())
    app.post(CERTIFICATE_PATH)(_CertificateRoute(allow_list, log).renew)
    app.post(CHECK_PATH)(_check)
    return app


def _sender(request: Request) -> Sender:
    sender: Sender = request.state.sender
    return sender


From = Annotated[Sender, Depends(_sender)]
Body: Any = PROTOBUF_REQUEST_DEPENDENCY


async def _check(request: Request, sender: From) -> dict[str, Any]:
    """Describe this server to a site that wants to know whether it may join."""
    received = len(await request.body())
    return {
        "site": sender.site,
        "version": version("knowmine"),
        "protocol": PROTOCOL,
        "received": received,
    }


class _CertificateRoute:
    """Where a site sends its next certificate, over a connection that uses the present one."""

    def __init__(self, allow_list: AllowList, log: RunLog) -> None:
        self._allow_list, self._log = allow_list, log

    async def renew(self, request: Request, sender: From) -> dict[str, str]:
        """Pin the certificate in the body."""
        pem = (await request.body()).decode("ascii", "replace")
        try:
            in_use = request.state.certificate
            renewed = await run_in_threadpool(
                self._allow_list.renew, sender.site, pem, in_use=in_use
            )
        except Refused as error:
            raise HTTPException(403, str(error)) from error
        self._log.event("renewed", site=sender.site, until=renewed.expires())
        return {"until": renewed.expires().isoformat()}


class _FleetRoutes:
    """The nine routes of the Fleet API. Flower's handlers do the work; this adds our limits."""

    def __init__(self, run: RunState, log: RunLog) -> None:
        self._run, self._link, self._log = run, run.link, log
        self._polls: dict[int, object] = {}

    def router(self) -> APIRouter:
        """All of them, by path."""
        router = APIRouter(prefix=PREFIX, route_class=ProtobufRoute)
        routes: dict[str, Any] = {
            JOIN: self._join,
            "/deactivate-node": self._leave,
            "/send-node-heartbeat": self._heartbeat,
            "/pull-messages": self._pull_messages,
            "/push-messages": self._push_messages,
            "/push-object": self._push_object,
            "/pull-object": self._pull_object,
            "/confirm-message-received": self._confirm,
            "/get-run": self._get_run,
        }
        for path, handler in routes.items():
            router.post(path)(handler)
        return router

    def _join(
        self, request: Annotated[fleet_pb2.ActivateNodeRequest, Body], sender: From
    ) -> fleet_pb2.ActivateNodeResponse:
        self._run.follow_allow_list()
        try:
            self._run.presence.check(sender.site, sender.instance, sender.replaces)
        except Refused as error:
            raise HTTPException(status_of(error), str(error)) from error
        # Flower refuses a node that is online by Flower's clock. Here `Presence` decides.
        node = self._run.node_of(sender.site)
        if node is None:
            raise HTTPException(403, f"site {sender.site!r} was revoked")
        self._link.deactivate_node(node)
        self._polls.pop(node, None)
        reply = fleet_handlers.activate_node(request, self._link)
        self._run.presence.arrive(sender.site, sender.instance, sender.version)
        self._log.event("joined", site=sender.site, version=sender.version)
        self._run.news.set()
        return reply

    def _leave(
        self, request: Annotated[fleet_pb2.DeactivateNodeRequest, Body], sender: From
    ) -> fleet_pb2.DeactivateNodeResponse:
        self._run.presence.leave(sender.site, sender.instance)
        self._log.event("left", site=sender.site)
        self._run.news.set()
        return fleet_pb2.DeactivateNodeResponse()

    def _heartbeat(
        self, request: Annotated[heartbeat_pb2.SendNodeHeartbeatRequest, Body]
    ) -> heartbeat_pb2.SendNodeHeartbeatResponse:
        return fleet_handlers.send_node_heartbeat(request, self._link)

    async def _pull_messages(
        self, request: Annotated[fleet_pb2.PullMessagesRequest, Body]
    ) -> fleet_pb2.PullMessagesResponse:
        """Wait for a task, up to `LONG_POLL_S`."""
        clock = asyncio.get_running_loop().time
        until = clock() + LONG_POLL_S
        node = request.node.node_id
        # The server learns late that a connection is broken. A request that waits on one would
        # take a task and lose it. So a site's newest request ends its earlier ones.
        newest = self._polls[node] = object()
        while True:
            rung = self._run.doorbell.next()
            if self._polls.get(node) is not newest:
                return fleet_pb2.PullMessagesResponse()
            found = await run_in_threadpool(
                fleet_handlers.pull_messages, request, self._link, self._link.object_store
            )
            left = until - clock()
            if found.messages_list or left <= 0 or self._run.closing.is_set():
                return found
            try:
                await asyncio.wait_for(rung.wait(), left)
            except TimeoutError:
                return found

    def _push_messages(
        self, request: Annotated[fleet_pb2.PushMessagesRequest, Body]
    ) -> fleet_pb2.PushMessagesResponse:
        """Take the announcement of a reply: its head and the names of its parts."""
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise HTTPException(400, "send one reply at a time")
        head, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        names = [part.object_id for part in iterate_object_tree(tree)]
        # If a part could be named twice, forty levels of two would expand to 2**40 parts.
        if tree.object_id != head.message_id or len(names) != len(set(names)):
            raise HTTPException(400, "name each part of a reply once, the reply itself at the root")
        shape = hashlib.sha256(tree.SerializeToString(deterministic=True)).hexdigest()
        task, node = head.reply_to_message_id, request.node.node_id
        try:
            self._run.uploads.announce(task, node, head.message_id, shape)
        except Refused as error:
            raise HTTPException(410, str(error)) from error
        reply = fleet_handlers.push_messages(request, self._link)
        self._run.uploads.expect_parts(task, reply.objects_to_push)
        self._run.news.set()
        return reply

    def _push_object(
        self, request: Annotated[message_pb2.PushObjectRequest, Body]
    ) -> message_pb2.PushObjectResponse:
        """Take one part of a reply."""
        try:
            size = len(request.object_content)
            self._run.uploads.count_bytes(request.node.node_id, request.object_id, size)
        except Refused as error:
            self._run.news.set()
            raise HTTPException(413, str(error)) from error
        reply = fleet_handlers.push_object(request, self._link)
        if reply.stored and self._run.uploads.part_arrived(request.object_id):
            self._run.news.set()
        return reply

    def _pull_object(
        self, request: Annotated[message_pb2.PullObjectRequest, Body]
    ) -> message_pb2.PullObjectResponse:
        return fleet_handlers.pull_object(request, self._link)

    def _confirm(
        self, request: Annotated[message_pb2.ConfirmMessageReceivedRequest, Body]
    ) -> message_pb2.ConfirmMessageReceivedResponse:
        store = self._link.object_store
        return fleet_handlers.confirm_message_received(request, self._link, store)

    def _get_run(self, request: Annotated[run_pb2.GetRunRequest, Body]) -> run_pb2.GetRunResponse:
        return fleet_handlers.get_run(request, self._link)
