"""A site loads SAM late and embeds each image once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from knowmine.client.data.dataset import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.data.images import digest_of_file
from knowmine.client.sam.session import SamSession
from tests.client.small_site import FakeSam, never

HEIGHT, WIDTH = 20, 40


@pytest.fixture
def images(tmp_path):
    """Four images; the level of each is ten times its number."""
    cases = []
    for i in range(4):
        file = tmp_path / f"a{i}.png"
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 10 * i, np.uint8)).save(file)
        cases.append(Case(f"a{i}", file, None, f"a{i}"))
    return ImageSet(
        tuple(cases),
        torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(0, 1, 8, 8, dtype=torch.bool),
        tuple(digest_of_file(case.image) for case in cases),
        ((HEIGHT, WIDTH),) * 4,
    )


def session_of(folder: Path, sam=None):
    return SamSession(never if sam is None else lambda: sam, folder / "embeddings", 10**6)


@pytest.fixture
def session(tmp_path):
    return session_of(tmp_path, FakeSam())


def test_sam_is_not_loaded_to_count_what_it_encoded(tmp_path):
    """A method without SAM loads none."""
    assert session_of(tmp_path).encoded == 0


def test_sam_is_loaded_once(tmp_path):
    """On first use."""
    loaded = []

    def open_sam():
        loaded.append(FakeSam())
        return loaded[-1]

    session = SamSession(open_sam, tmp_path, 10**6)
    assert not loaded
    assert [session.model, session.model] == [loaded[0]] * 2 and len(loaded) == 1


def test_sam_embeds_the_original_image(session, images):
    """Not the square of the model frame."""
    embedding = session.embeddings([(images, 0)])[0]
    assert session.model.embedded == [(HEIGHT, WIDTH, 3)]
    assert (embedding.shape, embedding.dtype) == ((256, 64, 64), torch.float16)


def test_each_row_gets_its_own_embedding(session, images):
    """In the order asked for; the fake embeds the mean level."""
    found = session.embeddings([(images, row) for row in (2, 0, 3, 1)])
    assert found[:, 0, 0, 0].tolist() == [20, 0, 30, 10]


def test_an_image_is_embedded_once(session, images, tmp_path):
    """Neither twice in a run, nor again after the site was reopened."""
    for _ in range(2):
        session.embeddings([(images, 0)])
    again = session_of(tmp_path, FakeSam())
    again.embeddings([(images, 0)])
    assert (session.encoded, again.encoded) == (1, 0)


def test_copies_of_an_image_are_embedded_once(session, images):
    """Also within one call."""
    both = session.embeddings([(images, 0), (images, 0)])
    assert session.encoded == 1 and torch.equal(both[0], both[1])


def test_different_images_on_disk_are_counted(session, images):
    """Copies count once."""
    session.embeddings([(images, 0), (images, 1)])
    assert session.embedded([*images.digests, images.digests[0]]) == 2
