"""The site's ClientApp: joins a Worker to Flower's public API; all that leaves passes the porter."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from knowmine.client.egress.porter import Porter
from knowmine.client.egress.quantisation import Feedback
from knowmine.client.site.worker import Worker
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.wire import codec
from knowmine.shared.wire.changes import Change

R = TypeVar("R", Update, Scores, Hello)


def client_app(
    worker_of: Callable[[Context], Worker],
    state: Path | None = None,
    porter_of: Callable[[Context], Porter] | None = None,
) -> ClientApp:
    """A ClientApp whose questions are answered by the worker of a node's context.

    state: folder of what the next update needs of this one; without it that is in memory.
    porter_of: who checks what a node is asked and what it lets out; not set, one without a record.

    It answers three messages: `query` introduces the site, `train` improves the global model,
    `evaluate` scores it. Errors become Flower's error replies in the transport.
    """
    app, plain = ClientApp(), Porter()
    the_porter = porter_of or (lambda _: plain)
    feedback: defaultdict[int, Feedback] = defaultdict(lambda: Feedback(state))

    def answer(
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
            reply = work(worker)
        except Exception as error:
            porter.failed(error, asked, worker.manifest)
            raise
        leaving = porter.let_out(reply, asked, worker.manifest)
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
        return answer(message, context, None, lambda worker: worker.hello())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = codec.unpack_train_task(message.content)
        form, packed = task.plan.transport.update, list[Change]()

        def improve(worker: Worker) -> Update:
            update = worker.improve(task)
            if form == "none":
                return update
            # What the server will make of the change is what leaves: the porter sees that.
            packed.append(feedback[context.node_id].pack(update, task, form))
            return replace(update, weights=packed[0].weights)

        return answer(message, context, task, improve, lambda leaving: _bytes_of(leaving, packed))

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        task = codec.unpack_evaluate_task(message.content)
        return answer(message, context, task, lambda worker: worker.evaluate(task))

    return app


def _bytes_of(leaving: Update, packed: list[Change]) -> bytes | None:
    """The packed change, if its weights are those that the porter let out: it may put others there."""
    for change in packed:
        if all(leaving.weights[name] is array for name, array in change.weights.items()):
            return change.data
    return None
