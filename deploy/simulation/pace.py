"""Estimate how long the rest of a run takes."""

from collections.abc import Callable


class Pace:
    """Estimates the rest of a run from the rounds so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds: list[float] = []
        self._started = clock()
        self._running = False
        self.round = self.rounds = 0

    @property
    def unfinished(self) -> int:
        """Rounds that are not finished yet."""
        return self.rounds - self.round + int(self._running)

    def round_started(self, round_: int, rounds: int) -> None:
        """Note the round's number and when it began."""
        self.round, self.rounds = round_, rounds
        self._started, self._running = self._clock(), True

    def round_done(self, seconds: float) -> None:
        """Note how long the round took."""
        self._seconds.append(seconds)
        self._running = False

    def left(self) -> float | None:
        """Seconds to the end of the run; None before a round is done.

        The first round is left out if there are later ones, because it also encodes images.
        """
        if not self._seconds:
            return None
        known = self._seconds[1:] or self._seconds
        spent = self._clock() - self._started if self._running else 0.0
        return max(0.0, sum(known) / len(known) * self.unfinished - spent)
