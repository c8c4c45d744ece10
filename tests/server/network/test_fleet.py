"""The contract with Flower's server: every internal that an adapter file uses is as expected."""

import inspect
from pathlib import Path

import pytest

from knowmine.server.network import grid, routes, run_state
from tests.flower_contract import changed, imports_of, missing

from flwr.server.superlink.linkstate import InMemoryLinkState, LinkStateFactory
from flwr.superlink.federation import NoOpFederationManager

ADAPTERS = (grid, routes, run_state)
USED = [used for adapter in ADAPTERS for used in imports_of(Path(str(adapter.__file__)))]
HANDLERS = {
    "activate_node": "request, state",
    "send_node_heartbeat": "request, state",
    "pull_messages": "request, state, store",
    "push_messages": "request, state",
    "push_object": "request, state",
    "pull_object": "request, state",
    "confirm_message_received": "request, state, store",
    "get_run": "request, state",
}
RUNTIME = (
    "push_messages",
    "pull_messages",
    "push_object",
    "pull_object",
    "confirm_message_received",
)
STATE = {
    "acknowledge_task_heartbeat": "task_id",
    "activate_task": "task_id",
    "claim_task": "task_id",
    "create_node": "owner_aid, owner_name, public_key, heartbeat_interval",
    "deactivate_node": "node_id",
    "delete_messages": "message_ins_ids",
    "delete_node": "owner_aid, node_id",
    "finish_task": "task_id, sub_status, details",
    "get_node_id_by_public_key": "public_key",
    "get_task_by_token": "token",
}
PROTOBUF = {
    "fleet_pb2": {
        "ActivateNodeRequest": {"public_key", "heartbeat_interval"},
        "PullMessagesRequest": {"node"},
        "PullMessagesResponse": {"messages_list", "message_object_trees"},
        "PushMessagesRequest": {"node", "messages_list", "message_object_trees"},
        "PushMessagesResponse": {"objects_to_push"},
        "DeactivateNodeRequest": {"node_id"},
    },
    "message_pb2": {"PushObjectRequest": {"object_id"}, "PushObjectResponse": {"stored"}},
}


@pytest.mark.parametrize(("module", "name"), USED)
def test_what_is_imported_is_there(module, name):
    """If a new Flower moved it, this test names it first."""
    assert not missing(module, name)


@pytest.mark.parametrize("name", HANDLERS)
def test_the_fleet_handlers_take_what_they_are_given(name):
    """By position."""
    assert not changed(getattr(routes.fleet_handlers, name), HANDLERS[name])


@pytest.mark.parametrize("name", RUNTIME)
def test_the_runtime_handlers_take_what_they_are_given(name):
    """By position."""
    assert not changed(getattr(grid.runtime_handlers, name), "request, state, task")


@pytest.mark.parametrize("name", STATE)
def test_the_link_state_takes_what_it_is_given(name):
    """By position."""
    assert not changed(getattr(InMemoryLinkState, name), STATE[name])


def test_the_link_state_opens_runs():
    """Eight values, by position."""
    given = (
        "fab_id, fab_version, fab_hash, override_config, federation_id, "
        "federation_config, flwr_aid, primary_task_type"
    )
    assert not changed(InMemoryLinkState.create_run, given)
    assert "run_ids" in inspect.signature(InMemoryLinkState.get_run_info).parameters


def test_the_link_state_is_in_memory_and_has_an_object_store():
    """By the name of its database."""
    objects = run_state.ObjectStoreFactory(run_state.FLWR_IN_MEMORY_DB_NAME)
    manager = NoOpFederationManager()
    state = LinkStateFactory(run_state.FLWR_IN_MEMORY_DB_NAME, manager, objects).state()
    assert isinstance(state, InMemoryLinkState)
    assert not changed(state.object_store.delete, "object_id")


@pytest.mark.parametrize("module", PROTOBUF)
def test_messages_have_the_fields_that_are_read(module):
    """A field that is gone raises in the middle of a round."""
    for name, fields in PROTOBUF[module].items():
        found = getattr(getattr(routes, module), name).DESCRIPTOR.fields_by_name
        assert fields <= set(found), name


def test_the_grid_has_what_is_overridden():
    """Its messages go through the client that we put in place of the HTTP one."""
    assert not changed(grid.HttpGrid.push_messages, "messages")
    assert not changed(grid.HttpGrid.pull_messages, "message_ids")
    assert not changed(grid.HttpGrid.set_run, "run")
    assert "token" in inspect.signature(grid.HttpGrid.__init__).parameters
    assert "_client" in inspect.getsource(grid.HttpGrid)


def test_the_grid_calls_only_what_our_client_has():
    """A missing call would fail in the middle of a run."""
    import re

    code = inspect.getsource(grid.HttpGrid._try_push_messages) + inspect.getsource(grid.FleetGrid)
    used = set(re.findall(r"_runtime_client\.(\w+)", code))
    stands_in = set(re.findall(r'\("(\w+)", ', inspect.getsource(grid._InProcessRuntime)))
    assert used == stands_in


def test_messages_take_their_run_from_the_process():
    """Flower knows one run per process."""
    kind = type(run_state.TaskIdentity)
    assert all(
        isinstance(getattr(kind, f"{of}_id", None), property) for of in ("task", "run", "node")
    )


def test_uvicorn_sees_certificates():
    """The guard's connection is a uvicorn class that puts its state into each request."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    source = inspect.getsource(HttpToolsProtocol)
    assert "app_state" in source and not changed(HttpToolsProtocol.connection_made, "transport")
