"""A round's record holds what people and scripts read."""

import pytest

from knowmine.server.journal.record import RoundRecord, pool
from knowmine.shared.protocol import Calibration, Mined, Scores, Update
from knowmine.shared.trust.countersign import Head


def test_an_update_is_noted_without_its_weights():
    """The record is read by people; the weights are in the checkpoint."""
    record = RoundRecord(3)
    record.take("lyon", Update(3, {}, 12, 5, 0.25, 3.5, Mined(kept=5, dropped=3, gate="on")))
    written = record.as_json({})
    assert written["updates"] == {
        "lyon": {"labelled": 12, "pseudo_labelled": 5, "loss": 0.25, "seconds": 3.5}
    }
    assert written["mined"] == {"kept": 5, "dropped": 3, "gate": "on"}
    assert written["mined_per_site"]["lyon"]["kept"] == 5


def test_gates_that_differ_are_mixed():
    """One word for all sites, or this."""
    record = RoundRecord(1)
    for site, gate in (("lyon", "on"), ("oslo", "off")):
        record.take(site, Update(1, {}, 1, 1, 0.5, 1.0, Mined(gate=gate)))
    assert record.as_json({})["mined"]["gate"] == "mixed"


def test_checkpoints_and_calibration_sums_are_written_by_site():
    """A checkpoint is published here; the sums are what a resumed run goes on with."""
    record = RoundRecord(1)
    record.heads = {"lyon": Head(7, "ab" * 32)}
    written = record.as_json({"lyon": Calibration(images=4)})
    assert written["heads"] == {"lyon": {"receipts": 7, "hash": "ab" * 32}}
    assert written["calibration"]["lyon"]["images"] == 4


def test_no_test_image_gives_no_score():
    """Null rather than zero."""
    assert pool([Scores(1, 0, 0.0, 0.0, 0.0)])["dice"] is None


def test_sites_of_different_sizes_are_pooled_by_images():
    """One image at 1 and three at 0.2 are (1 + 0.6) / 4."""
    scores = [Scores(1, 1, 1.0, 1.0, 0.0), Scores(1, 3, 0.6, 0.6, 0.0)]
    assert pool(scores)["dice"] == pytest.approx(0.4)
