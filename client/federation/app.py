"""The site's ClientApp: Flower's public API on one side, a Worker on the other.

Every task and every reply passes the porter, whatever the transport.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from knowmine.client.egress.porter import Porter
from knowmine.client.egress.quantisation import Feedback
from knowmine.client.site.worker import Worker
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.wire import codec
from knowmine.shared.wire.changes import Change

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

R = TypeVar("R", Update, Scores, Hello)


def client_app(
    worker_of: Callable[[Context], Worker],
    state: Path | None = None,
    porter_of: Callable[[Context], Porter] | None = None,
) -> ClientApp:
    """A ClientApp that hands each task to the worker of the node's context.

    state: folder for the residual that one update leaves to the next; without it, memory.
    porter_of: gives the porter that checks a node's tasks and replies; by default one without an
    audit log.

    It replies to three kinds of message: `query` introduces the site, `train` improves the global
    model, `evaluate` scores it. The transport turns errors into Flower's error replies.
    """
    app, plain = ClientApp(), Porter()
    the_porter = porter_of or (lambda _: plain)
    feedback: defaultdict[int, Feedback] = defaultdict(lambda: Feedback(state))

    def reply_to(
        message: Message,
        context: Context,
        task: TrainTask | EvaluateTask | None,
        work: Callable[[Worker], R],
        change: Callable[[R], bytes | None] | None = None,
    ) -> Message:
        worker, porter = worker_of(context), the_porter(context)
        porter.confirmed(codec.unpack_confirmation(message.content))
        asked = porter.ask(task, str(context.run_id), worker.manifest)
        try:
            result = work(worker)
        except Exception as error:
            porter.failed(error, asked, worker.manifest)
            raise
        leaving = porter.let_out(result, asked, worker.manifest)
        records = codec.pack_reply(leaving, change(leaving) if change else None)
        if porter.head:
            records[codec.HEAD] = codec.pack_head(porter.head)
        return Message(records, reply_to=message)

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        if codec.is_goodbye(message.content):
            the_porter(context).confirmed(codec.unpack_confirmation(message.content))
            the_porter(context).end(str(context.run_id))
            return Message(RecordDict(), reply_to=message)
        return reply_to(message, context, None, lambda worker: worker.hello())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = codec.unpack_train_task(message.content)
        form, packed = task.plan.transport.update, list[Change]()

        def improve(worker: Worker) -> Update:
            update = worker.improve(task)
            if form == "none":
                return update
            # The porter checks the weights that the server will compute from the change.
            packed.append(feedback[context.node_id].pack(update, task, form))
            return replace(update, weights=packed[0].weights)

        return reply_to(message, context, task, improve, lambda left: _bytes_of(left, packed))

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        task = codec.unpack_evaluate_task(message.content)
        return reply_to(message, context, task, lambda worker: worker.evaluate(task))

    return app


def _bytes_of(leaving: Update, packed: list[Change]) -> bytes | None:
    """The packed change, if the porter let its weights out and put no others in their place."""
    for change in packed:
        if all(leaving.weights[name] is array for name, array in change.weights.items()):
            return change.data
    return None
