"""Send one Flower message to each node, and yield the replies as they come.

A node that is silent for too long yields a text in place of its reply. A node whose process was
started again after it got its message gets the message again.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from knowmine.server.rounds.deadlines import Deadlines
from knowmine.shared.errors import REASONS
from knowmine.shared.wire import quiet_flower  # noqa: F401 - before Flower is imported

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

POLL_S = 0.25
"""Pause between two looks for replies if the first found none."""
TTL_MARGIN_S = 3600.0
"""A message stays valid this much longer than its deadline, so that clocks may differ."""
NODE_UNAVAILABLE = 5
"""Flower's error code for a message whose node went offline."""


class Board(Protocol):
    """Someone who wants to know what each site is working on."""

    def asked(self, site: str, kind: str, expected_s: float | None) -> None:
        """The site was given a task that will probably take `expected_s`."""

    def answered(self, site: str, kind: str, seconds: float, error: str) -> None:
        """Its reply is here, or its time is over; `error` is empty if all is well."""


@dataclass
class _Sent:
    """A message that its node has not answered yet.

    process: identifies the node's process that got it. lost: it must be sent again.
    """

    node: int
    content: RecordDict
    process: str
    started: float
    deadline_s: float
    message_id: str = ""
    lost: bool = False


class Messenger:
    """Messages to the nodes of a Flower grid.

    quorum: fraction of the replies after which the other sites get less time.
    wait: sleeps until something may have happened, at most the given seconds.
    abandon: tells the grid that a message's reply is no longer wanted.
    """

    def __init__(
        self,
        grid: Grid,
        deadlines: Deadlines,
        *,
        quorum: float,
        board: Board | None,
        wait: Callable[[float], None],
        abandon: Callable[[str], None] | None,
    ) -> None:
        self._grid, self._deadlines, self._quorum = grid, deadlines, quorum
        self._board, self._wait, self._abandon = board, wait, abandon

    def ask(
        self,
        kind: str,
        records: Mapping[int, RecordDict],
        names: Mapping[int, str],
        at_most_s: float = math.inf,
        pace: str = "",
        hurry: bool = True,
    ) -> Iterator[tuple[int, Message | str]]:
        """Push one message to each node and yield the replies one by one.

        pace: groups tasks whose times can be compared; `kind` by default.
        hurry: once a quorum has replied, the others get only the time that its pace suggests.
        A silent node yields a text that says how long the server waited.
        """
        pace = pace or kind
        pending = self._push_all(kind, records, names, at_most_s, pace)
        wanted, took = math.ceil(self._quorum * len(pending)), list[float]()
        while pending:
            found = False
            # One id a call, so that at most one large reply is in memory.
            for sent in list(pending):
                for reply in self._pulled(sent)[:1]:
                    if is_gone(reply):
                        # Flower lost the message with the node, which gets it again on its return.
                        sent.lost = True
                        continue
                    found = True
                    pending.remove(sent)
                    seconds = time.monotonic() - sent.started
                    if not reply.has_error():  # a quick failure hurries no other site
                        took.append(seconds)
                        self._deadlines.took(names[sent.node], pace, seconds)
                    self._tell_answered(names[sent.node], kind, seconds, error_of(reply))
                    yield sent.node, reply
                    del reply
            if found or not pending:
                continue
            hurried = hurry and len(took) >= wanted
            limit_s = self._deadlines.of_the_last(took or [0.0]) if hurried else math.inf
            processes = self._processes()
            for sent in list(pending):
                waited = time.monotonic() - sent.started
                if waited > min(sent.deadline_s, limit_s):
                    pending.remove(sent)
                    self._give_up(sent)
                    late = f"no answer within {waited:.0f} s"
                    self._tell_answered(names[sent.node], kind, waited, late)
                    yield sent.node, late
                elif sent.node not in processes and kind == "query":
                    pending.remove(sent)
                    self._give_up(sent)
                    yield sent.node, "it went away before it introduced itself"
                elif sent.node in processes and (sent.lost or processes[sent.node] != sent.process):
                    self._give_up(sent)
                    sent.process, sent.lost = processes[sent.node], False
                    self._push(sent, kind)
            self._wait(POLL_S)

    def _push_all(
        self,
        kind: str,
        records: Mapping[int, RecordDict],
        names: Mapping[int, str],
        at_most_s: float,
        pace: str,
    ) -> list[_Sent]:
        processes = self._processes()
        pending = []
        for node, content in records.items():
            site = names[node]
            deadline = min(self._deadlines.of(site, pace), at_most_s)
            sent = _Sent(node, content, processes.get(node, ""), time.monotonic(), deadline)
            self._push(sent, kind)
            pending.append(sent)
            if self._board:
                self._board.asked(site, kind, self._deadlines.expected(site, pace))
        return pending

    def _push(self, sent: _Sent, kind: str) -> None:
        ttl = sent.deadline_s + TTL_MARGIN_S
        message = Message(sent.content, sent.node, kind, ttl=ttl)
        (sent.message_id,) = [*self._grid.push_messages([message])] or [""]

    def _pulled(self, sent: _Sent) -> list[Message]:
        if not sent.message_id or sent.lost:
            return []
        return list(self._grid.pull_messages([sent.message_id]))

    def _give_up(self, sent: _Sent) -> None:
        if self._abandon and sent.message_id:
            self._abandon(sent.message_id)

    def _processes(self) -> dict[int, str]:
        return {node.node_id: node.last_activated_at for node in self._grid.get_nodes()}

    def _tell_answered(self, site: str, kind: str, seconds: float, error: str) -> None:
        if self._board:
            self._board.answered(site, kind, seconds, error)


def error_of(reply: Message) -> str:
    """What an error reply says, in words of ours; empty for any other reply."""
    if not reply.has_error():
        return ""
    reason = reply.error.reason or ""
    return REASONS.get(reason, reason) or f"error {reply.error.code}"


def is_gone(reply: Message) -> bool:
    """Whether the node went offline before it answered."""
    return bool(reply.has_error() and reply.error.code == NODE_UNAVAILABLE)
