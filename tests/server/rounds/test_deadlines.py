"""How long a site may take, by what was measured."""

import pytest

from knowmine.server.rounds.deadlines import REMEMBERED, Deadlines
from knowmine.server.settings import DeadlineSettings


@pytest.fixture
def deadlines():
    return Deadlines(DeadlineSettings(first_s=3600, factor=3, others_factor=10, at_least_s=60))


def test_an_unknown_site_gets_the_first_deadline(deadlines):
    """Nothing is known of its speed."""
    assert (deadlines.of("lyon", "train"), deadlines.expected("lyon", "train")) == (3600, None)


def test_a_known_site_gets_three_times_its_slowest(deadlines):
    """Of what is remembered."""
    for seconds in (100, 200, 50):
        deadlines.took("lyon", "train", seconds)
    assert (deadlines.of("lyon", "train"), deadlines.expected("lyon", "train")) == (600, 100)


def test_a_fast_site_gets_the_least(deadlines):
    """A second of the network is not held against it."""
    deadlines.took("lyon", "train", 0.1)
    assert deadlines.of("lyon", "train") == 60


def test_old_speeds_are_forgotten(deadlines):
    """One slow day does not count for ever."""
    deadlines.took("lyon", "train", 5000)
    for _ in range(REMEMBERED):
        deadlines.took("lyon", "train", 100)
    assert deadlines.of("lyon", "train") == 300


def test_sites_and_tasks_are_apart(deadlines):
    """Scoring is faster than training."""
    deadlines.took("lyon", "train", 100)
    assert deadlines.of("lyon", "evaluate") == deadlines.of("oslo", "train") == 3600


def test_with_the_quorum_the_last_get_ten_times_the_slowest(deadlines):
    """A site 50 times slower is left out."""
    assert deadlines.of_the_last([10, 20]) == 200


def test_the_last_get_the_least_too(deadlines):
    """However fast the others were."""
    assert deadlines.of_the_last([0.1]) == 60
