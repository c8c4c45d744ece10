"""What each round of a run does depends on the plan and the round's number alone."""

from pathlib import Path

import pytest
import torch

from knowmine.client.data.dataset import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.site.schedule import (
    images_of_round,
    is_mining_round,
    measures,
    part_of_run,
    seed_for,
)
from tests.client.small_site import plan


@pytest.fixture
def unlabelled():
    """Four images without truth."""
    cases = tuple(Case(f"a{i}", Path(f"a{i}.png"), None, f"a{i}") for i in range(4))
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    truth = torch.zeros(0, 1, 8, 8, dtype=torch.bool)
    return ImageSet(cases, images, truth, tuple("abcd"), ((8, 8),) * 4)


@pytest.mark.parametrize(
    ("method", "mining", "calibrating"),
    [
        ("supervised", [], []),
        ("self-training", [2, 3], []),
        ("paper", [2, 3], []),
        ("knowmine", [2, 3], [1]),
    ],
)
def test_which_rounds_mine_and_which_measure_on_the_calibration_set(method, mining, calibrating):
    """Of three, the first warms up."""
    its = plan(method, warmup_rounds=1)
    assert [round_ for round_ in (1, 2, 3) if is_mining_round(its, round_, 3)] == mining
    assert [round_ for round_ in (1, 2, 3) if measures(its, round_, 3)] == calibrating


def test_a_run_of_one_round_never_measures():
    """No later round could use the sums, so the calibration set is trained on."""
    assert not measures(plan(), 1, 1)


def test_the_parts_of_a_run_join():
    """Four rounds of a quarter each."""
    assert [part_of_run(round_, 4) for round_ in (1, 2, 3, 4)] == [
        (0, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1),
    ]


def case_ids(images):
    return {case.case_id for case in images.cases}


def test_each_image_is_mined_once_before_any_is_twice(unlabelled):
    """Two of four in the first round that is_mining_round, the others in the second, and so on."""
    few = plan(images=2, warmup_rounds=3)
    first, second, third = (
        case_ids(images_of_round(unlabelled, few, round_, 9)) for round_ in (4, 5, 6)
    )
    assert len(first) == 2 and first | second == case_ids(unlabelled) and third == first


@pytest.mark.parametrize("images", [0, 4, 100])
def test_all_are_mined_if_that_many_are_wanted(unlabelled, images):
    """0 takes all."""
    assert case_ids(images_of_round(unlabelled, plan(images=images), 2, 9)) == case_ids(unlabelled)


def test_no_images_give_an_empty_draw(unlabelled):
    """A site may have none."""
    assert not len(images_of_round(unlabelled.at([]), plan(images=2), 2, 9))


def test_a_draw_does_not_depend_on_the_order_of_images(unlabelled):
    """Only on seed, round and case id."""
    few, backwards = plan(images=2), unlabelled.at([3, 2, 1, 0])
    assert case_ids(images_of_round(backwards, few, 2, 9)) == case_ids(
        images_of_round(unlabelled, few, 2, 9)
    )


def test_every_argument_changes_the_number_drawn():
    """Equal arguments give equal numbers."""
    drawn = [
        seed_for(0, "mine", "a", 1),
        seed_for(1, "mine", "a", 1),
        seed_for(0, "train", "a", 1),
        seed_for(0, "mine", "b", 1),
        seed_for(0, "mine", "a", 2),
    ]
    assert len(set(drawn)) == 5 and seed_for(0, "mine", "a", 1) == drawn[0]
