"""Show the progress of a simulation: live in a terminal, one line per round elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from knowmine.deploy.report.units import duration
from knowmine.deploy.simulation.pace import Pace

ROWS = 12
"""Number of finished rounds in the live table."""

GATE_STYLES = {
    "on": "green",
    "off": "yellow",
    "mixed": "cyan",
    "uncalibrated": "yellow",
    "pooled": "cyan",
}


def make_display(format_: str, console: Console | None = None) -> "Display":
    """A display: silent for json, live in a terminal, lines in a file or a pipe.

    Use it as a context manager.
    """
    if format_ == "json":
        return Display()
    console = console or Console(file=sys.stdout)
    return LiveDisplay(console) if console.is_terminal else LineDisplay(console)


class Display:
    """Shows nothing; the other displays override what they show.

    It is a `shared.log.Progress` and a `server.rounds.sites.Watch`, and `site_started` says whose
    steps follow.
    """

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
        """A round was committed; `record` is the content of its `RUN/rounds/*.json`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LineDisplay(Display):
    """Prints a line for each finished round."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._pace = Pace(clock)

    def round_started(self, round_: int, rounds: int) -> None:
        """Start the clock."""
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
    """Shows a table of finished rounds, and below it the bars of the run and of its current step."""

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
        """Show the step's bar, empty."""
        self._bars.reset(
            self._step, description=self._site, what=step, total=max(total, 1), visible=True
        )

    def advance(self, n: int = 1) -> None:
        """Move the step's bar."""
        self._bars.advance(self._step, n)

    def done(self) -> None:
        """Hide the step's bar."""
        self._bars.update(self._step, visible=False)

    def round_started(self, round_: int, rounds: int) -> None:
        """Show the round in the headline."""
        self._pace.round_started(round_, rounds)

    def site_started(self, site: str) -> None:
        """Show the site's name before its steps."""
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
            return Text("Preparing", style="bold")
        line = Text(f"Round {self._pace.round} of {self._pace.rounds}", style="bold")
        left = self._pace.left()
        if left is not None:
            line.append(f"  about {duration(left)} left", style="dim")
        return line


def rounds_table(records: list[Mapping[str, Any]]) -> Table:
    """The last finished rounds, one per row, with the change of Dice since the round before."""
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


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _change(before: Mapping[str, Any] | None, record: Mapping[str, Any]) -> Text:
    if before is None or before["dice"] is None or record["dice"] is None:
        return Text("")
    change = record["dice"] - before["dice"]
    return Text(f"{change:+.3f}", style="green" if change >= 0 else "red")
