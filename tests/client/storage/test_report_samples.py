"""The pseudo-labels of the lowest and of the highest quality are kept for people to see."""

import numpy as np
import pytest

from knowmine.client.mining.fusion import Predictions
from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.report_samples import (
    SAMPLE,
    forget_in_gallery,
    load_gallery,
    load_sample,
    save_gallery,
)
from tests.client.storage.pseudo_labels import PX, predictions, pseudo_labels


def saved(folder, quality, *, round_=2, seen=None, masks=None, kept=None, seal=None):
    """What the gallery shows after a round with pseudo-labels of these qualities."""
    found = pseudo_labels(len(quality), quality=quality, kept=kept, seen=seen, masks=masks)
    save_gallery(folder, round_, found, seal=seal)
    return load_gallery(folder, 9, seal=seal)


def test_what_was_kept_comes_back(tmp_path):
    """Masks to the nearest 255th, all else as it was."""
    (item,) = saved(tmp_path, [0.625], kept=[False])
    assert (item.round, item.case_id, item.quality, item.kept) == (2, "a0", 0.625, False)
    assert item.image.shape == (PX, PX, 3) and not item.image.any()
    assert item.sam is not None
    values = [mask.mean() for mask in (item.unet, item.sam, item.label)]
    assert values == pytest.approx([0.25, 0.75, 0.25], abs=0.002)


def test_the_worst_and_the_best_are_kept(tmp_path):
    """Four and two of nine, in the order of the images."""
    quality = [0.9, 0.1, 0.5, 0.2, 0.8, 0.6, 0.3, 0.55, 0.4]
    assert [item.case_id for item in saved(tmp_path, quality)] == [
        "a0",
        "a1",
        "a3",
        "a4",
        "a6",
        "a8",
    ]


def test_few_are_kept_once(tmp_path):
    """The best of three are among the worst."""
    assert [item.case_id for item in saved(tmp_path, [0.3, 0.2, 0.1])] == ["a0", "a1", "a2"]


def test_each_keeps_its_own_picture(tmp_path):
    """Image number i has level i."""
    items = saved(tmp_path, [0.9, 0.1, 0.5, 0.2, 0.8, 0.6, 0.3])
    assert [int(item.image[0, 0, 0]) for item in items] == [int(item.case_id[1:]) for item in items]


def test_sam_has_no_mask_where_it_was_not_prompted(tmp_path):
    """None, not an empty one."""
    items = saved(tmp_path, [0.5, 0.6], seen=predictions(2, prompted=[True, False]))
    assert [item.sam is None for item in items] == [False, True]


def test_sam_has_no_mask_in_methods_without_it(tmp_path):
    """In self-training both masks are the U-Net++'s."""
    unet = predictions(1).unet
    ones = np.ones(1, np.float32)
    seen = Predictions(unet, unet, np.ones(1, bool), ones, ones)
    (item,) = saved(tmp_path, [1.0], seen=seen)
    assert item.sam is None


def test_classes_are_joined(tmp_path):
    """A picture shows where anything is."""
    masks = np.zeros((1, 2, PX, PX), np.float32)
    masks[0, 0, 0], masks[0, 1, 1] = 1, 1
    (item,) = saved(tmp_path, [0.5], seen=predictions(1, classes=2), masks=masks)
    assert item.label.mean(1).tolist() == [1, 1, 0, 0]


def test_rounds_come_in_order(tmp_path):
    """Each in a file of its own, the tenth after the second."""
    saved(tmp_path, [0.5], round_=10)
    assert [item.round for item in saved(tmp_path, [0.5], round_=2)] == [2, 10]


def test_only_the_last_rounds_are_loaded(tmp_path):
    """A long run's report stays small."""
    for round_ in (2, 3, 4):
        saved(tmp_path, [0.5], round_=round_)
    assert [item.round for item in load_gallery(tmp_path, 2)] == [3, 4]


def test_a_round_done_again_replaces_itself(tmp_path):
    """After a resume nothing is shown twice."""
    saved(tmp_path, [0.5])
    assert [item.quality for item in saved(tmp_path, [0.25])] == [0.25]


def test_a_site_that_mined_nothing_has_no_gallery(tmp_path):
    """Nor an error."""
    assert load_gallery(tmp_path, 9) == []


def test_a_sealed_gallery_comes_back_by_its_key_alone(tmp_path):
    """The file shows no case id; another project's key shows nothing."""
    (item,) = saved(tmp_path, [0.625], seal=Seal(tmp_path / "keys"))
    (file,) = tmp_path.glob("mined-*")
    assert (item.case_id, item.quality, file.name) == ("a0", 0.625, "mined-0002.sealed")
    assert b"case_ids" not in file.read_bytes()
    assert load_gallery(tmp_path, 9, seal=Seal(tmp_path / "other")) == []


@pytest.mark.parametrize("with_seal", [False, True])
def test_a_forgotten_case_takes_its_rounds_from_the_gallery(tmp_path, with_seal):
    """Rounds without it stay."""
    seal = Seal(tmp_path / "keys") if with_seal else None
    saved(tmp_path, [0.5], round_=2, seal=seal)
    saved(tmp_path, [0.5, 0.6], round_=3, seal=seal)
    assert forget_in_gallery(tmp_path, "a1", seal) == 1
    assert [item.round for item in load_gallery(tmp_path, 9, seal=seal)] == [2]


def test_the_sample_goes_evenly_from_worst_to_best(tmp_path):
    """Of 119 images it has every other one by quality, each with its own mask."""
    n = 2 * SAMPLE - 1
    masks = np.zeros((n, 1, PX, PX), np.float32)
    masks[np.arange(n) % 3 == 0, 0, 1, 2] = 1
    saved(tmp_path, np.arange(n) / n, masks=masks, kept=np.arange(n) > 9)
    sample = load_sample(tmp_path, 9)
    assert [one.case_id for one in sample] == [f"a{i}" for i in range(0, n, 2)]
    assert [bool(one.mask[1, 2]) for one in sample] == [i % 3 == 0 for i in range(0, n, 2)]
    assert not any(one.mask[0].any() for one in sample)
    assert [one.kept for one in sample] == [i > 9 for i in range(0, n, 2)]


def test_a_case_of_the_sample_alone_is_forgotten_too(tmp_path):
    """The middle of nine is in no picture, and its mask goes all the same."""
    items = saved(tmp_path, np.arange(9) / 9)
    assert "a5" not in [item.case_id for item in items]
    assert forget_in_gallery(tmp_path, "a5", None) == 1
    assert load_sample(tmp_path, 9) == []
