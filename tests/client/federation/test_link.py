"""The contract with Flower's client: every internal that an adapter file uses is as expected."""

import inspect
import threading
from pathlib import Path

import httpx
import pytest

from knowmine.client.federation import fleet_client, identity, threads
from knowmine.client.federation import link as module
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.settings import ClientSettings
from knowmine.shared.log import silent
from knowmine.shared.settings import read_settings
from knowmine.shared.wire import codec
from tests.flower_contract import changed, imports_of, missing
from tests.provisioned import Federation

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

ADAPTERS = (fleet_client, identity, module, threads)
USED = [used for adapter in ADAPTERS for used in imports_of(Path(str(adapter.__file__)))]
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
    fleet_client.message_from_proto: "message_proto",
    fleet_client.message_to_proto: "message",
    fleet_client.run_from_proto: "run_proto",
    fleet_client.remove_content_from_message: "message",
    fleet_client.get_all_nested_objects: "obj",
    fleet_client.get_object_tree: "obj",
    fleet_client.iterate_object_tree: "tree",
    fleet_client.no_object_id_recompute: "",
    fleet_client.make_pull_object_fn_protobuf: "pull_object_protobuf, node, run_id",
    fleet_client.make_push_object_fn_protobuf: "push_object_protobuf, node, run_id, session_id",
    fleet_client.pull_objects: "object_ids, pull_object_fn",
    fleet_client.push_objects: "objects, push_object_fn",
    identity.public_key_to_bytes: "public_key",
    identity.sign_message: "private_key, message",
}
FIELDS = {
    fleet_client.ActivateNodeRequest: {"public_key", "heartbeat_interval"},
    fleet_client.DeactivateNodeRequest: {"node_id"},
    fleet_client.PullMessagesRequest: {"node"},
    fleet_client.PushMessagesRequest: {
        "node",
        "messages_list",
        "message_object_trees",
        "clientapp_runtime_list",
    },
    fleet_client.SendNodeHeartbeatRequest: {"node", "heartbeat_interval"},
    fleet_client.ConfirmMessageReceivedRequest: {"node", "run_id", "message_object_id"},
    fleet_client.GetRunRequest: {"node", "run_id"},
    fleet_client.Node: {"node_id"},
}


@pytest.mark.parametrize(("module", "name"), USED)
def test_what_is_imported_is_there(module, name):
    """If a new Flower moved it, this test names it first."""
    assert not missing(module, name)


@pytest.mark.parametrize("name", CALLS)
def test_the_client_has_the_calls(name):
    """One request each."""
    assert not changed(getattr(fleet_client.FleetHttpClient, name), "request")


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_functions_take_what_they_are_given(function):
    """By position."""
    assert not changed(function, FUNCTIONS[function])


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_requests_have_the_fields_that_are_set(kind):
    """A field that is gone would fail in the middle of a round."""
    assert FIELDS[kind] <= set(kind.DESCRIPTOR.fields_by_name)


def test_the_client_takes_interceptors_and_a_context():
    """And it keeps its HTTP client in the attribute that we replace."""
    base = fleet_client.FleetHttpClient.__mro__[1]
    parameters = inspect.signature(fleet_client.FleetHttpClient.__init__).parameters
    assert {"timeout", "verify", "interceptors"} <= set(parameters)
    assert "self._client" in inspect.getsource(base)


def test_an_app_is_called_with_message_and_context():
    """By these names."""
    assert not changed(threads.ClientApp.__call__, "message, context")


def test_only_missing_objects_are_sent():
    """The server says which objects it lacks."""
    assert "object_ids_to_push" in inspect.signature(fleet_client.push_objects).parameters


def test_a_new_reply_has_no_message_id():
    """So `send` can set it, once."""
    message = Message(RecordDict(), dst_node_id=1, message_type="query")
    assert Message(RecordDict(), reply_to=message).metadata.message_id == ""
    assert "_message_id" in message.metadata.__dict__


@pytest.fixture
def link(tmp_path):
    """A site's link to a server that does not run."""
    federation = Federation(tmp_path)
    federation.provision()
    federation.enrol("lyon")
    home = federation.home("lyon")
    settings = read_settings(ClientSettings, home / "client.yaml", {})
    keys = SiteKeys.load(settings.keys, "lyon")
    return module.Link(settings.network, "lyon", keys, settings.keys, tmp_path, silent())


def test_a_site_leaves_whatever_the_server_replies(link):
    """Even if it refuses to read the response; the connection is closed."""

    def compressed(_):
        gzip = {"content-encoding": "gzip"}
        return httpx.Response(200, headers=gzip, stream=httpx.ByteStream(b"bomb"))

    client = httpx.Client(transport=httpx.MockTransport(compressed))
    client.event_hooks["response"] = [link._fleet._budget.count]
    link._fleet.calls._client, link._fleet.joined = client, True
    link.close()
    assert client.is_closed


@pytest.mark.parametrize("lost", [False, True])
def test_a_goodbye_ends_a_site_that_cannot_reply_to_it(link, monkeypatch, lost):
    """The server stopped right after it, or was restarted and knows no process."""
    goodbye = Message(codec.pack_goodbye(), dst_node_id=1, message_type="query")
    goodbye.metadata.__dict__["_message_id"] = goodbye.object_id
    monkeypatch.setattr(module, "LAST_REPLY_S", 0.0)
    monkeypatch.setattr(link._fleet, "next_task", lambda: (goodbye, ObjectTree()))
    monkeypatch.setattr(link._fleet, "fetch", lambda head, tree, weights_bytes: goodbye)
    monkeypatch.setattr(link, "_renew_certificate", lambda: None)
    if lost:
        gone = httpx.Response(401, request=httpx.Request("POST", "https://server"))
        failure = httpx.HTTPStatusError("", request=gone.request, response=gone)

        def refuse(request):
            raise failure

        monkeypatch.setattr(link._fleet.calls, "PushMessages", refuse)
    app = ClientApp()

    @app.query()
    def hello(message, context):
        return Message(RecordDict(), reply_to=message)

    assert link._work(app, threading.Event(), 1.0)
