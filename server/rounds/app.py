"""The ServerApp: implements `Sites` with Flower's Grid, by its public API alone."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from knowmine.server.network.notary import Notary
from knowmine.server.rounds.deadlines import Deadlines
from knowmine.server.rounds.messenger import Board, Messenger, error_of
from knowmine.server.rounds.sites import Sites
from knowmine.server.settings import DeadlineSettings
from knowmine.shared.errors import KnowmineError, Refused
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.trust.countersign import Confirmation, Head
from knowmine.shared.weights import Weights
from knowmine.shared.wire import codec
from knowmine.shared.wire.tensors import PackedWeights

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

R = TypeVar("R")
A = TypeVar("A", Update, Scores)
GOODBYE_S = 10.0


def server_app(run: Callable[[Sites], None]) -> ServerApp:
    """A ServerApp that calls `run` with the grid's sites."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(GridSites(grid))

    return app


class SiteFailed(Refused):
    """A site answered with an error, or not in time."""


class GridSites:
    """The nodes of a Flower grid as `Sites`.

    A node is known by the name that the grid gives it, or else by the one that it gives itself.

    quorum, board, wait, abandon: as `Messenger` explains them.
    notary: confirms answers to their sites; without one no answer is confirmed.
    """

    def __init__(
        self,
        grid: Grid,
        deadlines: Deadlines | None = None,
        *,
        quorum: float = 1.0,
        board: Board | None = None,
        wait: Callable[[float], None] = time.sleep,
        abandon: Callable[[str], None] | None = None,
        notary: Notary | None = None,
    ) -> None:
        self._grid, self._wait, self._notary = grid, wait, notary
        self._messenger = Messenger(
            grid,
            deadlines or Deadlines(DeadlineSettings(first_s=24 * 3600)),
            quorum=quorum,
            board=board,
            wait=wait,
            abandon=abandon,
        )
        self._heads: dict[str, Head] = {}
        self._nodes: dict[str, int] = {}
        self._greeted: dict[int, str] = {}

    def greet(self) -> Iterator[tuple[str, Hello | KnowmineError]]:
        """Ask each new node, and each node with a new process, to introduce itself.

        A second node of one name is refused.
        """
        nodes = {node.node_id: node for node in self._grid.get_nodes()}
        fresh = [n for n, node in nodes.items() if self._greeted.get(n) != node.last_activated_at]
        named = {node: nodes[node].name or f"node-{node}" for node in fresh}
        records = {node: RecordDict() for node in fresh}
        for node, reply in self._messenger.ask("query", records, named):
            hello = _parsed(reply, codec.unpack_hello)
            known_as = nodes[node].name
            if not isinstance(reply, str):  # a silent one is asked again
                self._greeted[node] = nodes[node].last_activated_at
            if isinstance(hello, KnowmineError):
                yield named[node], hello
            elif known_as and hello.site != known_as:
                yield known_as, Refused(f"it is admitted as {known_as!r} and says {hello.site!r}")
            elif self._nodes.get(hello.site, node) in set(nodes) - {node}:
                yield hello.site, Refused(f"two nodes call themselves {hello.site!r}: rename one")
            else:
                self._nodes[hello.site] = node
                yield hello.site, hello

    def here(self) -> set[str]:
        """The introduced sites that can be reached now."""
        reached = {node.node_id for node in self._grid.get_nodes()}
        return {name for name, node in self._nodes.items() if node in reached}

    def wait(self, seconds: float) -> None:
        """Return when a site may have come or gone, after `seconds` at the latest."""
        self._wait(seconds)

    def hold(self, weights: Weights) -> Weights:
        """The weights as the bytes that are sent to every node."""
        return PackedWeights(weights)

    def heads(self) -> Mapping[str, Head]:
        """The last checkpoint of each site's audit log, for the sites that keep one."""
        return self._heads

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterator[tuple[str, Update | KnowmineError]]:
        """Send the tasks and yield each update as it comes."""
        return self._answers(
            "train",
            tasks,
            lambda name, records: self._with_head(
                name, records, codec.unpack_update(records, tasks[name])
            ),
        )

    def evaluate(
        self, tasks: Mapping[str, EvaluateTask]
    ) -> Iterator[tuple[str, Scores | KnowmineError]]:
        """Send the tasks and yield each site's scores as they come."""
        return self._answers(
            "evaluate",
            tasks,
            lambda name, records: self._with_head(name, records, codec.unpack_scores(records)),
        )

    def dismiss(self, expected: Collection[str] = (), wait_s: float = 0.0) -> None:
        """Tell the sites that the run is over; a site that misses this keeps asking for tasks.

        wait_s: time for the `expected` sites to come if they are not here yet.
        """
        until = time.monotonic() + wait_s
        while True:
            nodes = {node.node_id: node.name for node in self._grid.get_nodes()}
            left = until - time.monotonic()
            if left <= 0 or set(expected) <= {*nodes.values()}:
                break
            self._wait(min(left, 1.0))
        known = {node: name for name, node in self._nodes.items() if node in nodes}
        confirmed = self._confirmed(known.values())
        goodbye = {n: codec.pack_goodbye(confirmed.get(known.get(n, ""))) for n in nodes}
        # Quick answers do not hurry the other sites: one that misses the goodbye asks for ever.
        for _ in self._messenger.ask("query", goodbye, nodes, at_most_s=GOODBYE_S, hurry=False):
            pass

    def _answers(
        self,
        kind: str,
        tasks: Mapping[str, TrainTask] | Mapping[str, EvaluateTask],
        unpack: Callable[[str, RecordDict], R],
    ) -> Iterator[tuple[str, R | KnowmineError]]:
        names = {self._nodes[name]: name for name in tasks}
        packed = codec.pack_tasks(tasks, self._confirmed(tasks))
        records = {node: packed[name] for node, name in names.items()}
        for node, reply in self._messenger.ask(kind, records, names, pace=_pace(kind, tasks)):
            yield names[node], _parsed(reply, partial(unpack, names[node]))
            del reply  # before the next one comes

    def _with_head(self, name: str, records: RecordDict, answer: A) -> A:
        """The answer; the checkpoint that came with it is noted, and confirmed to its site."""
        if head := codec.unpack_head(records):
            self._heads[name] = head
            if self._notary:
                self._notary.confirm(name, answer, head)
        return answer

    def _confirmed(self, names: Iterable[str]) -> dict[str, Confirmation]:
        if self._notary is None:
            return {}
        newest = {name: self._notary.newest(name) for name in names}
        return {name: signed for name, signed in newest.items() if signed}


def _parsed(reply: Message | str, unpack: Callable[[RecordDict], R]) -> R | KnowmineError:
    if isinstance(reply, str):
        return SiteFailed(reply)
    if reply.has_error():
        return SiteFailed(error_of(reply))
    try:
        return unpack(reply.content)
    except KnowmineError as error:
        return error
    except Exception as error:  # noqa: BLE001 - no answer of one site ends the run of all
        return Refused(f"not an answer: {type(error).__name__}")


def _pace(kind: str, tasks: Mapping[str, TrainTask] | Mapping[str, EvaluateTask]) -> str:
    """Group tasks whose times can be compared: a mining round takes much longer than a warm-up.

    Without this, a site's deadline in its first round with SAM would follow from rounds without.
    """
    mines = any(
        isinstance(task, TrainTask) and task.round > task.plan.mining.warm_up(task.rounds)
        for task in tasks.values()
    )
    return "mine" if mines else kind
