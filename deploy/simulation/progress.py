"""Show a person how far a simulation is: live in a terminal, one line a round elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

ROWS = 12
"""Finished rounds that the live table shows."""

GATE_STYLES = {
    "on": "green",
    "off": "yellow",
    "mixed": "cyan",
    "unjudged": "yellow",
    "borrowed": "cyan",
}


def make_display(format_: str, console: Console | None = None) -> "Display":
    """The display that suits: silent for json, live in a terminal, lines in a file or a pipe.

    Use it as a context manager. It has the hooks of `shared.log.Progress` and of
    `server.rounds.Watch`, and `site_started`.
    """
    if format_ == "json":
        return Display()
    console = console or Console(file=sys.stdout)
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


class Display:
    """Shows nothing. The others override what they show."""

    def start(self, step: str, total: int) -> None:
        """A step of `total` units begins."""

    def advance(self, n: int = 1) -> None:
        """`n` more units of the step are done."""

    def done(self) -> None:
        """The step is over."""

    def round_started(self, round_: int, rounds: int) -> None:
        """Round `round_` of `rounds` begins."""

    def site_started(self, site: str) -> None:
        """The steps that follow are this site's."""

    def round_done(self, record: Mapping[str, Any]) -> None:
        """A round was written; `record` is what `RUN/rounds/*.json` holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LineDisplay(Display):
    """One line for each finished round."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._pace = Pace(clock)

    def round_started(self, round_: int, rounds: int) -> None:
        """Only the clock starts."""
        self._pace.round_started(round_, rounds)

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Print the round's line."""
        self._pace.round_done(record["seconds"])
        mined = record["mined"]
        parts = [
            f"round {record['round']}/{self._pace.rounds}",
            f"Dice {_score(record['dice'])}",
            f"mined {mined['kept']} kept {mined['dropped']} dropped",
            f"gate {mined['gate']}",
            duration(record["seconds"]),
        ]
        if record.get("refused"):
            parts.append(f"refused {', '.join(sorted(record['refused']))}")
        left = self._pace.left()
        if left is not None and self._pace.unfinished:
            parts.append(f"about {duration(left)} left")
        self._console.print("  ".join(parts), markup=False, highlight=False, soft_wrap=True)


class LiveDisplay(Display):
    """A table of finished rounds above the bars of the run and of the step under way."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._pace = Pace(clock)
        self._records: list[Mapping[str, Any]] = []
        self._site, self._over = "", False
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, style="bold"),
            TextColumn("{task.fields[what]}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
        )
        self._step = self._bars.add_task("", total=None, what="", visible=False)
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=8, transient=False
        )

    def start(self, step: str, total: int) -> None:
        """Show the step's bar from its beginning."""
        self._bars.reset(
            self._step, description=self._site, what=step, total=max(total, 1), visible=True
        )

    def advance(self, n: int = 1) -> None:
        """Move the step's bar."""
        self._bars.advance(self._step, n)

    def done(self) -> None:
        """Take the step's bar away."""
        self._bars.update(self._step, visible=False)

    def round_started(self, round_: int, rounds: int) -> None:
        """Show the round in the headline."""
        self._pace.round_started(round_, rounds)

    def site_started(self, site: str) -> None:
        """Name the site in front of its steps."""
        self._site = site

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Add the round to the table."""
        self._pace.round_done(record["seconds"])
        self._records.append(record)
        self._site = ""

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self.done()
        self._live.stop()

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._records:
            parts.append(rounds_table(self._records))
        if not self._over:
            parts += [self._headline(), self._bars]
        return Group(*parts)

    def _headline(self) -> Text:
        if not self._pace.rounds:
            return Text("Getting ready", style="bold")
        line = Text(f"Round {self._pace.round} of {self._pace.rounds}", style="bold")
        left = self._pace.left()
        if left is not None:
            line.append(f"  about {duration(left)} left", style="dim")
        return line


class Pace:
    """How long the rest of the run will take, at the pace of the rounds so far."""

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
        """Note which round it is and when it began."""
        self.round, self.rounds = round_, rounds
        self._started, self._running = self._clock(), True

    def round_done(self, seconds: float) -> None:
        """Note how long the round took."""
        self._seconds.append(seconds)
        self._running = False

    def left(self) -> float | None:
        """Seconds to the end of the run; None before a round is done.

        The first round also computes embeddings, so later rounds count when there are any.
        """
        if not self._seconds:
            return None
        known = self._seconds[1:] or self._seconds
        spent = self._clock() - self._started if self._running else 0.0
        return max(0.0, sum(known) / len(known) * self.unfinished - spent)


def rounds_table(records: list[Mapping[str, Any]]) -> Table:
    """The last finished rounds, a row each, with the change of Dice from the round before."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("round", "Dice", "", "kept", "dropped"):
        table.add_column(name, justify="right")
    table.add_column("gate")
    table.add_column("time", justify="right")
    table.add_column("")
    before = [None, *records[:-1]]
    for previous, record in list(zip(before, records, strict=True))[-ROWS:]:
        mined = record["mined"]
        refused = sorted(record.get("refused", {}))
        table.add_row(
            str(record["round"]),
            Text(_score(record["dice"]), style="bold"),
            _change(previous, record),
            str(mined["kept"]),
            str(mined["dropped"]),
            Text(mined["gate"], style=GATE_STYLES.get(mined["gate"], "dim")),
            duration(record["seconds"]),
            Text(f"refused: {', '.join(refused)}" if refused else "", style="red"),
        )
    return table


def duration(seconds: float) -> str:
    """A length of time as people say it.

    >>> duration(8.4), duration(75), duration(7530)
    ('8 s', '1 min 15 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _change(before: Mapping[str, Any] | None, record: Mapping[str, Any]) -> Text:
    if before is None or before["dice"] is None or record["dice"] is None:
        return Text("")
    change = record["dice"] - before["dice"]
    return Text(f"{change:+.3f}", style="green" if change >= 0 else "red")
