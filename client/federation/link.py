"""The site's end of the closed federation: Flower's client calls, in this process.

All Flower internals of the client side are in this file. It opens no port, runs no code but
what is installed, and works for no run but knowmine's. It joins, asks for work, does it, sends
the answer, and begins anew for ever when the network breaks:

```
join ──> ask for work <──────────────┐        a broken line, a restarted server: join again
              │ a question           │        a revoked certificate: keep asking, rarely
              └─> fetch, work, send ─┘        the server's goodbye: the end
```
"""

import math
import random
import ssl
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509

from knowmine.client.federation.byte_budget import Intake
from knowmine.client.federation.keys import SiteKeys, adopt_renewal, renew_certificate
from knowmine.client.federation.tls import detail_of, explained, http_client, tls_context
from knowmine.client.settings import NetworkSettings
from knowmine.shared.errors import Interrupted, Refused, reason_of
from knowmine.shared.log import RunLog
from knowmine.shared.trust.certificates import load_certificate, warning_of_expiry
from knowmine.shared.weights import write_atomically
from knowmine.shared.wire import codec
from knowmine.shared.wire.flower_objects import SMALL_BYTES, read_message

# wire has told Flower to phone nobody; only now may Flower be imported.
from flwr.app import Context, Error, Message, RecordDict  # isort: skip
from flwr.app.message import remove_content_from_message  # isort: skip
from flwr.clientapp import ClientApp  # isort: skip
from flwr.common.constant import HEARTBEAT_MAX_INTERVAL, TIMESTAMP_HEADER  # isort: skip
from flwr.common.serde import message_from_proto, message_to_proto, run_from_proto  # isort: skip
from flwr.proto.fleet_pb2 import (  # isort: skip
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest  # isort: skip
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree  # isort: skip
from flwr.proto.node_pb2 import Node  # isort: skip
from flwr.proto.run_pb2 import GetRunRequest  # isort: skip
from flwr.supercore.constant import (  # isort: skip
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
)
from flwr.supercore.inflatable.inflatable_object import (  # isort: skip
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (  # isort: skip
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (  # isort: skip
    ObjectPullError,
    ObjectPushError,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message  # isort: skip
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext  # isort: skip
from flwr.supernode.fleet_http_client import FleetHttpClient  # isort: skip

SITE_FAILED = 2
"""Flower's code for an error in a ClientApp; the reason beside it is one of `REASONS`."""
MAX_CLOCK_ERROR = timedelta(seconds=60)
"""Flower believes a signed time of day that is five minutes old at most."""
SECOND_PROCESS_S = 120.0
"""How long a process that starts beside another of its site waits for that to be gone."""
LAST_ANSWER_S = 30.0
"""After how long the answer to a goodbye is not sent once more: the server is gone, the run over."""
RENEWAL_LOOK_S = 6 * 3600.0
"""Seconds between two looks at the date on this site's certificate."""


class _Lost(Exception):
    """The server does not know this process; it has to join again."""


class Link:
    """One site's way to its server.

    state: folder of what a restart needs. Raises `UsageError` for certificates or keys that
    cannot be used.
    """

    def __init__(
        self, settings: NetworkSettings, site: str, keys: SiteKeys, folder: Path, state: Path,
        log: RunLog,
    ) -> None:  # fmt: skip
        self._settings, self._site, self._log, self._state = settings, site, log, state
        self._keys, self._looked = folder, 0.0
        self._instance, self._node, self._joined = uuid.uuid4().hex, Node(), False
        self._certificate, self._shown, self._replaced = keys.certificate, b"", ""
        self._identity = _Identity(keys, self._instance, log)
        self._intake = Intake()
        self._weights_bytes: Callable[[], int] = lambda: 0
        self._client = FleetHttpClient(
            f"https://{settings.server}",
            timeout=settings.timeout_s,
            verify=tls_context(settings.ca, folder),
            interceptors=[self._identity],
        )
        self._connect()

    def serve(
        self,
        app: ClientApp,
        stop: threading.Event,
        stop_s: float,
        weights_bytes: Callable[[], int],
    ) -> str:
        """Work for the server until it says goodbye or `stop` is set; return how it ended.

        stop_s: how long a task may go on after `stop`. weights_bytes: of the installed model;
        asked for when the first question with weights comes, so that joining waits for no torch.
        Raises `Refused` where another process works for this site, or where the server is not
        the one of the kit.
        """
        self._weights_bytes = weights_bytes
        pause, second_since = 1.0, 0.0
        while not stop.is_set():
            try:
                self._join()
                pause, second_since = 1.0, 0.0
                if self._work(app, stop, stop_s):
                    return "the run is over"
                continue
            except _Lost:
                self._log.event("lost", reason="the server knows this process no more")
                continue
            except httpx.HTTPStatusError as error:
                why = detail_of(error.response)
                if error.response.status_code == httpx.codes.CONFLICT:
                    second_since = second_since or time.monotonic()
                    if self._joined or time.monotonic() - second_since > SECOND_PROCESS_S:
                        raise Refused(why) from error
            except (httpx.HTTPError, ssl.SSLError, ObjectPullError, ObjectPushError) as error:
                why = self._explained(error)
            self._log.event("unreachable", level="warning", reason=why, pause_s=round(pause))
            stop.wait(pause * random.uniform(0.7, 1.0))
            pause = min(2 * pause, self._settings.retry_s)
        return "stopped"

    def probe(self, payload: bytes) -> tuple[dict[str, Any], float, datetime | None]:
        """Ask the server who it is, sending `payload` along: its answer, seconds, its clock.

        Does not join. Raises `Refused` with what a person can do where it does not answer so.
        """
        address = f"https://{self._settings.server}{codec.CHECK_PATH}"
        request = self._client._client.build_request("POST", address, content=payload)
        self._identity.sign(request)
        started = time.monotonic()
        try:
            reply = self._client._client.send(request)
            seconds = time.monotonic() - started
            if reply.is_error:
                raise Refused(detail_of(reply))
            answer: dict[str, Any] = reply.json()
        except (httpx.HTTPError, ssl.SSLError, ValueError) as error:
            raise Refused(self._explained(error)) from error
        there = reply.headers.get("date")
        return answer, seconds, parsedate_to_datetime(there) if there else None

    def server_key(self) -> object:
        """The public key of the certificate that the server last showed; TLS vouched for it."""
        shown = self._shown
        return x509.load_der_x509_certificate(shown).public_key() if shown else None

    def close(self) -> None:
        """Say goodbye where that is possible, and end all connections."""
        try:
            if self._joined:
                # The server will notice all the same.
                with suppress(httpx.HTTPError, ssl.SSLError, ValueError, Refused):
                    self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        finally:
            self._client.close()

    def _join(self) -> None:
        remembered = self._state / "instance"
        before = remembered.read_text().strip() if remembered.exists() else ""
        self._identity.replaces = before
        request = ActivateNodeRequest(
            public_key=self._identity.public_key, heartbeat_interval=HEARTBEAT_MAX_INTERVAL
        )
        reply = self._client.ActivateNode(request)
        try:
            write_atomically(remembered, self._instance.encode())
        except OSError as error:  # a full disk costs a wait after the next crash, no more
            self._log.event("unremembered", level="warning", reason=str(error))
        self._node, self._joined = Node(node_id=reply.node_id), True
        self._log.event("joined", server=self._settings.server)

    def _work(self, app: ClientApp, stop: threading.Event, stop_s: float) -> bool:
        """Ask for work and do it until the server says goodbye (True) or `stop` is set."""
        with _Heart(self._beat, self._settings.heartbeat_s):
            while not stop.is_set():
                self._renew()
                asked = time.monotonic()
                found = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
                if not found.messages_list:
                    if time.monotonic() - asked < self._settings.poll_s:
                        stop.wait(self._settings.poll_s)
                    continue
                head = message_from_proto(found.messages_list[0])
                message = self._fetch(head, found.message_object_trees[0])
                over = message.has_content() and codec.is_goodbye(message.content)
                reply = self._answer(app, message, stop, stop_s)
                try:
                    patience_s = LAST_ANSWER_S if over else math.inf
                    self._send(reply, head.metadata.run_id, stop, stop_s, patience_s)
                except _Lost:
                    if not over:
                        raise
                    self._log.event("dropped", level="warning", reason="the server began anew")
                if over:
                    return True
        return False

    def _fetch(self, head: Message, tree: ObjectTree) -> Message:
        """The whole question; a run that is not ours is refused."""
        run_id, question = head.metadata.run_id, head.metadata.message_id
        request = GetRunRequest(node=self._node, run_id=run_id)
        run = run_from_proto(self._call(self._client.GetRun, request).run)
        if run.fab_id != codec.RUN_NAME or run.fab_hash:
            raise Refused(f"the server runs {run.fab_id!r}; this site works for knowmine alone")
        # From what is installed, never from what the server says of its message.
        most = SMALL_BYTES
        if head.metadata.message_type != "query":
            most += self._weights_bytes()
        with self._intake.question(most, self._settings.timeout_s) as room:

            def pull(part: Any) -> Any:
                with room.part():
                    return self._call(self._client.PullObject, part)

            parts = pull_objects(
                [node.object_id for node in iterate_object_tree(tree)],
                make_pull_object_fn_protobuf(pull, self._node, run_id),
            )
        received = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=question
        )
        self._call(self._client.ConfirmMessageReceived, received)
        return read_message(question, parts, most)

    def _answer(
        self, app: ClientApp, message: Message, stop: threading.Event, stop_s: float
    ) -> Message:
        """What the site answers; of an error the server learns its kind and no more."""
        kind, started = message.metadata.message_type, time.monotonic()
        round_ = codec.round_of(message.content)
        self._log.event("asked", kind=kind, round=round_)
        work = _Work(app, message, self._node.node_id)
        work.start()
        while not work.done.wait(0.2):
            if self._replaced:  # another process works for this site: nobody awaits this answer
                raise Refused(self._replaced)
            if stop.is_set() and work.done.wait(stop_s) is False:
                work.error = Interrupted("stopped while it worked")
                break
        seconds = round(time.monotonic() - started, 3)
        if work.error is not None:
            error = f"{type(work.error).__name__}: {work.error}"
            self._log.event(
                "failed", level="error", kind=kind, round=round_, reason=error, seconds=seconds
            )
            return Message(Error(code=SITE_FAILED, reason=reason_of(work.error)), reply_to=message)
        self._log.event("answered", kind=kind, round=round_, seconds=seconds)
        assert work.reply is not None
        return work.reply

    def _send(
        self, reply: Message, run_id: int, stop: threading.Event, stop_s: float, patience_s: float
    ) -> None:
        """Send an answer, and again where the line breaks, until it is there.

        It is tried for `patience_s`, and after `stop` for `stop_s` more.
        """
        reply.metadata.__dict__["_message_id"] = reply.object_id
        pause, begun, stopped = 0.5, time.monotonic(), math.inf
        while True:
            try:
                self._send_once(reply, run_id)
                return
            except httpx.HTTPStatusError as error:
                # The run is over, or the question is not waited for any more.
                reason = detail_of(error.response)
                self._log.event("dropped", level="warning", reason=reason)
                return
            except (httpx.HTTPError, ssl.SSLError, ObjectPushError) as error:
                reason = self._explained(error)
                self._log.event("unsent", level="warning", reason=reason, pause_s=round(pause))
            if time.monotonic() - begun >= patience_s:
                self._log.event("dropped", level="warning", reason="nobody takes the last answer")
                return
            if stop.is_set():
                stopped = min(stopped, time.monotonic())
                if time.monotonic() - stopped >= stop_s:
                    self._log.event("dropped", level="warning", reason="stopped while it sent")
                    return
                time.sleep(min(pause, stop_s))
            else:
                stop.wait(pause)
            pause = min(2 * pause, self._settings.retry_s)

    def _send_once(self, reply: Message, run_id: int) -> None:
        with no_object_id_recompute():
            head = message_to_proto(
                remove_content_from_message(reply) if reply.has_content() else reply
            )
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[head],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            expected = self._call(self._client.PushMessages, request)
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    lambda part: self._call(self._client.PushObject, part),
                    self._node,
                    run_id,
                    expected.session_id,
                ),
                object_ids_to_push=set(expected.objects_to_push),
            )

    def _connect(self) -> None:
        """Connect with the certificate that is in the folder of keys now."""
        self._client._client.close()
        self._client._client = http_client(
            self._settings, tls_context(self._settings.ca, self._keys)
        )
        hooks = [self._look_at_server, self._intake.look_at]
        self._client._client.event_hooks["response"] = hooks

    def _look_at_server(self, response: httpx.Response) -> None:
        connection = response.extensions["network_stream"].get_extra_info("ssl_object")
        self._shown = connection.getpeercert(True) or b""  # by position: OpenSSL's own object

    def _renew(self) -> None:
        """Have the next certificate pinned and use it, once the present one nears its end."""
        if time.monotonic() - self._looked < RENEWAL_LOOK_S and self._looked:
            return
        self._looked = time.monotonic()
        if not (warning := warning_of_expiry(load_certificate(self._keys / "tls.crt"))):
            return
        self._log.event("expiry", level="warning", reason=warning)
        address = f"https://{self._settings.server}{codec.CERTIFICATE_PATH}"
        pem = renew_certificate(self._keys, self._site).encode("ascii")
        request = self._client._client.build_request("POST", address, content=pem)
        self._identity.sign(request)
        reply = self._client._client.send(request)
        if reply.is_error:
            self._log.event("not renewed", level="warning", reason=detail_of(reply))
            return
        adopt_renewal(self._keys, self._site)
        self._connect()
        self._log.event("renewed")

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(
            node=self._node, heartbeat_interval=HEARTBEAT_MAX_INTERVAL
        )
        try:
            self._client.SendNodeHeartbeat(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.CONFLICT:
                self._replaced = detail_of(error.response)
            raise

    def _call(self, call: Callable[[Any], Any], request: Any) -> Any:
        try:
            return call(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.UNAUTHORIZED:
                raise _Lost from error
            raise

    def _explained(self, error: Exception) -> str:
        return explained(error, self._settings, self._certificate, joined=self._joined)


class _Identity:
    """Signs each request with the node key, as Flower wants it, and names this process.

    A clock that is wrong is put right by what the server's answers say of the time; TLS has
    vouched for them.
    """

    def __init__(self, keys: SiteKeys, instance: str, log: RunLog) -> None:
        self._key, self._instance, self._log = keys.node, instance, log
        self.public_key: bytes = public_key_to_bytes(keys.node.public_key())
        self.replaces = ""
        self._offset = timedelta()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request; once more where the server's clock says ours is wrong."""
        self.sign(context.request)
        response = call_next(context)
        if response.status_code == httpx.codes.UNAUTHORIZED and self._set_clock(response):
            self.sign(context.request)
            response = call_next(context)
        return response

    def sign(self, request: httpx.Request) -> None:
        """Put this process's name and the signed time of day on a request."""
        now = (datetime.now(UTC) + self._offset).isoformat()
        signature = sign_message(self._key, now.encode("ascii"))
        request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode("ascii"),
                TIMESTAMP_HEADER: now,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
                codec.INSTANCE_HEADER: self._instance,
                codec.REPLACES_HEADER: self.replaces,
                codec.VERSION_HEADER: version("knowmine"),
            }
        )

    def _set_clock(self, response: httpx.Response) -> bool:
        try:
            there = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError):
            return False
        offset = there - datetime.now(UTC)
        if abs(offset - self._offset) < MAX_CLOCK_ERROR:
            return False
        self._log.event("clock", level="warning", wrong_by_s=round(offset.total_seconds()))
        self._offset = offset
        return True


class _Work(threading.Thread):
    """One question at work, on a thread that may be left behind when the process has to end."""

    def __init__(self, app: ClientApp, message: Message, node: int) -> None:
        super().__init__(name="work", daemon=True)
        self._app, self._message, self._node = app, message, node
        self.done = threading.Event()
        self.reply: Message | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Answer, or keep the error."""
        context = Context(
            run_id=self._message.metadata.run_id,
            node_id=self._node,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        try:
            self.reply = self._app(message=self._message, context=context)
        except BaseException as error:  # noqa: BLE001 - it becomes the answer
            self.error = error
        self.done.set()


class _Heart:
    """Tells the server every so often that the site is there, while it works."""

    def __init__(self, beat: Callable[[], None], every_s: float) -> None:
        self._beat, self._every_s, self._stop = beat, every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            # Whatever is wrong, the next question finds out.
            with suppress(httpx.HTTPError, ssl.SSLError, Refused):
                self._beat()
