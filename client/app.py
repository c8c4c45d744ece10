"""The site's ClientApp: joins a Worker to Flower's public API; all that leaves passes egress."""

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from knowmine.client.egress import release
from knowmine.client.worker import Worker
from knowmine.shared import wire
from knowmine.shared.protocol import Hello, Scores, Update

R = TypeVar("R", Update, Scores, Hello)


def client_app(worker_of: Callable[[Context], Worker]) -> ClientApp:
    """A ClientApp whose questions are answered by the worker of a node's context.

    It answers three messages: `query` introduces the site, `train` improves the global model,
    `evaluate` scores it. Errors become Flower's error replies in the transport.
    """
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        if wire.is_goodbye(message.content):
            return Message(RecordDict(), reply_to=message)
        worker = worker_of(context)
        return _answer(worker, worker.hello(), message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        worker = worker_of(context)
        return _answer(worker, worker.improve(wire.unpack_train_task(message.content)), message)

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        worker = worker_of(context)
        task = wire.unpack_evaluate_task(message.content)
        return _answer(worker, worker.evaluate(task), message)

    return app


def _answer(worker: Worker, reply: R, message: Message) -> Message:
    content: RecordDict = wire.pack_reply(release(reply, manifest=worker.manifest))
    return Message(content, reply_to=message)
