"""The federation's SAM decoder: averaged by labels, and no late site's alone."""

import numpy as np
import pytest

from knowmine.server.rounds.decoder import SharedDecoder
from knowmine.shared.protocol import Update


def sent(value, labelled):
    """An update with a decoder of one number."""
    return Update(1, {}, labelled, 99, 0.5, 1.0, decoder={"w": np.full(2, value, np.float32)})


def a_round(decoder, folder, rule="mean", **updates):
    """What a round makes of it."""
    decoder.begin(rule, folder)
    for site, update in updates.items():
        decoder.add(site, update)
    decoder.settle(lambda weights: weights)
    return decoder.weights.get("w", np.zeros(0)).tolist()


@pytest.fixture
def decoder():
    return SharedDecoder({}, {})


def test_sites_count_by_their_labels(decoder, tmp_path):
    """(3 * 1 + 1 * 5) / 4, whatever they pseudo-labelled."""
    assert a_round(decoder, tmp_path, lyon=sent(1, 3), oslo=sent(5, 1)) == [2, 2]
    assert decoder.as_json() == {"decoder": {"lyon": 3, "oslo": 1}}


def test_nobody_sends_one_and_it_stays(decoder, tmp_path):
    """None before the first, then the last."""
    nothing = Update(1, {}, 8, 0, 0.5, 1.0)
    assert a_round(decoder, tmp_path, lyon=nothing) == [] and decoder.as_json() == {}
    a_round(decoder, tmp_path, lyon=sent(2, 3))
    assert a_round(decoder, tmp_path, lyon=nothing) == [2, 2]


def test_one_that_comes_late_with_few_labels_does_not_take_its_place(decoder, tmp_path):
    """Lyon's three and oslo's one stand by their 2: (4 * 2 + 1 * 7) / 5."""
    a_round(decoder, tmp_path, lyon=sent(1, 3), oslo=sent(5, 1))
    assert a_round(decoder, tmp_path, porto=sent(7, 1)) == [3, 3]
    assert decoder.images == {"lyon": 3, "oslo": 1, "porto": 1}


def test_one_that_tunes_again_is_counted_once(decoder, tmp_path):
    """What lyon was part of before makes room for what it sends now; only oslo stands by it."""
    a_round(decoder, tmp_path, lyon=sent(1, 3), oslo=sent(5, 1))
    assert a_round(decoder, tmp_path, lyon=sent(6, 3)) == [5, 5]


def test_a_decoder_from_no_labels_counts_for_nothing(decoder, tmp_path):
    """A policy that hides small counts hides it too."""
    assert a_round(decoder, tmp_path, lyon=sent(1, 0)) == []


def test_a_round_that_begins_again_forgets_its_first_try(decoder, tmp_path):
    """It missed its quorum."""
    decoder.begin("mean", tmp_path)
    decoder.add("lyon", sent(100, 3))
    assert a_round(decoder, tmp_path, oslo=sent(5, 1)) == [5, 5]
    assert decoder.images == {"oslo": 1}


@pytest.mark.parametrize("rule", ["clipped", "trimmed", "median"])
def test_robust_rules_hold_for_the_first_one_too(decoder, tmp_path, rule):
    """There is none before it to clip against; the wild site of three moves nothing all the same."""
    updates = {"lyon": sent(1, 3), "oslo": sent(1, 3), "porto": sent(1000, 3)}
    assert a_round(decoder, tmp_path, rule, **updates) == [1, 1]


@pytest.mark.parametrize("rule", ["clipped", "trimmed", "median"])
def test_a_wild_site_that_alone_sends_later_moves_nothing(decoder, tmp_path, rule):
    """The two others stand by the average with a vote each, however often it tries."""
    a_round(decoder, tmp_path, rule, lyon=sent(1, 3), oslo=sent(1, 3), porto=sent(1, 3))
    for _ in range(2):
        assert a_round(decoder, tmp_path, rule, porto=sent(1000, 3)) == [1, 1]


def test_under_the_mean_it_moves_it_by_its_labels(decoder, tmp_path):
    """Which is what the mean is: (2 * 3 * 1 + 3 * 1000) / 9."""
    a_round(decoder, tmp_path, lyon=sent(1, 3), oslo=sent(1, 3), porto=sent(1, 3))
    assert a_round(decoder, tmp_path, porto=sent(1000, 3)) == pytest.approx([334, 334])


@pytest.mark.parametrize("rule", ["mean", "clipped", "trimmed", "median"])
def test_most_that_send_again_move_it(decoder, tmp_path, rule):
    """Two of three agree on 3; the one that stands by 1 does not hold them back for good."""
    a_round(decoder, tmp_path, rule, lyon=sent(1, 3), oslo=sent(1, 3), porto=sent(1, 3))
    seen = a_round(decoder, tmp_path, rule, lyon=sent(3, 3), oslo=sent(3, 3))
    middle = 3 if rule in ("trimmed", "median") else 7 / 3
    assert seen == pytest.approx([middle, middle])


def test_a_resumed_run_goes_on_from_its_record():
    """With the weights of the checkpoint."""
    weights = {"w": np.ones(2, np.float32)}
    again = SharedDecoder.of_record(weights, {"round": 3, "decoder": {"lyon": 3}})
    assert (again.weights, again.images) == (weights, {"lyon": 3})
    assert SharedDecoder.of_record({}, {"round": 3}).images == {}
