"""Embeddings are computed once an image, kept on disk and not trusted blindly."""

import resource
from pathlib import Path

import numpy as np
import pytest

from knowmine.client.embeddings import EmbeddingStore
from knowmine.shared.errors import RunFailed

DIGEST = "ab" + "0" * 62
IMAGE = np.full((4, 6, 3), 7, np.uint8)


class FakeSam:
    """Embeds an image as its mean, everywhere."""

    name = "fake"

    def __init__(self, digest="5a" * 32):
        self.digest = digest

    def embed(self, image):
        return np.full((256, 64, 64), image.mean(), np.float32)

    def decode(self, embeddings, prompts):
        raise AssertionError("an embedding store decodes nothing")


def never():
    raise AssertionError("the image was read although its embedding is there")


def stored(folder):
    (file,) = folder.rglob("*.npy")
    return file


def test_an_embedding_is_that_of_sam_in_half_precision(tmp_path):
    """A miss reads the image and gives what SAM makes of it."""
    embedding = EmbeddingStore(tmp_path, FakeSam()).get(DIGEST, lambda: IMAGE)
    assert np.array_equal(embedding, np.full((256, 64, 64), 7))
    assert embedding.dtype == np.float16


def test_a_second_round_neither_reads_nor_encodes(tmp_path):
    """A new process finds the embedding on disk."""
    first = EmbeddingStore(tmp_path, FakeSam()).get(DIGEST, lambda: IMAGE)
    later = EmbeddingStore(tmp_path, FakeSam())
    assert np.array_equal(later.get(DIGEST, never), first)
    assert later.encoded == 0


def test_copies_of_an_image_share_one_embedding(tmp_path):
    """The key is the image's content, so the encoder runs once for two equal files."""
    store = EmbeddingStore(tmp_path, FakeSam())
    for _ in range(2):
        store.get(DIGEST, lambda: IMAGE)
    assert store.encoded == 1
    assert stored(tmp_path)


def test_other_weights_find_nothing_of_theirs(tmp_path):
    """An embedding of one SAM is not given out as another's."""
    EmbeddingStore(tmp_path, FakeSam()).get(DIGEST, lambda: IMAGE)
    assert not EmbeddingStore(tmp_path, FakeSam("77" * 32)).has(DIGEST)


def test_has_says_whether_it_is_there(tmp_path):
    """Before it is computed it is not there, afterwards it is."""
    store = EmbeddingStore(tmp_path, FakeSam())
    before = store.has(DIGEST)
    store.get(DIGEST, lambda: IMAGE)
    assert (before, store.has(DIGEST)) == (False, True)


def saved(array):
    return lambda file: np.save(file, array)


def with_infinity():
    array = np.zeros((256, 64, 64), np.float16)
    array[3, 2, 1] = np.inf
    return array


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda f: f.write_bytes(f.read_bytes()[:5000]), id="half-written"),
        pytest.param(lambda f: f.write_bytes(f.read_bytes() + b"x"), id="too long"),
        pytest.param(lambda f: f.write_bytes(b""), id="empty"),
        pytest.param(lambda f: f.write_bytes(b"no such format"), id="another kind of file"),
        pytest.param(saved(np.zeros((256, 64), np.float16)), id="wrong shape"),
        pytest.param(saved(np.zeros((256, 64, 64), np.float32)), id="wrong dtype"),
        pytest.param(saved(with_infinity()), id="infinity"),
        pytest.param(
            lambda f: np.save(f, np.array([Path()], dtype=object), allow_pickle=True), id="pickle"
        ),
    ],
)
def test_a_damaged_file_is_computed_again(tmp_path, damage):
    """What cannot be trusted on disk is replaced, never used."""
    EmbeddingStore(tmp_path, FakeSam()).get(DIGEST, lambda: IMAGE)
    damage(stored(tmp_path))
    store = EmbeddingStore(tmp_path, FakeSam())
    embedding = store.get(DIGEST, lambda: IMAGE)
    assert (embedding == 7).all() and store.encoded == 1
    assert EmbeddingStore(tmp_path, FakeSam()).has(DIGEST)


def test_a_full_disk_names_the_folder_and_leaves_nothing_half_written(tmp_path):
    """Where the system writes no more, the run fails with a repair and without debris."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunFailed, match=rf"cannot write .* {tmp_path}.*free space"):
            EmbeddingStore(tmp_path, FakeSam()).get(DIGEST, lambda: IMAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_values_beyond_half_precision_stay_finite(tmp_path):
    """A large value is clipped, so that the file is not taken for damaged for ever."""
    store = EmbeddingStore(tmp_path, FakeSam())
    huge = np.full((2, 2, 3), 1e6)  # the fake takes any number
    store.get(DIGEST, lambda: huge)
    assert store.has(DIGEST)
