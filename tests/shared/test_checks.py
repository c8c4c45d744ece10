"""The single checks: what they give back, and what they let a stranger write in a message."""

import numpy as np
import pytest

from knowmine.shared.checks import Door, shown
from knowmine.shared.errors import UpdateRefused

DOOR = Door("site 'lyon' sent", UpdateRefused)


class Hostile:
    """An object that would speak for itself."""

    def __repr__(self) -> str:
        raise AssertionError("nothing of a hostile value may run")


def test_a_hostile_value_is_named_by_its_type():
    """Its own words are never asked for."""
    assert shown(Hostile()) == "a Hostile"


def test_a_long_text_is_cut():
    """A stranger cannot fill the log."""
    assert len(shown("x" * 10_000)) < 60


def test_a_text_cannot_break_a_line():
    """Control characters are escaped."""
    assert "\n" not in shown("a\nb")


def test_a_half_precision_number_is_compared_in_full():
    """A bound that float16 cannot hold still bounds."""
    assert DOOR.number("loss", np.float16(3), low=0, high=1e9) == 3.0


@pytest.mark.parametrize("value", [-0.001, 1.001])
def test_slack_is_for_rounding_alone(value):
    """What is wrong by more than float32 rounding is wrong, however wide the other bound."""
    with pytest.raises(UpdateRefused, match="sent share as"):
        DOOR.number("share", value, low=0, high=1)


def test_many_odd_names_are_summed_up():
    """The first three speak for the rest."""
    with pytest.raises(UpdateRefused, match="'0', '1', '2' and 7 more"):
        DOOR.names({str(n): None for n in range(10)}, {})
