"""The site's ClientApp: joins a Worker to Flower's public API; all that leaves passes the porter."""

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from knowmine.client.porter import Porter
from knowmine.client.worker import Worker
from knowmine.shared import wire
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update

R = TypeVar("R", Update, Scores, Hello)


def client_app(
    worker_of: Callable[[Context], Worker], porter_of: Callable[[Context], Porter] | None = None
) -> ClientApp:
    """A ClientApp whose questions are answered by the worker of a node's context.

    It answers three messages: `query` introduces the site, `train` improves the global model,
    `evaluate` scores it. Errors become Flower's error replies in the transport.
    porter_of: who checks what a node is asked and what it lets out; not set, one without a record.
    """
    app, plain = ClientApp(), Porter()
    the_porter = porter_of or (lambda _: plain)

    def answer(
        message: Message,
        context: Context,
        task: TrainTask | EvaluateTask | None,
        work: Callable[[Worker], R],
    ) -> Message:
        worker, porter = worker_of(context), the_porter(context)
        asked = porter.ask(task, str(context.run_id), worker.manifest)
        try:
            reply = work(worker)
        except Exception as error:
            porter.failed(error, asked, worker.manifest)
            raise
        leaving = porter.let_out(reply, asked, worker.manifest)
        content: RecordDict = wire.pack_reply(leaving)
        return Message(content, reply_to=message)

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        if wire.is_goodbye(message.content):
            the_porter(context).end(str(context.run_id))
            return Message(RecordDict(), reply_to=message)
        return answer(message, context, None, lambda worker: worker.hello())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = wire.unpack_train_task(message.content)
        return answer(message, context, task, lambda worker: worker.improve(task))

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        task = wire.unpack_evaluate_task(message.content)
        return answer(message, context, task, lambda worker: worker.evaluate(task))

    return app
