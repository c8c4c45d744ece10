"""The newest pseudo-label of every image is kept for a review, within a quota."""

from pathlib import Path

import numpy as np
import pytest

from knowmine.client.storage.encryption import Seal
from knowmine.client.storage.pseudo_label_store import (
    MINED,
    Gone,
    forget_mined,
    load_mined,
    load_pixels,
    save_mined,
)
from tests.client.storage.pseudo_labels import PX, predictions, pseudo_labels

N = 9


@pytest.fixture(params=[False, True], ids=["plain", "sealed"])
def seal(request, tmp_path):
    return Seal(tmp_path / "keys") if request.param else None


def mine(folder, seal, *, round_=2, n=N, quality=None, seen=None, **limits):
    """A round that mined n images; what is listed after it, by case id."""
    estimate = np.arange(n) / n if quality is None else np.array(quality)
    found = pseudo_labels(n, quality=estimate, kept=estimate > 0, seen=seen)
    save_mined(folder, round_, found, seal=seal, **limits)
    return {one.case_id: one for one in load_mined(folder, seal)}


def files(folder):
    return [path for path in (folder / MINED).iterdir() if not path.name.startswith("index")]


def test_all_images_of_a_round_are_kept(tmp_path, seal):
    """Not only the worst and the best, and with the figures that order a list."""
    listed = mine(tmp_path, seal)
    assert list(listed) == [f"a{i}" for i in range(N)] and len(files(tmp_path)) == N
    one = listed["a5"]
    assert (one.round, one.quality, one.kept, one.disagreement, one.size) == (
        2,
        5 / N,
        True,
        1,
        (9, 9),
    )


def test_picture_and_masks_come_back(tmp_path, seal):
    """Masks to the nearest 255th; SAM's only where it was prompted."""
    listed = mine(tmp_path, seal, n=2, seen=predictions(2, prompted=[True, False]))
    first, second = (load_pixels(tmp_path, listed[case_id], seal) for case_id in ("a0", "a1"))
    assert second.image.shape == (PX, PX, 3) and (second.image == 1).all() and second.sam is None
    assert first.sam is not None
    values = [mask.mean() for mask in (first.unet, first.sam, first.label)]
    assert values == pytest.approx([0.25, 0.75, 0.25], abs=0.002)


def test_a_newer_round_replaces_the_images_that_it_mined(tmp_path, seal):
    """The others stay as they were, and nothing is kept twice."""
    old = mine(tmp_path, seal)
    listed = mine(tmp_path, seal, round_=3, n=4)
    assert [listed[f"a{i}"].round for i in range(N)] == [3] * 4 + [2] * (N - 4)
    assert len(files(tmp_path)) == N
    with pytest.raises(Gone, match="round 2 is not here any more"):
        load_pixels(tmp_path, old["a0"], seal)


def test_the_quota_keeps_the_newest_and_of_those_the_worst(tmp_path, seal):
    """Files of what is not listed are gone with it."""
    size = next(iter(mine(tmp_path, seal).values())).bytes
    listed = mine(
        tmp_path, seal, round_=3, n=4, quality=[0.4, 0.1, 0.9, 0.2], quota_bytes=3 * size + 99
    )
    assert list(listed) == ["a1", "a3", "a0"] and len(files(tmp_path)) == 3


def test_what_a_crash_left_is_swept_up_by_the_next_round(tmp_path, seal):
    """Half a file, and one of a round whose index was never written: neither is ever listed."""
    before = mine(tmp_path, seal)
    whole = files(tmp_path)[0]
    (whole.parent / (whole.name + ".tmp")).write_bytes(b"half")
    whole.with_name(whole.name.replace("-0002", "-0003")).write_bytes(whole.read_bytes())
    assert {one.case_id: one for one in load_mined(tmp_path, seal)} == before
    mine(tmp_path, seal, round_=4, n=1)
    assert len(files(tmp_path)) == N


@pytest.mark.parametrize("damage", [b"", b"KNOWMINE1 and noise" * 9])
def test_damage_shows_nothing_and_a_round_mends_it(tmp_path, seal, damage):
    """One damaged file is one case gone; a damaged index is none listed, until a round writes it."""
    listed = mine(tmp_path, seal)
    for file in files(tmp_path):
        file.write_bytes(damage)
    with pytest.raises(Gone):
        load_pixels(tmp_path, listed["a0"], seal)
    next((tmp_path / MINED).glob("index.*")).write_bytes(damage)
    assert load_mined(tmp_path, seal) == []
    assert list(mine(tmp_path, seal, round_=3, n=1)) == ["a0"]


def test_sealed_files_name_no_case_and_open_by_their_key_alone(tmp_path):
    """Nor does the index."""
    mine(tmp_path, Seal(tmp_path / "keys"))
    content = b"".join(path.read_bytes() for path in (tmp_path / MINED).iterdir())
    assert b'"case_id"' not in content and b"NUMPY" not in content
    assert load_mined(tmp_path, Seal(tmp_path / "other")) == []


def test_a_forgotten_case_is_gone_and_the_others_stay(tmp_path, seal):
    """Its file, its line in the index, and a copy of its file opens no more."""
    listed = mine(tmp_path, seal)
    copies = {path: path.read_bytes() for path in files(tmp_path)}
    assert forget_mined(tmp_path, "a5", seal) == 1
    assert [one.case_id for one in load_mined(tmp_path, seal)] == [
        f"a{i}" for i in (0, 1, 2, 3, 4, 6, 7, 8)
    ]
    assert load_pixels(tmp_path, listed["a4"], seal)
    if seal:
        for path, content in copies.items():
            path.write_bytes(content)
        with pytest.raises(Gone):
            load_pixels(tmp_path, listed["a5"], Seal(tmp_path / "keys"))


def test_a_site_that_mined_nothing_lists_and_forgets_nothing(tmp_path, seal):
    """Nor makes a folder."""
    assert load_mined(tmp_path, seal) == [] and forget_mined(tmp_path, "a0", seal) == 0
    assert not Path(tmp_path / MINED).exists()
