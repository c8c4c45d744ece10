"""A person decides whether an update leaves, once, in time, and across crashes."""

import threading
from datetime import timedelta

import pytest

from knowmine.client.egress import approval
from knowmine.client.egress.approval import approve, clear, hold, refuse, waiting_in
from knowmine.shared.errors import EgressRefused, Interrupted, UsageError

DAY = timedelta(days=1)
FACTS = {"weights": "3 tensors, 32 bytes", "odd": "<script>alert(1)</script>"}
NAME = "0003-abcdef"


class Held:
    """A wait in a thread of its own, and what came of it."""

    def __init__(self, folder, digest="ab", timeout=DAY):
        self.folder, self.begun, self.stop = folder, threading.Event(), threading.Event()
        self.outcome, self.holds = None, 0
        self._thread = threading.Thread(target=self._wait, args=(digest, timeout))
        self._thread.start()

    def _wait(self, digest, timeout):
        def on_hold():
            self.holds += 1
            self.begun.set()

        try:
            self.outcome = hold(
                self.folder, NAME, digest, FACTS, timeout, self.stop, on_hold=on_hold
            )
        except (EgressRefused, Interrupted, UsageError) as error:
            self.outcome = error

    def end(self):
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.outcome


SECONDS = approval.LOOK_S


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Looks all the time."""
    monkeypatch.setattr(approval, "LOOK_S", 0.01)


@pytest.fixture
def held(tmp_path):
    held = Held(tmp_path / "pending")
    assert held.begun.wait(20)
    yield held
    held.stop.set()
    held.end()


def test_an_approved_update_leaves(held):
    """And who approved is known."""
    approve(held.folder, NAME, by="dr.roux")
    assert held.end() == "dr.roux"


def test_a_refused_update_stays(held):
    """With the name of who refused."""
    refuse(held.folder, NAME, by="dr.roux")
    assert isinstance(held.end(), EgressRefused)
    assert "dr.roux refused it" in str(held.outcome)


def test_the_first_decision_counts(held):
    """A second one finds nothing that waits."""
    refuse(held.folder, NAME)
    with pytest.raises(UsageError, match="none waits"):
        approve(held.folder, NAME)
    assert isinstance(held.end(), EgressRefused)


def test_an_update_that_was_not_approved_is_refused(tmp_path):
    """When its time is over, and a late yes finds that it is."""
    held = Held(tmp_path, timeout=timedelta(0))
    assert "it was not approved in time" in str(held.end())
    with pytest.raises(UsageError, match="none waits"):
        approve(tmp_path, NAME)


def test_a_site_that_stops_leaves_it_waiting(held):
    """It is no refusal."""
    held.stop.set()
    assert isinstance(held.end(), Interrupted)
    assert [one.name for one in waiting_in(held.folder)] == [NAME]


def test_a_decision_outlives_a_crash(held):
    """Approved while the site was down: it leaves when it is asked for again."""
    held.stop.set()
    held.end()
    approve(held.folder, NAME, by="me")
    again = Held(held.folder)
    assert (again.end(), again.holds) == ("me", 0)


def test_a_restart_does_not_prolong_the_time(held):
    """The deadline stands in the file."""
    (first,) = waiting_in(held.folder)
    held.stop.set()
    held.end()
    again = Held(held.folder, timeout=9 * DAY)
    (second,) = waiting_in(held.folder)
    again.stop.set()
    again.end()
    assert second.until == first.until


def test_a_decision_about_another_update_is_none(held):
    """A file that was copied from elsewhere lets nothing leave."""
    (held.folder / f"{NAME}.decision").write_text(
        '{"decision": "approve", "by": "x", "digest": "other"}'
    )
    assert isinstance(held.end(), UsageError)


def test_an_unknown_name_is_answered_with_those_that_wait(held):
    """So that a person can correct it."""
    with pytest.raises(UsageError, match=f"these wait: {NAME}"):
        approve(held.folder, "0009-fedcba")


def test_the_page_says_what_would_leave_and_runs_nothing(held):
    """Facts are escaped, and no script or picture is fetched."""
    page = (held.folder / f"{NAME}.html").read_text()
    assert "3 tensors, 32 bytes" in page and f"approve client.yaml {NAME}" in page
    assert "<script" not in page and "default-src 'none'" in page


def test_who_decided_is_a_plain_word(held):
    """It goes into a receipt."""
    assert approve(held.folder, NAME, by='x" \n<y>').by == "x----y-"


def test_what_was_decided_is_cleared_and_what_waits_stays(held):
    """At the end of a run."""
    clear(held.folder)
    assert waiting_in(held.folder)
    approve(held.folder, NAME)
    held.end()
    clear(held.folder)
    assert not list(held.folder.iterdir())


def test_decisions_are_looked_for_once_a_second():
    """A wait of a day should cost nothing."""
    assert SECONDS >= 1
