"""A task runs on its own thread; the heartbeat goes on meanwhile and survives failures."""

import threading

import httpx

from knowmine.client.federation.threads import Heartbeat, TaskThread
from knowmine.shared.wire import quiet_flower  # noqa: F401 - before Flower is imported

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def run(app):
    """A finished task."""
    task = TaskThread(app, Message(RecordDict(), dst_node_id=1, message_type="train"), 7)
    task.start()
    assert task.done.wait(30)
    return task


def test_a_task_keeps_its_reply():
    """The app's result, for the node that it ran as."""
    task = run(lambda message, context: context.node_id)
    assert (task.reply, task.error) == (7, None)


def test_a_task_keeps_its_error():
    """Whatever the app raises, the process goes on."""

    def fails(message, context):
        raise SystemExit

    task = run(fails)
    assert (task.reply, type(task.error)) == (None, SystemExit)


def test_a_running_task_is_seen():
    """The process that ends has to know it."""
    app, end, begun = ClientApp(), threading.Event(), threading.Event()

    @app.train()
    def works(message, context):
        begun.set()
        end.wait(30)

    task = TaskThread(app, Message(RecordDict(), dst_node_id=1, message_type="train"), 7)
    task.start()
    assert begun.wait(30)
    seen = TaskThread.is_running()
    end.set()
    task.join(30)
    assert (seen, TaskThread.is_running()) == (True, False)


def test_a_heartbeat_that_fails_goes_on():
    """The main thread meets the same failure and deals with it."""
    beats, third = [], threading.Event()

    def beat():
        beats.append(1)
        if len(beats) == 3:
            third.set()
        raise httpx.ConnectError("no way")

    with Heartbeat(beat, 0.01):
        assert third.wait(30)
