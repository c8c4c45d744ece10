"""What a site's policy keeps from leaving, and what answers no question."""

import dataclasses
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from knowmine.client.audit.retention import Past
from knowmine.client.egress.limits import MAX_STEPS, move_of
from knowmine.client.egress.policy import Policy
from knowmine.client.egress.questions import Asked, size_of
from knowmine.client.egress.release import release
from knowmine.shared.errors import EgressRefused
from knowmine.shared.protocol import Calibration, Hello, Mined, Scores, Update
from knowmine.shared.trust.countersign import digest_of_reply
from knowmine.shared.weights import TensorSpec, digest_of_manifest

MANIFEST = {
    "a.weight": TensorSpec((2, 2), "float32"),
    "a.running_mean": TensorSpec((2,), "float32"),
    "a.num_batches_tracked": TensorSpec((), "int64"),
}
SENT = {
    "a.weight": np.ones((2, 2), np.float32),
    "a.running_mean": np.zeros(2, np.float32),
    "a.num_batches_tracked": np.array(7),
}
MOVED = {**SENT, "a.weight": SENT["a.weight"] + np.float32(0.5)}  # norm 1
UPDATE = Update(3, MOVED, labelled=8, pseudo_labelled=4, loss=0.5, seconds=2.0, mined=Mined(4, 2))
SCORES = Scores(3, test_images=4, dice=3.0, iou=2.0, hd95=9.0)
HELLO = Hello("lyon", 1, "ab" * 32, labelled=8, unlabelled=100, calibration=2, test=4)
ASKED = Asked("update", "7", 3, 5, SENT)
SCORED = Asked("scores", "7", 3, 5)


def out(reply=UPDATE, asked=ASKED, past=None, now=None, **policy):
    return release(
        reply,
        manifest=MANIFEST,
        asked=asked,
        policy=Policy(**policy),
        past=past or Past(),
        now=now,
    )


def with_(**tensors):
    """The update with other tensors, dots written as two underscores."""
    named = {name.replace("__", "."): array for name, array in tensors.items()}
    return dataclasses.replace(UPDATE, weights={**MOVED, **named})


def test_an_honest_update_passes_the_loosest_policy():
    """With all that it held."""
    assert out() == dataclasses.replace(UPDATE, weights=out().weights)
    assert all(out().weights[name] is MOVED[name] for name in MANIFEST)


# ------------------------------------------------------------------------- 11, 12: the question


@pytest.mark.parametrize(
    ("reply", "asked", "words"),
    [
        pytest.param(UPDATE, SCORED, "update of round 3; expected scores", id="another kind"),
        pytest.param(SCORES, ASKED, "scores of round 3; expected update", id="the other way"),
        pytest.param(HELLO, SCORED, "expected scores", id="an introduction"),
        pytest.param(
            dataclasses.replace(UPDATE, round=2), ASKED, "round 2; expected", id="another round"
        ),
    ],
)
def test_an_answer_to_a_question_that_was_not_asked_stays(reply, asked, words):
    """Kind and round are those of the question."""
    with pytest.raises(EgressRefused, match=words):
        out(reply, asked)


@pytest.mark.parametrize("round_", [0, 6, -1])
def test_no_round_lies_outside_the_run(round_):
    """A run has a first and a last round; a task of zero rounds has none."""
    asked = dataclasses.replace(ASKED, round=round_)
    with pytest.raises(EgressRefused, match="expected 1 to 5"):
        out(dataclasses.replace(UPDATE, round=abs(round_)), asked)


def test_nothing_leaves_after_the_runs_end():
    """The server said goodbye; what it asks now is refused, of that run."""
    past = Past(ended=frozenset({"7"}))
    with pytest.raises(EgressRefused, match="run 7 is over"):
        out(past=past)
    assert out(asked=dataclasses.replace(ASKED, run="8"), past=past)


# ------------------------------------------------------------------------- 13, 14


def test_nothing_leaves_outside_the_hours():
    """The message says the hour and those that are allowed."""
    noon, night = (datetime(2026, 3, 2, hour).astimezone() for hour in (12, 23))
    with pytest.raises(EgressRefused, match=r"it is 12:00; expected 22:00-06:00"):
        out(now=noon, hours=("22:00-06:00",))
    assert out(now=night, hours=("22:00-06:00",))


def test_only_models_that_the_site_agreed_to_leave():
    """By the digest of the installed one."""
    with pytest.raises(EgressRefused, match=digest_of_manifest(MANIFEST)):
        out(models=("ab" * 32,))
    assert out(models=(digest_of_manifest(MANIFEST),))


# ------------------------------------------------------------------------- 15: how far


def test_an_update_that_moved_too_far_stays():
    """Four weights by one half are a norm of one."""
    with pytest.raises(EgressRefused, match=r"norm 1; expected at most 0.99"):
        out(max_update_norm=0.99)
    assert out(max_update_norm=1.0)


def test_one_weight_that_moved_too_far_stays():
    """However small the whole."""
    with pytest.raises(EgressRefused, match=r"a\.weight as a change of 0.5; expected at most 0.49"):
        out(max_change=0.49)


def test_batch_norms_figures_are_no_part_of_the_norm():
    """They follow the images' range; check 7 bounds them."""
    assert out(with_(a__running_mean=np.full(2, 500, np.float32)), max_update_norm=1.0)


@pytest.mark.parametrize("count", [6, 8 + MAX_STEPS])
def test_counters_move_as_a_round_can_count(count):
    """Never back, and not by millions: the rest could hold something else."""
    with pytest.raises(EgressRefused, match="counter"):
        out(with_(a__num_batches_tracked=np.array(count)))


def test_pixels_in_place_of_weights_stay():
    """A picture of legal shape and range moved the weights by its own norm."""
    pixels = np.array([[0, 255], [128, 7]], np.float32)
    with pytest.raises(EgressRefused, match="change of 254"):
        out(with_(a__weight=pixels))


def test_weights_of_another_model_that_the_server_sent_hold_nothing():
    """The installed model is what counts, not what came."""
    asked = dataclasses.replace(ASKED, weights={"a.weight": SENT["a.weight"]})
    with pytest.raises(EgressRefused, match="the server sent weights without"):
        out(asked=asked)


def test_infinite_weights_from_the_server_hold_nothing():
    """Any update is near to infinity or far from it as one likes."""
    asked = dataclasses.replace(
        ASKED, weights={**SENT, "a.running_mean": np.full(2, np.inf, np.float32)}
    )
    with pytest.raises(EgressRefused, match="the server sent"):
        out(asked=asked)


@given(hnp.arrays(np.float32, (2, 2), elements=st.floats(-1000, 1000, width=32)))
def test_no_update_beyond_the_norm_leaves(weights):
    """Whatever it is."""
    move = float(np.linalg.norm((weights.astype(np.float64) - 1).ravel()))
    if abs(move - 10) < 1e-6:
        return
    try:
        out(with_(a__weight=weights), max_update_norm=10)
        assert move < 10
    except EgressRefused:
        assert move > 10 or np.abs(weights.astype(np.float64) - 1).max() > 100


def test_a_move_is_measured_over_all_trained_weights():
    """Norm 1, largest 0.5, and where."""
    move = move_of(MOVED, SENT)
    assert (move.norm, move.largest, move.where) == (1.0, 0.5, "a.weight")


def test_a_policy_needs_the_question():
    """Where nothing was asked there is nothing to hold an update against."""
    with pytest.raises(EgressRefused, match="the weights that it was made from"):
        out(asked=None, max_update_norm=1.0)


# ------------------------------------------------------------------------- 16: how few


def test_an_update_from_few_cases_leaves_as_nothing():
    """The weights that came go back, with zeros: the site had nothing to train on."""
    seen = out(min_cases=13)
    assert all(seen.weights[name] is SENT[name] for name in MANIFEST)
    assert (seen.labelled, seen.pseudo_labelled, seen.loss, seen.mined) == (0, 0, 0.0, Mined())


def test_small_counts_become_nought():
    """Four pseudo-labels are fewer than five; the eight labels are not."""
    seen = out(min_cases=5)
    assert (seen.labelled, seen.pseudo_labelled) == (8, 0)
    assert (seen.mined.kept, seen.mined.dropped) == (0, 0)


def test_means_over_few_cases_are_left_out():
    """Six were mined, and seven are the fewest."""
    mined = Mined(4, 2, 1, "on", 0.5, 0.7, 0.8)
    seen = out(dataclasses.replace(UPDATE, mined=mined), min_cases=7)
    assert (seen.mined.mean_agreement, seen.mined.mean_quality) == (0.0, 0.0)


def test_scores_over_few_cases_are_left_out():
    """As if there were no test images."""
    assert out(SCORES, SCORED, min_cases=5) == Scores(3, 0, 0.0, 0.0, 0.0)
    assert out(SCORES, SCORED, min_cases=4) == SCORES


def test_calibration_sums_over_few_cases_are_left_out():
    """Scores over enough stay."""
    sums = Calibration(2, (1.0,) * 5, (1.0,), (1.0,) * 5, 1, 1, 1)
    seen = out(dataclasses.replace(SCORES, calibration=sums), SCORED, min_cases=3)
    assert (seen.test_images, seen.calibration) == (4, Calibration())


def test_an_introduction_tells_no_small_counts():
    """Neither the two calibration images nor the four test images are counted then."""
    seen = out(HELLO, Asked("hello", "7"), min_cases=5)
    assert (seen.labelled, seen.unlabelled, seen.calibration, seen.test) == (8, 100, 0, 0)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_no_small_count_leaves_with_an_update(labelled, kept, fewest):
    """Each is nought or at least the smallest case count."""
    mined = Mined(kept, 3, 2, "on", 0.5, 0.7, 0.8)
    update = dataclasses.replace(UPDATE, labelled=labelled, pseudo_labelled=kept, mined=mined)
    seen = out(update, min_cases=fewest)
    counts = (seen.labelled, seen.pseudo_labelled, *dataclasses.astuple(seen.mined)[:3])
    assert all(count == 0 or count >= fewest for count in counts)


# ------------------------------------------------------------------------- 17, 18: what left before


def test_a_second_answer_to_one_question_stays():
    """The same answer may be sent again, after a broken connection."""
    answered = {("7", "update", 3): digest_of_reply(UPDATE)}
    assert out(past=Past(answered=answered))
    with pytest.raises(EgressRefused, match="another for round 3"):
        out(dataclasses.replace(UPDATE, loss=0.25), past=Past(answered=answered))


def test_the_rounds_budget_ends():
    """Two have left and two may."""
    with pytest.raises(EgressRefused, match=r"2 updates have left.*at most 2"):
        out(past=Past(rounds=2), rounds=2)
    assert out(past=Past(rounds=1), rounds=2)


def test_the_last_update_of_the_budget_may_be_sent_again():
    """It has left already."""
    past = Past(rounds=2, answered={("7", "update", 3): digest_of_reply(UPDATE)})
    assert out(past=past, rounds=2)


def test_scores_need_no_round_of_the_budget():
    """After the last update the model is still scored."""
    assert out(SCORES, SCORED, past=Past(rounds=2), rounds=2)


def test_the_bytes_budget_ends():
    """Tensors and numbers count."""
    size = size_of(UPDATE)
    assert size == 16 + 8 + 8 + 5 * 8 + 6 * 8 + len("unused")
    left = Past(bytes=1_000_000 - size)
    assert out(past=left, gigabytes=0.001)
    with pytest.raises(EgressRefused, match=r"at most 0.001 GB"):
        out(past=dataclasses.replace(left, bytes=left.bytes + 1), gigabytes=0.001)
