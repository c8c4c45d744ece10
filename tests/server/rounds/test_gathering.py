"""A round waits for its sites, for so long, and refuses those that do not fit."""

import pytest

from knowmine.server.rounds.gathering import Known, gather
from knowmine.server.settings import AttendanceSettings
from knowmine.shared.errors import Paused, Refused, RunFailed, UsageError
from knowmine.shared.log import silent
from knowmine.shared.protocol import PROTOCOL, Hello

DIGEST = "ab" * 32


def hello(site, labelled=8, **other):
    values = {"protocol": PROTOCOL, "model_digest": DIGEST, **other}
    return Hello(site=site, labelled=labelled, unlabelled=8, calibration=2, test=4, **values)


class Coming:
    """Sites that come at their second of a clock that waiting moves, and may go."""

    def __init__(self, **comes):
        self.now, self._comes, self.gone = 0.0, comes, {}
        self._greeted = set()

    def clock(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds

    def greet(self):
        for name, (at, reply) in self._comes.items():
            if at <= self.now and name not in self._greeted:
                self._greeted.add(name)
                yield name, reply

    def here(self):
        return {name for name in self._greeted if self.gone.get(name, 1e9) > self.now}


def gathered(sites, known=None, **attendance):
    settings = AttendanceSettings(**attendance)
    known = known or Known()
    return sorted(gather(sites, known, DIGEST, settings, silent(), sites.clock))


def test_all_are_here():
    """No time is lost."""
    sites = Coming(lyon=(0, hello("lyon")), oslo=(0, hello("oslo")))
    assert (gathered(sites, expected=("lyon", "oslo")), sites.now) == (["lyon", "oslo"], 0)


def test_the_expected_are_waited_for():
    """Until they come."""
    sites = Coming(lyon=(0, hello("lyon")), oslo=(20, hello("oslo")))
    assert (gathered(sites, expected=("lyon", "oslo")), sites.now) == (["lyon", "oslo"], 20)


def test_not_for_longer_than_gather_s():
    """The round begins without them."""
    sites = Coming(lyon=(0, hello("lyon")), oslo=(600, hello("oslo")))
    assert (gathered(sites, expected=("lyon", "oslo"), gather_s=60), sites.now) == (["lyon"], 60)


def test_the_minimum_is_waited_for_longer():
    """Up to the patience."""
    sites = Coming(lyon=(0, hello("lyon")), oslo=(600, hello("oslo")))
    both = gathered(sites, expected=("lyon", "oslo"), gather_s=60, minimum=2)
    assert (both, sites.now) == (["lyon", "oslo"], 600)


def test_without_the_minimum_the_run_pauses():
    """With who is here, and what to do."""
    sites = Coming(lyon=(0, hello("lyon")))
    with pytest.raises(Paused, match=r"1 sites are here, 2 are needed, after 900 s"):
        gathered(sites, expected=("lyon", "oslo"), minimum=2, patience_s=900)


def test_no_site_comes():
    """The run pauses and says so."""
    with pytest.raises(Paused, match="none answered"):
        gathered(Coming(), expected=("lyon",), patience_s=30)


def test_a_refused_site_is_not_waited_for():
    """Its reason is known; the others begin."""
    sites = Coming(lyon=(0, hello("lyon")), oslo=(0, Refused("another model")))
    assert (gathered(sites, expected=("lyon", "oslo")), sites.now) == (["lyon"], 0)


@pytest.mark.parametrize("wrong", [{"protocol": 99}, {"model_digest": "cd" * 32}])
def test_a_site_that_does_not_fit_is_refused(wrong):
    """Another protocol or another model."""
    sites, known = Coming(lyon=(0, hello("lyon")), oslo=(0, hello("oslo", **wrong))), Known()
    assert gathered(sites, known, expected=("lyon", "oslo")) == ["lyon"]
    assert list(known.refused) == ["oslo"]


def test_a_site_with_labels_is_waited_for():
    """Without one there is nothing to learn from."""
    sites = Coming(lyon=(0, hello("lyon", labelled=0)), oslo=(600, hello("oslo")))
    both = gathered(sites, expected=("lyon", "oslo"), gather_s=60)
    assert (both, sites.now) == (["lyon", "oslo"], 600)


def test_no_site_has_labels():
    """All are here, so waiting would not help."""
    sites = Coming(lyon=(0, hello("lyon", labelled=0)))
    with pytest.raises(UsageError, match="none of the 1 sites has a labelled image"):
        gathered(sites, expected=("lyon",))


def test_no_site_is_expected_and_none_is_here():
    """A simulation's sites are all there, so this is the end."""
    with pytest.raises(RunFailed, match="no site can take part: oslo: another model"):
        gathered(Coming(oslo=(0, Refused("another model"))))


def test_a_site_that_went_is_not_in_the_round():
    """It was met and is not here."""
    sites = Coming(lyon=(0, hello("lyon")), oslo=(0, hello("oslo")))
    sites.gone = {"oslo": -1}
    assert gathered(sites, expected=("lyon", "oslo"), gather_s=5) == ["lyon"]


def test_a_site_that_comes_to_its_senses_takes_part():
    """The refusal of yesterday does not count."""
    known = Known(refused={"oslo": "another model"})
    sites = Coming(oslo=(0, hello("oslo")))
    assert (gathered(sites, known, expected=("oslo",)), known.refused) == (["oslo"], {})
