"""A site introduces itself by its model and its counts of images."""

import pytest

from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.protocol import PROTOCOL
from knowmine.shared.weights import digest_of_manifest
from tests.client.small_site import FakeSam, small_site

# Of ten images two are test images, two calibration images, two labelled and four unlabelled.
SPLIT = {"labelled": 4, "calibration_fraction": 0.5, "test_fraction": 0.2}


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / "data", 10)
    return tmp_path / "data"


@pytest.fixture
def site(folder, tmp_path):
    return small_site(folder, tmp_path, sam=FakeSam(), **SPLIT)


def test_a_site_introduces_itself(site):
    """With counts of images, and with the digest of the model that it would train."""
    hello = site.hello()
    assert (hello.site, hello.protocol) == ("lyon", PROTOCOL)
    assert (hello.labelled, hello.calibration, hello.unlabelled, hello.test) == (4, 2, 4, 2)
    assert hello.model_digest == digest_of_manifest(site.models.manifest)


def test_withdrawn_cases_are_not_counted(site, folder):
    """The list is read whenever the server asks."""
    (folder / "withdrawn.txt").write_text(site.images.test.cases[0].case_id)
    assert site.hello().test == 1


def test_a_site_that_rests_introduces_itself_without_reading_an_image(site):
    """Its counts need no pixels."""
    hello = site.hello()
    site.images.rest()
    assert (site.hello(), site.images.pixel_bytes) == (hello, 0)


def test_a_test_mask_that_cannot_be_scored_is_named(site, folder, tmp_path):
    """Before the first round, from its header."""
    case_id = site.images.test.cases[0].case_id
    (folder / "masks" / f"{case_id}.png").write_bytes(b"garbage")
    again = small_site(folder, tmp_path, **SPLIT)
    assert not site.left_out and again.left_out[0].startswith(f"{case_id}: its mask")


def test_embeddings_on_disk_are_counted(site, folder, tmp_path):
    """Those of images that SAM may be prompted on, also from an earlier run."""
    pairs = [(site.images.unlabelled, row) for row in (0, 1)] + [(site.images.test, 0)]
    site.models.sam.embeddings(pairs)
    assert small_site(folder, tmp_path, sam=FakeSam(), **SPLIT).embedded == 2
