"""The progress display says where the run is, in a terminal and out of it."""

import io

import pytest
from rich.console import Console

from knowmine.deploy.simulation.pace import Pace
from knowmine.deploy.simulation.progress import (
    Display,
    LineDisplay,
    LiveDisplay,
    make_display,
    rounds_table,
)


class Clock:
    """Time that stands still until it is told."""

    now = 0.0

    def __call__(self):
        return self.now


def record(round_=1, dice=0.5, seconds=30.0, **more):
    mined = {"kept": 120, "dropped": 40, "gate": "on"}
    return {"round": round_, "dice": dice, "seconds": seconds, "mined": mined, **more}


def console(terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, color_system=None)


def written(to):
    return to.file.getvalue()


@pytest.mark.parametrize(
    ("format_", "terminal", "kind"),
    [("json", True, Display), ("text", True, LiveDisplay), ("text", False, LineDisplay)],
)
def test_the_display_suits_its_place(format_, terminal, kind):
    """Silent for json, live in a terminal, lines elsewhere."""
    assert type(make_display(format_, console(terminal))) is kind


def test_a_finished_round_is_one_line():
    """Out of a terminal a round is one line with its facts."""
    out = console()
    with LineDisplay(out, Clock()) as display:
        display.round_started(1, 3)
        display.site_started("lyon")
        display.start("training", 40)
        display.advance(40)
        display.done()
        display.round_done(record(dice=0.8123))

    assert written(out) == (
        "round 1/3  Dice 0.812  mined 120 kept 40 dropped  gate on  30 s  about 1 min 0 s left\n"
    )


def test_a_site_name_is_no_markup():
    """Brackets in a site's name appear as they are."""
    out = console()
    with LineDisplay(out, Clock()) as display:
        display.round_started(1, 1)
        display.round_done(record(refused={"[red]lyon[/]": "NaN"}))

    assert "refused [red]lyon[/]" in written(out)


def test_a_round_without_scores_has_a_dash():
    """Where no site has test images there is no Dice."""
    out = console()
    with LineDisplay(out, Clock()) as display:
        display.round_started(1, 1)
        display.round_done(record(dice=None))

    assert "Dice –" in written(out)


def test_the_live_display_names_round_site_and_step():
    """In a terminal one sees where the run is."""
    out = console(terminal=True)
    with LiveDisplay(out, Clock()) as display:
        display.round_started(2, 5)
        display.site_started("[b]lyon")
        display.start("training", 40)
        display.advance(10)
        display._live.refresh()

    shown = written(out)
    assert all(word in shown for word in ("Round 2 of 5", "[b]lyon", "training", "10/40"))


def test_the_live_display_leaves_the_table():
    """When it is over the finished rounds stay and the bars go."""
    out = console(terminal=True)
    with LiveDisplay(out, Clock()) as display:
        for round_, dice in ((1, 0.5), (2, 0.625)):
            display.round_started(round_, 2)
            display.start("training", 40)
            display.round_done(record(round_, dice))

    left = console()
    left.print(display._render())
    assert "+0.125" in written(left) and "training" not in written(left)


def test_steps_may_come_before_any_round():
    """Fetching weights is shown although no round has begun."""
    out = console(terminal=True)
    with LiveDisplay(out, Clock()) as display:
        display.start("fetching SAM", 0)
        display._live.refresh()

    assert "Preparing" in written(out) and "fetching SAM" in written(out)


def test_the_table_shows_the_last_rounds():
    """A long run does not outgrow the terminal."""
    table = rounds_table([record(round_) for round_ in range(1, 101)])
    out = console()
    out.print(table)

    assert table.row_count == 12 and "100" in written(out) and "  88 " not in written(out)


def test_time_left_follows_later_rounds():
    """The first round is slow, so the second says what is left: 3 rounds of 10 s less 4 s spent."""
    clock = Clock()
    pace = Pace(clock)
    for round_, seconds in ((1, 60.0), (2, 10.0)):
        pace.round_started(round_, 5)
        pace.round_done(seconds)
    pace.round_started(3, 5)
    clock.now += 4

    assert pace.left() == pytest.approx(26)


def test_no_time_left_is_guessed_before_a_round():
    """Nothing is known before the first round is done."""
    pace = Pace(Clock())
    pace.round_started(1, 5)

    assert pace.left() is None
