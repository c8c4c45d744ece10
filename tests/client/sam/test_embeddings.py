"""The embedding of an image is computed once, kept on disk and checked when it is read."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from knowmine.client.sam.embeddings import EmbeddingStore, forget_embeddings
from knowmine.client.storage.encryption import Seal
from knowmine.shared.errors import RunFailed

DIGEST = "ab" + "0" * 62
IMAGE = np.full((4, 6, 3), 7, np.uint8)


class FakeSam:
    """Embeds an image as its mean, everywhere."""

    name, form, input_px = "fake", "", 1024

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


def test_other_weights_find_no_embedding(tmp_path):
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
    """A large value is clipped, or the file would count as damaged."""
    store = EmbeddingStore(tmp_path, FakeSam())
    huge = np.full((2, 2, 3), 1e6)  # the fake takes any number
    store.get(DIGEST, lambda: huge)
    assert store.has(DIGEST)


# ------------------------------------------------------------------------- sealed, and how much


OTHER = "cd" + "0" * 62


@pytest.fixture
def seal(tmp_path):
    return Seal(tmp_path / "keys")


@pytest.fixture
def sealed(tmp_path, seal):
    return EmbeddingStore(tmp_path / "cache", FakeSam(), seal=seal)


def files_in(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def test_a_sealed_embedding_is_read_back(tmp_path, seal, sealed):
    """By a later process with the key, without the encoder."""
    first = sealed.get(DIGEST, lambda: IMAGE)
    later = EmbeddingStore(tmp_path / "cache", FakeSam(), seal=seal)
    assert np.array_equal(later.get(DIGEST, never), first)


def test_a_sealed_file_reveals_neither_image_nor_embedding(tmp_path, sealed):
    """Its name and content are noise."""
    sealed.get(DIGEST, lambda: IMAGE)
    (file,) = files_in(tmp_path / "cache")
    assert DIGEST not in str(file) and b"NUMPY" not in file.read_bytes()


def test_sealed_files_that_changed_places_are_computed_again(tmp_path, sealed):
    """One image's embedding never serves as another's."""
    sealed.get(DIGEST, lambda: IMAGE)
    sealed.get(OTHER, lambda: 2 * IMAGE)
    a, b = files_in(tmp_path / "cache")
    a.write_bytes(b.read_bytes())
    assert sorted(map(sealed.has, (DIGEST, OTHER))) == [False, True]


def test_a_damaged_sealed_file_is_computed_again(tmp_path, sealed):
    """As a plain one is."""
    sealed.get(DIGEST, lambda: IMAGE)
    (file,) = files_in(tmp_path / "cache")
    file.write_bytes(file.read_bytes()[:-1])
    assert (sealed.get(DIGEST, lambda: IMAGE) == 7).all() and sealed.encoded == 2


def test_another_projects_embeddings_are_elsewhere(tmp_path, sealed):
    """One cache, two projects, nothing shared."""
    sealed.get(DIGEST, lambda: IMAGE)
    other = EmbeddingStore(tmp_path / "cache", FakeSam(), seal=Seal(tmp_path / "other"))
    assert not other.has(DIGEST)


def test_forgotten_embeddings_are_gone_with_their_keys(tmp_path, seal, sealed):
    """A copy of the file opens no more; the other image's stays."""
    sealed.get(DIGEST, lambda: IMAGE)
    (file,) = files_in(tmp_path / "cache")
    copy = file.read_bytes()
    sealed.get(OTHER, lambda: IMAGE)
    assert forget_embeddings(tmp_path / "cache", seal, [seal.alias("embedding", DIGEST)]) == 1
    file.write_bytes(copy)
    assert (sealed.has(DIGEST), sealed.has(OTHER)) == (False, True)


@pytest.mark.parametrize("with_seal", [False, True])
def test_beyond_the_quota_the_least_recently_used_goes(tmp_path, seal, with_seal):
    """Reading counts as use; the newest stays."""
    store = EmbeddingStore(
        tmp_path / "cache",
        FakeSam(),
        seal=seal if with_seal else None,
        quota_bytes=3 * 2_097_152 + 1000,
    )
    names = [f"{i:02x}" + "0" * 62 for i in range(4)]
    for i, name in enumerate(names[:3]):
        store.get(name, lambda: IMAGE)
        newest = max(files_in(tmp_path / "cache"), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (i, i))  # used long ago, one after the other
    store.get(names[0], never)
    store.get(names[3], lambda: IMAGE)
    assert [store.has(name) for name in names] == [True, False, False, True]


def test_without_a_quota_nothing_goes(tmp_path):
    """However much there is."""
    store = EmbeddingStore(tmp_path, FakeSam())
    for i in range(4):
        store.get(f"{i:02x}" + "0" * 62, lambda: IMAGE)
    assert len(files_in(tmp_path)) == 4


def test_another_precision_finds_no_embedding(tmp_path):
    """What one machine made in bfloat16 is not what another makes in float32."""
    coarse = FakeSam()
    coarse.form = "-bfloat16"
    EmbeddingStore(tmp_path, coarse).get(DIGEST, lambda: IMAGE)
    assert not EmbeddingStore(tmp_path, FakeSam()).has(DIGEST)
    assert EmbeddingStore(tmp_path, coarse).has(DIGEST)


def test_many_threads_may_make_room_at_once(tmp_path):
    """Files that others are writing or have just removed are not counted."""
    store = EmbeddingStore(tmp_path, FakeSam(), quota_bytes=5 * 2**21)
    digests = [f"{n:02x}" + "0" * 62 for n in range(48)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda digest: store.get(digest, lambda: IMAGE), digests))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert 0 < len(kept) <= 5 and {path.suffix for path in kept} == {".npy"}
