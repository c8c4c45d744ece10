"""The site's ClientApp: joins a Worker to Flower's public API; all that leaves passes egress."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from knowmine.client.egress import release
from knowmine.client.feedback import Feedback
from knowmine.client.worker import Worker
from knowmine.shared import wire
from knowmine.shared.protocol import Hello, Scores, Update

R = TypeVar("R", Update, Scores, Hello)


def client_app(worker_of: Callable[[Context], Worker], state: Path | None = None) -> ClientApp:
    """A ClientApp whose questions are answered by the worker of a node's context.

    state: folder of what the next update needs of this one; without it that is in memory.

    It answers three messages: `query` introduces the site, `train` improves the global model,
    `evaluate` scores it. Errors become Flower's error replies in the transport.
    """
    app = ClientApp()
    feedback: defaultdict[int, Feedback] = defaultdict(lambda: Feedback(state))

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        if wire.is_goodbye(message.content):
            return Message(RecordDict(), reply_to=message)
        worker = worker_of(context)
        return _answer(worker, worker.hello(), message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        worker = worker_of(context)
        task = wire.unpack_train_task(message.content)
        update, form = worker.improve(task), task.plan.transport.update
        if form == "none":
            return _answer(worker, update, message)
        # What the server will make of the change is what leaves, so that is what egress sees.
        change = feedback[context.node_id].pack(update, task, form)
        rounded = release(replace(update, weights=change.weights), manifest=worker.manifest)
        return Message(wire.pack_reply(rounded, change.data), reply_to=message)

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        worker = worker_of(context)
        task = wire.unpack_evaluate_task(message.content)
        return _answer(worker, worker.evaluate(task), message)

    return app


def _answer(worker: Worker, reply: R, message: Message) -> Message:
    content: RecordDict = wire.pack_reply(release(reply, manifest=worker.manifest))
    return Message(content, reply_to=message)
