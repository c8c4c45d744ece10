"""One process works for a site; these tests say who may take over, and when."""

import pytest

from knowmine.server.network.presence import AnotherIsHere, NotHere, Presence


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def presence(clock):
    """Silence of ten seconds counts; lyon's process is called one."""
    made = Presence(10, clock)
    made.arrive("lyon", "one", "0.1")
    return made


def test_a_site_with_a_recent_request_is_here(presence, clock):
    """Up to the silence that counts."""
    clock.now += 10
    assert list(presence.here()) == ["lyon"]


def test_a_silent_site_is_gone(presence, clock):
    """After it."""
    clock.now += 10.1
    assert presence.here() == {}


def test_requests_keep_a_site_here(presence, clock):
    """The silence is counted from the last one."""
    clock.now += 9
    presence.note_request("lyon", "one")
    clock.now += 9
    assert list(presence.here()) == ["lyon"]


def test_a_process_that_never_joined_has_to(presence):
    """A restarted server knows no process."""
    with pytest.raises(NotHere, match="'oslo' has to join first"):
        presence.note_request("oslo", "one")


def test_a_second_process_is_refused_while_the_first_is_here(presence):
    """A copy of the keys on another machine."""
    with pytest.raises(AnotherIsHere, match="another client of site 'lyon' is connected since"):
        presence.check("lyon", "two", "")


def test_a_second_process_may_come_when_the_first_is_silent(presence, clock):
    """It was killed."""
    clock.now += 11
    presence.check("lyon", "two", "")


def test_a_successor_may_come_at_once(presence):
    """It knows a name that only the first one's machine knows."""
    presence.check("lyon", "two", "one")


def test_the_same_process_may_join_again(presence):
    """Its connection broke."""
    presence.check("lyon", "one", "")


def test_the_process_that_was_replaced_is_refused(presence):
    """Only one may run."""
    presence.arrive("lyon", "two")
    with pytest.raises(AnotherIsHere, match="took over"):
        presence.note_request("lyon", "one")


def test_a_process_that_left_is_gone_at_once(presence):
    """And another may come."""
    presence.leave("lyon", "one")
    presence.check("lyon", "two", "")
    assert presence.here() == {}


def test_a_process_that_left_has_to_join_again(presence):
    """A goodbye counts."""
    presence.leave("lyon", "one")
    with pytest.raises(NotHere):
        presence.note_request("lyon", "one")


def test_the_goodbye_of_one_that_was_replaced_changes_nothing(presence):
    """It came late."""
    presence.arrive("lyon", "two")
    presence.leave("lyon", "one")
    assert presence.here()["lyon"].instance == "two"


def test_a_process_that_joins_again_is_another_arrival(presence):
    """So it gets again the task that it may have lost."""
    before = presence.here()["lyon"].since
    assert presence.arrive("lyon", "one").since > before


def test_a_forgotten_site_has_to_join(presence):
    """It was revoked."""
    presence.forget("lyon")
    with pytest.raises(NotHere):
        presence.note_request("lyon", "one")
