"""The parts of an image set stay together, and its pixels can be dropped."""

from pathlib import Path

import pytest
import torch

from knowmine.client.data.dataset import Case
from knowmine.client.data.image_set import ImageSet

N, PX = 4, 8


def image_set(*, with_truth):
    """Images of level 0 to 3; image i is i pixels high, and its mask is true in row i."""
    cases = tuple(Case(f"a{i}", Path(f"a{i}.png"), None, f"a{i}") for i in range(N))
    images = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1).repeat(1, 3, PX, PX)
    truth = torch.zeros((N if with_truth else 0, 1, PX, PX), dtype=torch.bool)
    for i, mask in enumerate(truth):
        mask[:, i] = True
    return ImageSet(cases, images, truth, tuple("abcd"), tuple((i, 9) for i in range(N)))


@pytest.fixture
def labelled():
    return image_set(with_truth=True)


def rows_of(images):
    """The row that each part of the set says it is."""
    return {
        "case_id": [int(case.case_id[1:]) for case in images.cases],
        "level": images.images[:, 0, 0, 0].tolist(),
        "truth": images.truth[:, 0].any(2).int().argmax(1).tolist(),
        "digest": ["abcd".index(digest) for digest in images.digests],
        "size": [height for height, _ in images.sizes],
    }


def test_some_rows_stay_together(labelled):
    """Case, image, truth, digest and size, in the order of the rows."""
    assert all(rows == [3, 1] for rows in rows_of(labelled.at([3, 1])).values())


def test_hidden_truth_stays_hidden():
    """Some rows of a set without truth have none either."""
    some = image_set(with_truth=False).at([3, 1])
    assert len(some) == 2 and some.truth.shape == (0, 1, PX, PX)


def test_no_rows_are_an_empty_set(labelled):
    """Its tensors keep their other dimensions."""
    none = labelled.at([])
    assert len(none) == 0 and none.images.shape == (0, 3, PX, PX)
    assert none.truth.shape == (0, 1, PX, PX)


def test_cases_are_left_out_by_id(labelled):
    """The others keep their own parts; unknown ids change nothing."""
    left = labelled.without(frozenset({"a1", "other"}))
    assert all(rows == [0, 2, 3] for rows in rows_of(left).values())
    assert labelled.without(frozenset({"other"})) is labelled


def test_an_emptied_set_keeps_its_cases(labelled):
    """Pixels take no memory any more; cases, digests and sizes stay."""
    rest = labelled.emptied()
    assert (labelled.pixel_bytes, rest.pixel_bytes) == (N * 4 * PX * PX, 0)
    assert rest.images.untyped_storage().nbytes() == 0
    assert (rest.cases, rest.digests, rest.sizes) == (
        labelled.cases,
        labelled.digests,
        labelled.sizes,
    )
