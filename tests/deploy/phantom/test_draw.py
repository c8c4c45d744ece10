"""Phantom images are reproducible, honest about their masks and not all alike."""

import numpy as np
import pytest
from PIL import Image

from knowmine.deploy.phantom.draw import draw, main, make_folder

MANY = [draw(index, seed=5) for index in range(40)]


def test_an_index_a_seed_and_a_style_name_one_image():
    """Drawing twice gives the same image and mask bit for bit."""
    again = draw(7, seed=5)

    assert all(np.array_equal(a, b) for a, b in zip(MANY[7], again, strict=True))


@pytest.mark.parametrize("other", [{"seed": 6}, {"seed": 5, "style": 1}])
def test_seeds_and_styles_differ(other):
    """Another seed or another hospital gives another image."""
    assert draw(7, **other)[0].tobytes() != MANY[7][0].tobytes()


def test_images_are_bytes_of_many_sizes():
    """Images are (H, W, 3) uint8, neither square nor of one size, 300 to 420 pixels a side."""
    sizes = {image.shape for image, _ in MANY}

    assert all(image.dtype == np.uint8 for image, _ in MANY)
    assert all(300 <= h <= 420 and 300 <= w <= 420 and c == 3 for h, w, c in sizes)
    assert len(sizes) > 30


def test_masks_fit_their_images():
    """A mask is uint8 of its image's size and holds 0 and 255 alone."""
    for image, mask in MANY:
        assert mask.shape == image.shape[:2] and mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 255}


def test_some_images_have_no_lesion():
    """About one image in eight is healthy."""
    healthy = sum(not mask.any() for _, mask in MANY)

    assert 1 <= healthy <= 12


def test_lesions_are_neither_specks_nor_the_whole_picture():
    """Where there are lesions they cover between .5 and 45 % of the image."""
    shares = [np.mean(mask > 0) for _, mask in MANY if mask.any()]

    assert min(shares) > 0.005 and max(shares) < 0.45


def test_brightness_does_not_give_lesions_away():
    """No threshold on redness finds the lesions: its best mean Dice stays low."""
    best = 0.0
    for threshold in np.linspace(0.35, 0.75, 11):
        dices = []
        for image, mask in MANY:
            values = image[::3, ::3].astype(np.float32) + 1
            found = (values[..., 0] / values.sum(axis=-1) > threshold) & (values[..., 0] > 30)
            truth = mask[::3, ::3] > 0
            if truth.any():
                dices.append(2 * np.sum(found & truth) / (np.sum(found) + np.sum(truth)))
        best = max(best, float(np.mean(dices)))

    assert best < 0.4


def test_lesions_keep_inside_the_visible_field():
    """Nothing is marked where the endoscope's frame is black."""
    for image, mask in MANY:
        marked = image[mask > 0]
        assert not marked.size or np.mean(marked.max(axis=-1) < 8) < 0.2


def test_a_folder_pairs_images_and_masks(tmp_path):
    """make_folder writes the data folder contract; a mask read back is the one that was drawn."""
    make_folder(tmp_path, 3, seed=5)

    case_ids = [sorted(f.stem for f in (tmp_path / kind).iterdir()) for kind in ("images", "masks")]
    assert case_ids[0] == case_ids[1] == ["phantom-0000", "phantom-0001", "phantom-0002"]
    with Image.open(tmp_path / "masks" / "phantom-0002.png") as mask:
        assert np.array_equal(np.asarray(mask), MANY[2][1])


def test_a_larger_folder_begins_with_the_smaller(tmp_path):
    """Image i does not depend on how many are drawn."""
    for images in (1, 2):
        make_folder(tmp_path / str(images), images)

    first = [tmp_path / str(images) / "images" / "phantom-0000.jpg" for images in (1, 2)]
    assert first[0].read_bytes() == first[1].read_bytes()


def test_the_command_draws_a_folder(tmp_path, capsys):
    """The command line draws what it says it drew."""
    main([str(tmp_path / "data"), "--images", "2", "--seed", "3"])

    assert "2 phantom images" in capsys.readouterr().out
    assert len(list((tmp_path / "data" / "images").iterdir())) == 2


def test_some_images_can_stay_unlabelled(tmp_path):
    """The first ones get masks, the others none."""
    main([str(tmp_path), "--images", "3", "--masks", "1"])

    assert len(list((tmp_path / "images").iterdir())) == 3
    assert [mask.name for mask in (tmp_path / "masks").iterdir()] == ["phantom-0000.png"]


def test_each_site_gets_a_folder_and_a_look(tmp_path):
    """Two hospitals' images differ."""
    main([str(tmp_path), "--images", "1", "--site", "lyon", "--site", "bergen"])

    lyon, bergen = (tmp_path / site / "images" / "phantom-0000.jpg" for site in ("lyon", "bergen"))
    assert lyon.read_bytes() != bergen.read_bytes()
