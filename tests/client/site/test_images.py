"""A site holds its images in memory by purpose; bad and withdrawn ones are left out."""

import numpy as np
import pytest
import torch
from PIL import Image

from knowmine.client.site.images import PURPOSES
from knowmine.shared.errors import DataError
from knowmine.shared.settings import ModelSettings
from tests.client.small_site import small_site

HEIGHT, WIDTH = 20, 40
TWO_CLASSES = ModelSettings(pretrained=False, decoder_channels=(8, 8, 8), image_px=64, classes=2)
# Of ten images two are test images, two calibration images, two labelled and four unlabelled.
SPLIT = {"labelled": 4, "calibration_fraction": 0.5, "test_fraction": 0.2}


@pytest.fixture
def folder(tmp_path):
    """Ten images of one level each. The left half is a lesion: class 1, or 2 in odd images."""
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for i in range(10):
        image = np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[:, : WIDTH // 2] = 1 + i % 2
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"a{i}.png")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"a{i}.png")
    return tmp_path / "data"


@pytest.fixture
def open_images(folder, tmp_path):
    """Opens the site's images."""
    return lambda: small_site(folder, tmp_path, model=TWO_CLASSES, **SPLIT).images


@pytest.fixture
def images(open_images):
    return open_images()


def sets_of(images):
    return [getattr(images, purpose) for purpose in PURPOSES]


def case_ids_of(image_set):
    return [case.case_id for case in image_set.cases]


def test_images_are_in_the_model_frame(images):
    """They are resized to a square, channels first, and each has its own level."""
    assert images.unlabelled.images.shape == (4, 3, 64, 64)
    levels = [10 * int(case_id[1:]) for case_id in case_ids_of(images.unlabelled)]
    assert images.unlabelled.images[:, 0, 0, 0].tolist() == levels


def test_original_sizes_are_kept(images):
    """Height first."""
    assert images.unlabelled.sizes == ((HEIGHT, WIDTH),) * 4


def test_truth_has_a_plane_for_each_class(images):
    """Odd images have class 2, even ones class 1, at the left."""
    for case_id, truth in zip(case_ids_of(images.labelled), images.labelled.truth, strict=True):
        present = int(case_id[1:]) % 2
        assert truth[present, :, :32].all() and not truth[present, :, 32:].any()
        assert not truth[1 - present].any()


def test_only_labels_and_calibration_set_have_truth(images):
    """Hidden masks are not in memory."""
    assert [len(one.truth) for one in sets_of(images)] == [2, 2, 0, 0]


def test_counts_and_digests_by_purpose(images):
    """Each count is the set's; digests of several purposes are joined."""
    assert [images.count(purpose) for purpose in PURPOSES] == [2, 2, 4, 2]
    assert images.digests("calibration", "test") == {
        *images.calibration.digests,
        *images.test.digests,
    }


# ------------------------------------------------------------------------- bad images


def cut(folder, case_id):
    """Write an image with a sound header and only some of its pixels."""
    file = folder / "images" / f"{case_id}.png"
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:1000])


def test_a_truncated_image_is_left_out(folder, open_images):
    """It is named; the others are used."""
    cut(folder, "a3")
    images = open_images()
    assert [reason[:3] for reason in images.left_out] == ["a3:"]
    assert sum(map(images.count, PURPOSES)) == 9


def test_many_bad_images_are_an_error(folder, open_images):
    """Two of ten are more than a tenth."""
    cut(folder, "a3")
    cut(folder, "a4")
    with pytest.raises(DataError, match="2 of 10 images"):
        open_images()


# -------------------------------------------------------------------- withdrawn cases


def test_withdrawn_cases_leave_every_set(images, folder):
    """With image, truth, digest and size; the others keep theirs."""
    gone = [case_ids_of(one)[0] for one in sets_of(images)]
    stays = dict(zip(case_ids_of(images.labelled), images.labelled.truth, strict=True))
    (folder / "withdrawn.txt").write_text("\n".join(gone))
    images.leave_out_withdrawn()
    left = sets_of(images)
    assert [len(one) for one in left] == [1, 1, 3, 1]
    assert not {case_id for one in left for case_id in case_ids_of(one)} & set(gone)
    for one in left:
        assert len(one.images) == len(one.digests) == len(one.sizes) == len(one)
    (case_id,) = case_ids_of(images.labelled)
    assert torch.equal(images.labelled.truth[0], stays[case_id])


def test_withdrawing_leaves_the_split_alone(folder, open_images):
    """Calibration and test images are the same as before, so nothing leaks between them."""
    before = open_images()
    (folder / "withdrawn.txt").write_text(case_ids_of(before.unlabelled)[0])
    after = open_images()
    after.leave_out_withdrawn()
    assert case_ids_of(after.test) == case_ids_of(before.test)
    assert case_ids_of(after.calibration) == case_ids_of(before.calibration)


# ------------------------------------------------------------------------------- rest


def test_images_that_rested_are_read_again(images):
    """Pixels are dropped and come back the same; counting needs none."""
    before = sets_of(images)
    images.rest()
    assert [images.count(purpose) for purpose in PURPOSES] == [2, 2, 4, 2]
    assert images.pixel_bytes == 0
    for one, again in zip(before, sets_of(images), strict=True):
        assert torch.equal(again.images, one.images) and torch.equal(again.truth, one.truth)
        assert (again.digests, again.sizes) == (one.digests, one.sizes)


def test_withdrawn_cases_stay_out_after_a_rest(images, folder):
    """A set is read again without them."""
    (folder / "withdrawn.txt").write_text(case_ids_of(images.test)[0])
    images.leave_out_withdrawn()
    images.rest()
    assert len(images.test.images) == len(images.test) == 1
