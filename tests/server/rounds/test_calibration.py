"""A site uses its own calibration sums if they are enough, and the federation's otherwise."""

from dataclasses import asdict

from knowmine.server.rounds.calibration import calibrations_for, calibrations_in
from knowmine.shared.protocol import MIN_CALIBRATION_IMAGES, Calibration
from tests.server.rounds.test_rounds import probed

ENOUGH = MIN_CALIBRATION_IMAGES


def test_enough_images_of_its_own_suffice():
    """The site's own images tell most about its images."""
    sums = {"lyon": probed(ENOUGH), "oslo": probed(3)}
    assert calibrations_for(["lyon"], sums) == {"lyon": probed(ENOUGH)}


def test_too_few_images_get_the_whole_federations_sums():
    """Those of sites that are not here now are among them."""
    sums = {"lyon": probed(ENOUGH), "oslo": probed(3)}
    assert calibrations_for(["oslo", "porto"], sums) == {
        "oslo": probed(ENOUGH + 3),
        "porto": probed(ENOUGH + 3),
    }


def test_before_the_first_round_there_are_no_sums():
    """All sites get empty ones."""
    assert calibrations_for(["lyon"], {}) == {"lyon": Calibration()}


def test_a_record_gives_back_its_sums():
    """As they were, tuples among them; a round without any gives none."""
    record = {"calibration": {"lyon": asdict(probed(4))}}
    assert calibrations_in(record) == {"lyon": probed(4)}
    assert calibrations_in({}) == {}
