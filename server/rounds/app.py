"""The ServerApp: joins rounds.py to Flower's Grid, by its public API alone."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from knowmine.server.network.notary import Notary
from knowmine.server.rounds.deadlines import Deadlines
from knowmine.server.rounds.rounds import Sites
from knowmine.server.settings import DeadlineSettings
from knowmine.shared.errors import REASONS, KnowmineError, Refused
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.trust.countersign import Confirmation, Head
from knowmine.shared.weights import Weights
from knowmine.shared.wire import codec

R = TypeVar("R")
A = TypeVar("A", Update, Scores)
POLL_S = 0.25
"""Pause between two looks for replies where none is there yet."""
TTL_MARGIN_S = 3600.0
"""A message outlives its deadline by this, so that clocks that differ do not end it."""
GOODBYE_S = 10.0
NODE_UNAVAILABLE = 5
"""Flower's code for a question whose node went offline."""


def server_app(run: Callable[[Sites], None]) -> ServerApp:
    """A ServerApp that hands the grid's sites to `run`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run(GridSites(grid))

    return app


class SiteFailed(Refused):
    """A site answered with an error, or not in time."""


class Board(Protocol):
    """Someone who wants to know what each site is about."""

    def asked(self, site: str, kind: str, expected_s: float | None) -> None:
        """The site was given a task that will probably take `expected_s`."""

    def answered(self, site: str, kind: str, seconds: float, error: str) -> None:
        """Its answer is here, or its time is over; `error` is empty where all is well."""


@dataclass
class _Asked:
    """A question that a node has not answered yet. since: of the node's process it went to."""

    node: int
    content: RecordDict
    since: str
    started: float
    deadline_s: float
    message_id: str = ""


class GridSites:
    """The nodes of a Flower grid as `Sites`.

    A node is known by the name that the grid gives it, else by the one it gives itself. A node
    whose process started anew after it was asked is asked again.

    wait: sleeps until something may have happened, at most so many seconds. abandon: tells the
    grid that nobody waits for a message any more. notary: confirms answers to their sites; without
    one none is confirmed.
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
        self._grid, self._quorum, self._board = grid, quorum, board
        self._deadlines = deadlines or Deadlines(DeadlineSettings(first_s=24 * 3600))
        self._wait, self._abandon, self._notary = wait, abandon, notary
        self._heads: dict[str, Head] = {}
        self._nodes: dict[str, int] = {}
        self._greeted: dict[int, str] = {}

    def greet(self) -> Iterator[tuple[str, Hello | KnowmineError]]:
        """Ask the nodes that are new, or whose process is, who they are.

        A second node of one name is refused.
        """
        nodes = {node.node_id: node for node in self._grid.get_nodes()}
        fresh = [n for n, node in nodes.items() if self._greeted.get(n) != node.last_activated_at]
        named = {node: nodes[node].name or f"node-{node}" for node in fresh}
        for node, reply in self._ask("query", {node: RecordDict() for node in fresh}, named):
            hello = self._parsed(reply, codec.unpack_hello)
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
        """Return when a site may have come or gone, at the latest after `seconds`."""
        self._wait(seconds)

    def hold(self, weights: Weights) -> Weights:
        """The weights as the bytes that go to every node."""
        return codec.PackedWeights(weights)

    def heads(self) -> Mapping[str, Head]:
        """Where each site's record stood at its last answer, of those that keep one."""
        return self._heads

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterator[tuple[str, Update | KnowmineError]]:
        """Send the tasks and give each update as it comes."""
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
        """Send the tasks and give each site's scores as they come."""
        return self._answers(
            "evaluate",
            tasks,
            lambda name, records: self._with_head(name, records, codec.unpack_scores(records)),
        )

    def dismiss(self, expected: Collection[str] = (), wait_s: float = 0.0) -> None:
        """Tell the sites that the run is over; those that do not hear it go on asking.

        wait_s: time for the `expected` to come, where they are not here yet.
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
        # One that answers at once hurries nobody: who does not hear it would go on asking for ever.
        for _ in self._ask("query", goodbye, nodes, at_most_s=GOODBYE_S, hurry=False):
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
        for node, reply in self._ask(kind, records, names, pace=_pace(kind, tasks)):
            yield names[node], self._parsed(reply, partial(unpack, names[node]))
            del reply  # before the next one comes

    def _with_head(self, name: str, records: RecordDict, answer: A) -> A:
        """The answer, with what its site says of its record noted and confirmed."""
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

    def _ask(
        self,
        kind: str,
        records: Mapping[int, RecordDict],
        names: Mapping[int, str],
        at_most_s: float = math.inf,
        pace: str = "",
        hurry: bool = True,
    ) -> Iterator[tuple[int, Message | str]]:
        """Push one message a node; yield replies one by one.

        hurry: once a quorum has answered, the others are waited for as their pace lets expect. A node that stays silent gives a text that says how long it was waited for.
        """
        processes = self._processes()
        pending = []
        for node, content in records.items():
            deadline = min(self._deadlines.of(names[node], pace or kind), at_most_s)
            asked = _Asked(node, content, processes.get(node, ""), time.monotonic(), deadline)
            self._push(asked, kind)
            pending.append(asked)
            self._tell_asked(names[node], kind, pace or kind)
        wanted, took = math.ceil(self._quorum * len(pending)), list[float]()
        while pending:
            found = False
            # One id a call, so that at most one large reply is in memory.
            for asked in list(pending):
                for reply in self._pulled(asked)[:1]:
                    if _is_gone(reply):
                        # Flower lost the question with the node; it is asked again on its return.
                        asked.since = "gone"
                        continue
                    found = True
                    pending.remove(asked)
                    seconds = time.monotonic() - asked.started
                    if not reply.has_error():  # a quick failure hurries nobody
                        took.append(seconds)
                        self._deadlines.took(names[asked.node], pace or kind, seconds)
                    self._tell_answered(names[asked.node], kind, seconds, reply)
                    yield asked.node, reply
                    del reply
            if found or not pending:
                continue
            processes = self._processes()
            for asked in list(pending):
                waited = time.monotonic() - asked.started
                limit = asked.deadline_s
                if hurry and len(took) >= wanted:
                    limit = min(limit, self._deadlines.of_the_last(took or [0.0]))
                if waited > limit:
                    pending.remove(asked)
                    self._give_up(asked)
                    late = f"no answer within {waited:.0f} s"
                    self._tell_answered(names[asked.node], kind, waited, late)
                    yield asked.node, late
                elif asked.node not in processes and kind == "query":
                    pending.remove(asked)
                    self._give_up(asked)
                    yield asked.node, "it went away before it introduced itself"
                elif processes.get(asked.node, asked.since) != asked.since:
                    self._give_up(asked)
                    asked.since = processes[asked.node]
                    self._push(asked, kind)
            self._wait(POLL_S)

    def _pulled(self, asked: _Asked) -> list[Message]:
        if not asked.message_id or asked.since == "gone":
            return []
        return list(self._grid.pull_messages([asked.message_id]))

    def _push(self, asked: _Asked, kind: str) -> None:
        ttl = asked.deadline_s + TTL_MARGIN_S
        message = Message(asked.content, asked.node, kind, ttl=ttl)
        (asked.message_id,) = [*self._grid.push_messages([message])] or [""]

    def _give_up(self, asked: _Asked) -> None:
        if self._abandon and asked.message_id:
            self._abandon(asked.message_id)

    def _processes(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _tell_asked(self, site: str, kind: str, pace: str) -> None:
        if self._board:
            self._board.asked(site, kind, self._deadlines.expected(site, pace))

    def _tell_answered(self, site: str, kind: str, seconds: float, reply: Message | str) -> None:
        if self._board:
            error = reply if isinstance(reply, str) else _error_of(reply)
            self._board.answered(site, kind, seconds, error)

    def _parsed(self, reply: Message | str, unpack: Callable[[RecordDict], R]) -> R | KnowmineError:
        if isinstance(reply, str):
            return SiteFailed(reply)
        if reply.has_error():
            return SiteFailed(_error_of(reply))
        try:
            return unpack(reply.content)
        except KnowmineError as error:
            return error
        except Exception as error:  # noqa: BLE001 - no answer of one site ends the run of all
            return Refused(f"not an answer: {type(error).__name__}")


def _error_of(reply: Message) -> str:
    if not reply.has_error():
        return ""
    reason = reply.error.reason or ""
    return REASONS.get(reason, reason) or f"error {reply.error.code}"


def _pace(kind: str, tasks: Mapping[str, TrainTask] | Mapping[str, EvaluateTask]) -> str:
    """Tasks whose times can be compared: a round that mines takes many times a warm-up round.

    Otherwise a site's deadline in its first round with SAM would follow from rounds without.
    """
    mines = any(
        isinstance(task, TrainTask) and task.round > task.plan.mining.warm_up(task.rounds)
        for task in tasks.values()
    )
    return "mine" if mines else kind


def _is_gone(reply: Message) -> bool:
    return reply.has_error() and reply.error.code == NODE_UNAVAILABLE
