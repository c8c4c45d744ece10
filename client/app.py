"""The site's ClientApp: joins round.py to Flower's public API; all that leaves passes egress."""

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from knowmine.client.egress import release
from knowmine.client.round import evaluate, improve
from knowmine.client.site import Site
from knowmine.shared import wire
from knowmine.shared.protocol import Hello, Scores, Update

R = TypeVar("R", Update, Scores, Hello)


def client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp that works for the site that `site_of` finds in a node's context.

    It answers three messages: `query` introduces the site, `train` improves the global model,
    `evaluate` scores it. Errors become Flower's error replies in the transport.
    """
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        site = site_of(context)
        return _answer(site, site.hello(), message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = site_of(context)
        return _answer(site, improve(site, wire.unpack_train_task(message.content)), message)

    @app.evaluate()
    def score(message: Message, context: Context) -> Message:
        site = site_of(context)
        return _answer(site, evaluate(site, wire.unpack_evaluate_task(message.content)), message)

    return app


def _answer(site: Site, reply: R, message: Message) -> Message:
    content: RecordDict = wire.pack_reply(release(reply, manifest=site.manifest))
    return Message(content, reply_to=message)
