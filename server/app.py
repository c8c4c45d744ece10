"""The ServerApp: joins rounds.py to Flower's Grid, by its public API alone."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from knowmine.server.rounds import Sites
from knowmine.shared import wire
from knowmine.shared.errors import REASONS, KnowmineError, Refused
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.weights import Weights

R = TypeVar("R")
POLL_S = 0.25
"""Pause between two looks for replies where none is there yet."""


def server_app(run: Callable[[Sites], None]) -> ServerApp:
    """A ServerApp that hands the grid's sites to `run`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(GridSites(grid))

    return app


class SiteFailed(Refused):
    """A site answered with an error."""


class GridSites:
    """The nodes of a Flower grid as `Sites`, by the names that they give themselves."""

    def __init__(self, grid: Grid, reply_timeout_s: float = 24 * 3600) -> None:
        self._grid, self._timeout_s = grid, reply_timeout_s
        self._nodes: dict[str, int] = {}

    def greet(self) -> Iterator[tuple[str, Hello | KnowmineError]]:
        """Ask all nodes who they are; a second node of one name is refused."""
        self._nodes = {}
        questions = {node: RecordDict() for node in self._grid.get_node_ids()}
        for node, reply in self._ask("query", questions):
            hello = self._parsed(reply, wire.unpack_hello)
            if isinstance(hello, KnowmineError):
                yield f"node-{node}", hello
            elif hello.site in self._nodes:
                yield hello.site, Refused(f"two nodes call themselves {hello.site!r}: rename one")
            else:
                self._nodes[hello.site] = node
                yield hello.site, hello

    def hold(self, weights: Weights) -> Weights:
        """The weights as the bytes that go to every node."""
        return wire.PackedWeights(weights)

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterator[tuple[str, Update | KnowmineError]]:
        """Send the tasks and give each update as it comes."""
        return self._answers("train", tasks, wire.unpack_update)

    def evaluate(
        self, tasks: Mapping[str, EvaluateTask]
    ) -> Iterator[tuple[str, Scores | KnowmineError]]:
        """Send the tasks and give each site's scores as they come."""
        return self._answers("evaluate", tasks, wire.unpack_scores)

    def _answers(
        self,
        kind: str,
        tasks: Mapping[str, TrainTask] | Mapping[str, EvaluateTask],
        unpack: Callable[[RecordDict], R],
    ) -> Iterator[tuple[str, R | KnowmineError]]:
        names = {self._nodes[name]: name for name in tasks}
        packed = wire.pack_tasks(tasks)
        records = {node: packed[name] for node, name in names.items()}
        for node, reply in self._ask(kind, records):
            yield names[node], self._parsed(reply, unpack)
            del reply  # before the next one comes

    def _ask(
        self, kind: str, records: Mapping[int, RecordDict]
    ) -> Iterator[tuple[int, Message | None]]:
        """Push one message a node; yield replies one by one, None for a node that stays silent."""
        pending: dict[str, int] = {}
        for node, content in records.items():
            message = Message(content, node, kind, ttl=self._timeout_s)
            for message_id in self._grid.push_messages([message]):
                pending[message_id] = node
        deadline = time.monotonic() + self._timeout_s
        while pending and time.monotonic() < deadline:
            found = False
            # One id a call, so that at most one large reply is in memory.
            for message_id in list(pending):
                for reply in self._grid.pull_messages([message_id]):
                    found = True
                    yield pending.pop(message_id), reply
                    del reply
            if pending and not found:
                time.sleep(POLL_S)
        for node in pending.values():
            yield node, None

    def _parsed(
        self, reply: Message | None, unpack: Callable[[RecordDict], R]
    ) -> R | KnowmineError:
        if reply is None:
            return SiteFailed(f"no answer within {self._timeout_s:.0f} s")
        if reply.has_error():
            reason = reply.error.reason
            return SiteFailed(REASONS.get(reason, reason) or f"error {reply.error.code}")
        try:
            return unpack(reply.content)
        except KnowmineError as error:
            return error
