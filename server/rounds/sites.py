"""What the rounds need of the sites and of those who watch the run, however they are reached."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from knowmine.shared.errors import KnowmineError
from knowmine.shared.protocol import EvaluateTask, Hello, Scores, TrainTask, Update
from knowmine.shared.trust.countersign import Head
from knowmine.shared.weights import Weights


class Sites(Protocol):
    """The sites of a federation.

    Replies come one at a time, as they arrive. A site that fails or stays silent yields an error
    in place of its reply and never stops the others.
    """

    def greet(self) -> Iterable[tuple[str, Hello | KnowmineError]]:
        """Ask each site that has joined since the last call to introduce itself.

        The names come from the transport.
        """

    def here(self) -> set[str]:
        """The sites that have introduced themselves and can be reached now."""

    def wait(self, seconds: float) -> None:
        """Return when a site may have come or gone, after `seconds` at the latest."""

    def hold(self, weights: Weights) -> Weights:
        """The same weights in the form in which they are sent, so that they are in memory once."""

    def heads(self) -> Mapping[str, Head]:
        """The last checkpoint of each site's audit log, for the sites that keep one."""

    def train(self, tasks: Mapping[str, TrainTask]) -> Iterable[tuple[str, Update | KnowmineError]]:
        """Send each named site its task and yield the updates."""

    def evaluate(
        self, tasks: Mapping[str, EvaluateTask]
    ) -> Iterable[tuple[str, Scores | KnowmineError]]:
        """Send each named site the weights to score and yield the scores."""


class Watch(Protocol):
    """Someone who watches the run."""

    def round_started(self, round_: int, rounds: int) -> None:
        """Round `round_` of `rounds` begins."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was committed; `record` is the content of its file in `RUN/rounds/`."""
