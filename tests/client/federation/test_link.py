"""The contract with Flower's client: every internal that fleet.py uses is as it expects it."""

import inspect
import threading
from pathlib import Path

import httpx
import pytest

from knowmine.client.federation import link as module
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.settings import ClientSettings
from knowmine.shared.log import silent
from knowmine.shared.settings import read_settings
from knowmine.shared.wire import codec
from tests.flower_contract import changed, imports_of, missing
from tests.provisioned import Federation

from flwr.app import Message, RecordDict  # isort: skip
from flwr.clientapp import ClientApp  # isort: skip
from flwr.common.serde import message_to_proto  # isort: skip
from flwr.proto.fleet_pb2 import PullMessagesResponse  # isort: skip
from flwr.proto.message_pb2 import ObjectTree  # isort: skip
from flwr.supercore.task_identity import TaskIdentity  # isort: skip

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

USED = imports_of(Path(module.__file__))
CALLS = (
    "ActivateNode",
    "DeactivateNode",
    "SendNodeHeartbeat",
    "PullMessages",
    "PushMessages",
    "GetRun",
    "PushObject",
    "PullObject",
    "ConfirmMessageReceived",
)
FUNCTIONS = {
    "message_from_proto": "message_proto",
    "message_to_proto": "message",
    "run_from_proto": "run_proto",
    "remove_content_from_message": "message",
    "get_all_nested_objects": "obj",
    "get_object_tree": "obj",
    "iterate_object_tree": "tree",
    "no_object_id_recompute": "",
    "make_pull_object_fn_protobuf": "pull_object_protobuf, node, run_id",
    "make_push_object_fn_protobuf": "push_object_protobuf, node, run_id, session_id",
    "pull_objects": "object_ids, pull_object_fn",
    "push_objects": "objects, push_object_fn",
    "public_key_to_bytes": "public_key",
    "sign_message": "private_key, message",
}
FIELDS = {
    module.ActivateNodeRequest: {"public_key", "heartbeat_interval"},
    module.DeactivateNodeRequest: {"node_id"},
    module.PullMessagesRequest: {"node"},
    module.PushMessagesRequest: {
        "node",
        "messages_list",
        "message_object_trees",
        "clientapp_runtime_list",
    },
    module.SendNodeHeartbeatRequest: {"node", "heartbeat_interval"},
    module.ConfirmMessageReceivedRequest: {"node", "run_id", "message_object_id"},
    module.GetRunRequest: {"node", "run_id"},
    module.Node: {"node_id"},
}


@pytest.mark.parametrize(("module", "name"), USED)
def test_what_is_imported_is_there(module, name):
    """A new Flower that moved it is named here first."""
    assert not missing(module, name)


@pytest.mark.parametrize("name", CALLS)
def test_the_client_has_the_calls(name):
    """One request each."""
    assert not changed(getattr(module.FleetHttpClient, name), "request")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_what_they_are_given(name):
    """By position."""
    assert not changed(getattr(module, name), FUNCTIONS[name])


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_requests_have_the_fields_that_are_set(kind):
    """A field that is gone would fail in the middle of a round."""
    assert FIELDS[kind] <= set(kind.DESCRIPTOR.fields_by_name)


def test_the_client_takes_interceptors_and_a_context():
    """And keeps its HTTP client where it is replaced by one that knows the site's proxy."""
    base = module.FleetHttpClient.__mro__[1]
    parameters = inspect.signature(module.FleetHttpClient.__init__).parameters
    assert {"timeout", "verify", "interceptors"} <= set(parameters)
    assert "self._client" in inspect.getsource(base)


def test_an_app_is_called_with_message_and_context():
    """By these names."""
    assert not changed(module.ClientApp.__call__, "message, context")


def test_what_is_sent_names_only_what_is_missing():
    """The server says what it has already, and that is not sent again."""
    assert "object_ids_to_push" in inspect.signature(module.push_objects).parameters


@pytest.fixture
def link(tmp_path):
    """A site's way to a server that does not run."""
    federation = Federation(tmp_path)
    federation.provision()
    federation.enrol("lyon")
    home = federation.home("lyon")
    settings = read_settings(ClientSettings, home / "client.yaml", {})
    keys = SiteKeys.load(settings.keys, "lyon")
    return module.Link(settings.network, "lyon", keys, settings.keys, tmp_path, silent())


def test_a_site_leaves_whatever_the_server_answers(link):
    """Even what it refuses to read; the connection is closed."""

    def compressed(_):
        gzip = {"content-encoding": "gzip"}
        return httpx.Response(200, headers=gzip, stream=httpx.ByteStream(b"bomb"))

    client = httpx.Client(transport=httpx.MockTransport(compressed))
    client.event_hooks["response"] = [link._intake.look_at]
    link._client._client, link._joined = client, True
    link.close()
    assert client.is_closed


@pytest.mark.parametrize("lost", [False, True])
def test_a_goodbye_ends_a_site_that_cannot_answer_it(link, monkeypatch, lost):
    """The server went right after it was heard, or came back and knows nobody."""
    heard = Message(codec.pack_goodbye(), dst_node_id=1, message_type="query")
    heard.metadata.__dict__["_message_id"] = heard.object_id
    pulled = PullMessagesResponse(
        messages_list=[message_to_proto(heard)], message_object_trees=[ObjectTree()]
    )
    monkeypatch.setattr(module, "LAST_ANSWER_S", 0.0)
    monkeypatch.setattr(link._client, "PullMessages", lambda request: pulled)
    monkeypatch.setattr(link, "_fetch", lambda head, tree: heard)
    monkeypatch.setattr(link, "_renew", lambda: None)
    if lost:
        gone = httpx.Response(401, request=httpx.Request("POST", "https://server"))
        failure = httpx.HTTPStatusError("", request=gone.request, response=gone)

        def refuse(request):
            raise failure

        monkeypatch.setattr(link._client, "PushMessages", refuse)
    app = ClientApp()

    @app.query()
    def hello(message, context):
        return Message(RecordDict(), reply_to=message)

    assert link._work(app, threading.Event(), 1.0)
