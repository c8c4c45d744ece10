"""The closed federation: Flower's Fleet API for admitted sites, and nothing else of its server.

All Flower internals of the server side are in this file. A site may ask the nine questions of
`_routes`, renew its certificate and ask whether it is welcome: there is no Control API, no
Runtime API, no way to start a run or to hand out code. Before a request comes here it has passed
TLS 1.3 (`trust.py`) and `guard.py`; Flower then checks that its node key signed the time of day.

What sites send is kept in memory only. A server that is started again knows nothing of the old
one's messages: the sites join again, and are asked again for the round under way.
"""

import asyncio
import hashlib
import logging
import socket
import threading
from collections.abc import Iterable
from importlib.metadata import version
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.network.guard import Guard, Members, SeesCertificate, Speaker, status_of
from knowmine.server.network.mailbox import Doorbell, Uploads
from knowmine.server.network.memory import give_back, keep_small
from knowmine.server.network.presence import Presence
from knowmine.server.network.trust import Trust
from knowmine.server.settings import ListenSettings
from knowmine.shared.errors import Refused, RunFailed, UsageError
from knowmine.shared.log import RunLog
from knowmine.shared.protocol import PROTOCOL
from knowmine.shared.wire.codec import CERTIFICATE_PATH, CHECK_PATH, RUN_NAME, room_for_decoder
from knowmine.shared.wire.flower_objects import SMALL_BYTES, read_message

# flower_objects has told Flower to phone nobody; only now may Flower be imported.
from flwr.app import Error, Message, Metadata, RecordDict  # isort: skip
from flwr.app.message import make_message  # isort: skip
from flwr.common.constant import (  # isort: skip
    HEARTBEAT_MAX_INTERVAL,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    SubStatus,
)
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2  # isort: skip
from flwr.proto.node_pb2 import NodeInfo  # isort: skip
from flwr.proto.runtime_pb2 import PullAppMessagesRequest  # isort: skip
from flwr.server.superlink.linkstate import LinkStateFactory  # isort: skip
from flwr.supercore.constant import (  # isort: skip
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    SYSTEM_MESSAGE_TYPE,
    TaskType,
)
from flwr.supercore.error import http_error_translator  # isort: skip
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree  # isort: skip
from flwr.supercore.object_store import ObjectStoreFactory  # isort: skip
from flwr.supercore.primitives.asymmetric import public_key_to_bytes  # isort: skip
from flwr.supercore.protobuf.routing import ProtobufRoute  # isort: skip
from flwr.supercore.protobuf.translation import (  # isort: skip
    PROTOBUF_REQUEST_DEPENDENCY,
    ProtobufTranslationMiddleware,
)
from flwr.supercore.task_identity import TaskIdentity  # isort: skip
from flwr.superlink.federation import NoOpFederationManager  # isort: skip
from flwr.superlink.grid import HttpGrid  # isort: skip
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware  # isort: skip
from flwr.superlink.servicer.fleet import fleet_handlers  # isort: skip
from flwr.superlink.servicer.runtime import runtime_handlers  # isort: skip

LONG_POLL_S = 20.0
"""A site's question for work is held this long, so that work reaches it at once; proxies cut
connections that are silent for a minute."""
TASK_BEAT_S = 5.0
BAD_ANSWER = 2
"""Flower's code for an error in a site's app."""


def _speaker(request: Request) -> Speaker:
    speaker: Speaker = request.state.speaker
    return speaker


From = Annotated[Speaker, Depends(_speaker)]


async def _check(request: Request, speaker: From) -> dict[str, Any]:
    """Say who we are to a site that wants to know whether it is welcome."""
    received = len(await request.body())
    return {
        "site": speaker.site,
        "version": version("knowmine"),
        "protocol": PROTOCOL,
        "received": received,
    }


class Fleet:
    """Listens for the sites on a thread of its own, from `start` to `close`.

    presence: which sites are here. revoked: nodes that were taken away. port: where it listens.
    """

    def __init__(
        self, listen: ListenSettings, trust: Trust, allow_list: AllowList, log: RunLog
    ) -> None:
        """Take the address; raise `UsageError` where that is impossible."""
        self._log = log
        self._allow_list = allow_list
        self.presence = Presence(listen.silent_s)
        self._members = Members(allow_list, public_key_to_bytes)
        objects = ObjectStoreFactory(FLWR_IN_MEMORY_DB_NAME)
        factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), objects)
        self.state = factory.state()
        self.uploads, self._doorbell, self.news = Uploads(), Doorbell(), threading.Event()
        self._nodes: dict[str, int] = {}
        self._polls: dict[int, object] = {}
        self.revoked: set[int] = set()
        self._changing = threading.Lock()
        self._over, self.lapsed = threading.Event(), threading.Event()
        self._task_id: int | None = None
        app = FastAPI(
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            middleware=[
                Middleware(
                    Guard,
                    members=self._members,
                    presence=self.presence,
                    before_joining=frozenset(("/v1/fleet/activate-node", CHECK_PATH)),
                    key_header=FLEET_HTTP_PUBLIC_KEY_HEADER,
                    max_bytes=int(listen.max_body_mb * 1e6),
                ),
                Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
                Middleware(ProtobufTranslationMiddleware),
                Middleware(NodeAuthMiddleware),
            ],
        )
        app.state.linkstate_factory = factory
        app.include_router(self._routes())
        app.post(CERTIFICATE_PATH)(self._renew)
        app.post(CHECK_PATH)(_check)
        self._socket = _bound(listen.host, listen.port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=SeesCertificate,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=75,
        )
        config.load()
        config.ssl = trust.context
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="fleet", daemon=True)
        # Flower writes addresses and keys at levels below this.
        logging.getLogger("flwr").setLevel(logging.CRITICAL)

    def start(self) -> "FleetGrid":
        """Listen and open a run; raise `RunFailed` where the listener does not come up."""
        keep_small()
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                raise RunFailed("the listener did not start; see the lines above")
        self._follow_allow_list()
        return FleetGrid(self, *self._open_run())

    def close(self) -> None:
        """End the run and stop listening; doing it twice is harmless."""
        if self._task_id is not None and not self._over.is_set():
            self.state.finish_task(self._task_id, SubStatus.COMPLETED, "")
        self._over.set()
        self._server.should_exit = True
        self._doorbell.ring()
        if self._thread.is_alive():
            self._thread.join(10)
        self._socket.close()

    def ring(self) -> None:
        """Wake the sites that wait for work."""
        self._doorbell.ring()

    def node_of(self, site: str) -> int | None:
        """Flower's number of a site."""
        return self._nodes.get(site)

    def _follow_allow_list(self) -> None:
        """Give every welcome site a node, and take it from those that are not."""
        welcome = self._members.node_keys()
        with self._changing:
            for site, key in welcome.items():
                if self.state.get_node_id_by_public_key(key) == self._nodes.get(site, -1):
                    continue
                self._remove(site)
                self._nodes[site] = self.state.create_node(
                    NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, HEARTBEAT_MAX_INTERVAL, name=site
                )
            for site in set(self._nodes) - set(welcome):
                self._remove(site)

    async def _renew(self, request: Request, speaker: From) -> dict[str, str]:
        """A site sends its next certificate over the connection of the present one."""
        pem = (await request.body()).decode("ascii", "replace")
        try:
            in_use = request.state.certificate
            renewed = await run_in_threadpool(
                self._allow_list.renew, speaker.site, pem, in_use=in_use
            )
        except Refused as error:
            raise HTTPException(403, str(error)) from error
        self._log.event("renewed", site=speaker.site, until=renewed.expires())
        return {"until": renewed.expires().isoformat()}

    def _remove(self, site: str) -> None:
        if (node := self._nodes.pop(site, None)) is not None:
            self.state.delete_node(NOOP_FLWR_AID, node)
            self.revoked.add(node)
            self.presence.forget(site)

    def _open_run(self) -> tuple[Any, Any]:
        number = self.state.create_run(
            RUN_NAME, "1", None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (run,) = self.state.get_run_info(run_ids=[number])
        task = run.primary_task_id
        token = None if task is None else self.state.claim_task(task)
        if task is None or token is None or not self.state.activate_task(task):
            raise RunFailed("Flower did not open a run; is another version of flwr installed?")
        # Message() reads the identity of its run from the process.
        self._task_id = TaskIdentity.task_id = task
        TaskIdentity.run_id = number
        TaskIdentity.node_id = SUPERLINK_NODE_ID
        threading.Thread(target=self._beat, args=(task,), name="beat", daemon=True).start()
        return self.state.get_task_by_token(token), run

    def _beat(self, task: int) -> None:
        while not self._over.wait(TASK_BEAT_S):
            if not self.state.acknowledge_task_heartbeat(task):
                self.lapsed.set()
                self.news.set()
                return

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def _routes(self) -> APIRouter:
        """The nine questions of Flower's that a site may ask."""
        state, uploads, bell = self.state, self.uploads, self._doorbell
        router = APIRouter(prefix="/v1/fleet", route_class=ProtobufRoute)
        body: Any = PROTOBUF_REQUEST_DEPENDENCY

        @router.post("/activate-node")
        def join(
            request: Annotated[fleet_pb2.ActivateNodeRequest, body], speaker: From
        ) -> fleet_pb2.ActivateNodeResponse:
            self._follow_allow_list()
            try:
                self.presence.check(speaker.site, speaker.instance, speaker.replaces)
            except Refused as error:
                raise HTTPException(status_of(error), str(error)) from error
            # Flower lets nobody join who is there already by its own clock; here Presence decides.
            state.deactivate_node(self._nodes[speaker.site])
            self._polls.pop(self._nodes[speaker.site], None)
            reply = fleet_handlers.activate_node(request, state)
            self.presence.arrive(speaker.site, speaker.instance, speaker.version)
            self._log.event("joined", site=speaker.site, version=speaker.version)
            self.news.set()
            return reply

        @router.post("/deactivate-node")
        def leave(
            request: Annotated[fleet_pb2.DeactivateNodeRequest, body], speaker: From
        ) -> fleet_pb2.DeactivateNodeResponse:
            self.presence.leave(speaker.site, speaker.instance)
            self._log.event("left", site=speaker.site)
            self.news.set()
            return fleet_pb2.DeactivateNodeResponse()

        @router.post("/send-node-heartbeat")
        def heartbeat(
            request: Annotated[heartbeat_pb2.SendNodeHeartbeatRequest, body],
        ) -> heartbeat_pb2.SendNodeHeartbeatResponse:
            return fleet_handlers.send_node_heartbeat(request, state)

        @router.post("/pull-messages")
        async def pull_messages(
            request: Annotated[fleet_pb2.PullMessagesRequest, body],
        ) -> fleet_pb2.PullMessagesResponse:
            clock = asyncio.get_running_loop().time
            until = clock() + LONG_POLL_S
            node = request.node.node_id
            # Of a broken connection the server learns late. What waits on it would take a
            # message and lose it, so a site's newest question ends those before.
            newest = self._polls[node] = object()
            while True:
                rung = bell.next()
                if self._polls.get(node) is not newest:
                    return fleet_pb2.PullMessagesResponse()
                found = await run_in_threadpool(
                    fleet_handlers.pull_messages, request, state, state.object_store
                )
                left = until - clock()
                if found.messages_list or left <= 0 or self._server.should_exit:
                    return found
                try:
                    await asyncio.wait_for(rung.wait(), left)
                except TimeoutError:
                    return found

        @router.post("/push-messages")
        def push_messages(
            request: Annotated[fleet_pb2.PushMessagesRequest, body],
        ) -> fleet_pb2.PushMessagesResponse:
            if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
                raise HTTPException(400, "send one answer at a time")
            head, tree = request.messages_list[0].metadata, request.message_object_trees[0]
            names = [part.object_id for part in iterate_object_tree(tree)]
            # One that is named twice could stand for two to the fortieth when the tree is read.
            if tree.object_id != head.message_id or len(names) != len(set(names)):
                raise HTTPException(400, "the parts of an answer are named once each, it last")
            made_up = hashlib.sha256(tree.SerializeToString(deterministic=True)).hexdigest()
            question, node = head.reply_to_message_id, request.node.node_id
            try:
                uploads.begin(question, node, head.message_id, made_up)
            except Refused as error:
                raise HTTPException(410, str(error)) from error
            reply = fleet_handlers.push_messages(request, state)
            uploads.began(question, reply.objects_to_push)
            self.news.set()
            return reply

        @router.post("/push-object")
        def push_object(
            request: Annotated[message_pb2.PushObjectRequest, body],
        ) -> message_pb2.PushObjectResponse:
            try:
                size = len(request.object_content)
                uploads.weigh(request.node.node_id, request.object_id, size)
            except Refused as error:
                self.news.set()
                raise HTTPException(413, str(error)) from error
            reply = fleet_handlers.push_object(request, state)
            if reply.stored and uploads.arrived(request.object_id):
                self.news.set()
            return reply

        @router.post("/pull-object")
        def pull_object(
            request: Annotated[message_pb2.PullObjectRequest, body],
        ) -> message_pb2.PullObjectResponse:
            return fleet_handlers.pull_object(request, state)

        @router.post("/confirm-message-received")
        def confirm(
            request: Annotated[message_pb2.ConfirmMessageReceivedRequest, body],
        ) -> message_pb2.ConfirmMessageReceivedResponse:
            return fleet_handlers.confirm_message_received(request, state, state.object_store)

        @router.post("/get-run")
        def get_run(request: Annotated[run_pb2.GetRunRequest, body]) -> run_pb2.GetRunResponse:
            return fleet_handlers.get_run(request, state)

        return router


class FleetGrid(HttpGrid):
    """Flower's Grid over the sites that are here, without a hop over HTTP."""

    def __init__(self, fleet: Fleet, task: Any, run: Any) -> None:
        super().__init__(token="in-process")  # noqa: S106 - Flower wants one; nothing reads it
        self._fleet = fleet
        self._client = _Direct(fleet.state, task, fleet.uploads)  # type: ignore[assignment]
        self.set_run(run)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The sites that spoke of late, by name; `last_activated_at` changes with each process."""
        self._fleet._follow_allow_list()
        nodes = []
        for site, arrival in self._fleet.presence.here().items():
            if (node := self._fleet.node_of(site)) is not None:
                since = arrival.since
                nodes.append(NodeInfo(node_id=node, name=site, last_activated_at=since))
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Put messages into the sites' mailboxes and wake them."""
        messages = list(messages)
        held = [_room_for(message.content) for message in messages if message.has_content()]
        self._fleet.uploads.room = max(held, default=0) + SMALL_BYTES
        pushed = super().push_messages(messages)
        self._fleet.ring()
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that are whole; half an answer is left until the rest is here."""
        uploads, message_ids = self._fleet.uploads, list(message_ids)
        lost = {q: "the site was revoked" for q in message_ids if self._is_revoked(q)}
        lost |= {q: "the answer is too large" for q in message_ids if uploads.too_large(q)}
        for question in lost:
            self.abandon(question)
        if lost:
            return [_unreadable(question, reason) for question, reason in lost.items()]
        whole = [question for question in message_ids if uploads.whole(question)]
        if not whole:
            return []
        try:
            return [answer for question in whole for answer in self._read(question)]
        except Exception as error:  # noqa: BLE001 - a site can put anything into an answer
            reason = f"not an answer: {type(error).__name__}"
            return [_unreadable(question, reason) for question in whole]
        finally:
            for question in whole:
                self.abandon(question)
            give_back()

    def _is_revoked(self, question: str) -> bool:
        return self._fleet.uploads.node_of(question) in self._fleet.revoked

    def _read(self, question: str) -> list[Message]:
        """Straight from the store: through Flower's Runtime API each byte is copied twice more."""
        request = PullAppMessagesRequest(message_ids=[question])
        found = self._runtime_client.PullMessages(request)
        store, answers = self._fleet.state.object_store, []
        most = self._fleet.uploads.most_of(question)
        for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            names = (node.object_id for node in iterate_object_tree(tree))
            parts = {name: store.get(name) or b"" for name in names}
            store.delete(head.metadata.message_id)
            answers.append(read_message(head.metadata.message_id, parts, most))
        return answers

    def abandon(self, message_id: str) -> None:
        """Nobody waits for this answer any more: free what it and its question hold."""
        answer = self._fleet.uploads.forget(message_id)
        self._fleet.state.delete_messages({message_id})
        for name in filter(None, (message_id, answer)):
            self._fleet.state.object_store.delete(name)

    def wait(self, seconds: float) -> None:
        """Return when a site came, left or answered, or after `seconds`.

        Raises `RunFailed` where the process was stopped for so long that Flower ended its run.
        """
        if self._fleet.lapsed.is_set():
            raise RunFailed(
                "this machine stood still for a minute or longer, and Flower gave up the run's "
                "messages; the finished rounds are safe: start the server again and it goes on"
            )
        if self._fleet.news.wait(seconds):
            self._fleet.news.clear()


def _room_for(content: RecordDict) -> int:
    """What the answer to this question may bring: as much as it, and SAM's decoder if it asks for it."""
    asked = sum(record.count_bytes() for record in content.values())
    return asked + room_for_decoder(content)


def _unreadable(question: str, reason: str) -> Message:
    """What stands for an answer that cannot be read; its question alone is known."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=question,
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata=metadata, error=Error(code=BAD_ANSWER, reason=reason))


class _Direct:
    """Flower's Runtime API for its own server process, called instead of requested."""

    def __init__(self, state: Any, task: Any, uploads: Uploads) -> None:
        def push_messages(request: Any, state: Any, task: Any) -> Any:
            for message in request.messages_list:  # before a site can see it and answer
                uploads.expect(message.metadata.message_id, message.metadata.dst_node_id)
            return runtime_handlers.push_messages(request, state, task)

        for name, handler in (
            ("PushMessages", push_messages),
            ("PullMessages", runtime_handlers.pull_messages),
            ("PushObject", runtime_handlers.push_object),
        ):
            setattr(self, name, lambda request, call=handler: call(request, state, task))

    def close(self) -> None:
        """There is no connection."""


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port} ({error.strerror}): stop the program that does, or "
            "choose another listen.port"
        ) from error
