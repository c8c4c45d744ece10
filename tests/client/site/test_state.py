"""What a site keeps of a run: its own layers round by round, scores, and who took part."""

import json

import numpy as np
import pytest

from knowmine.client.site.state import SiteState
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.participation import RECORD, Participation
from tests.client.storage.pseudo_labels import images_of, pseudo_labels


@pytest.fixture
def state(tmp_path):
    return SiteState(tmp_path)


def first_value(layers):
    return float(layers["bn"][0])


def keep(state, *rounds):
    """Keep layers after these rounds; their value is the round's number."""
    for round_ in rounds:
        state.keep_own_layers(round_, {"bn": np.full(2, round_, np.float32)})


def test_a_new_site_has_no_own_layers(state):
    """It starts from the global ones."""
    assert state.own_layers(1) == {}


def test_own_layers_survive_a_reopened_site(state, tmp_path):
    """They are on disk."""
    keep(state, 1)
    assert first_value(SiteState(tmp_path).own_layers(2)) == 1


def test_a_round_done_again_finds_the_layers_before_it(state):
    """Not those that its first run left."""
    keep(state, 1, 2)
    assert first_value(state.own_layers(2)) == 1


def test_a_site_that_missed_a_round_uses_its_last_layers(state):
    """Those of round 1 serve in round 3."""
    keep(state, 1)
    assert first_value(state.own_layers(3)) == 1


def test_only_the_last_two_rounds_own_layers_are_kept(state, tmp_path):
    """The one before is needed to do the last again."""
    keep(state, 1, 2, 3)
    assert [file.stem for file in sorted(tmp_path.glob("batch-norm-*"))] == [
        "batch-norm-0002",
        "batch-norm-0003",
    ]


def test_scores_are_kept_by_round(state, tmp_path):
    """As JSON, the score of each case."""
    state.keep_scores(3, {"a": {"dice": 0.5}})
    assert json.loads((tmp_path / "scores-0003.json").read_text()) == {"a": {"dice": 0.5}}


def test_who_took_part_is_recorded_by_the_seal(tmp_path):
    """The key finds the case again."""
    seal = Seal(tmp_path / "keys")
    SiteState(tmp_path, seal).note(2, "mined", images_of(2))
    (took,) = Participation(tmp_path, seal).rounds_of("a1")
    assert (took.round, took.as_) == (2, "mined")


def test_without_a_seal_no_record_is_kept(state, tmp_path):
    """It would name the cases."""
    state.note(2, "mined", images_of(2))
    assert not (tmp_path / RECORD).exists()


@pytest.mark.parametrize("sealed", [False, True])
def test_pseudo_labels_are_kept_for_report_and_review(tmp_path, sealed):
    """Sealed if the site seals."""
    SiteState(tmp_path, Seal(tmp_path / "keys") if sealed else None).keep_pseudo_labels(
        2, pseudo_labels(3)
    )
    kept = {file.name for file in tmp_path.glob("mined*")}
    assert kept == {"mined", "mined-0002.sealed" if sealed else "mined-0002.npz"}
    assert (tmp_path / "mined" / ("index.sealed" if sealed else "index.json")).exists()
