"""What is kept of images is noise without its key, and cannot be swapped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knowmine.client.storage.encryption import MAGIC, Seal, destroy_keys
from knowmine.shared.errors import UsageError

PIXELS = b"pixels" * 100


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "vault-keys"


@pytest.fixture
def seal(keys):
    return Seal(keys)


def test_what_was_sealed_opens(keys, seal):
    """In a later process too."""
    sealed = seal.seal("gallery", "a", PIXELS)
    assert Seal(keys).unseal("gallery", "a", sealed) == PIXELS


def test_a_sealed_file_shows_nothing_of_its_content(seal):
    """Nor is it twice the same."""
    first, second = (seal.seal("gallery", "a", PIXELS) for _ in range(2))
    assert b"pix" not in first and first != second


@pytest.mark.parametrize(("kind", "name"), [("gallery", "b"), ("embedding", "a")])
def test_files_that_changed_places_do_not_open(seal, kind, name):
    """Even where both have keys."""
    sealed = seal.seal("gallery", "a", PIXELS)
    seal.seal(kind, name, b"own")
    assert seal.unseal(kind, name, sealed) is None


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_file_does_not_open(tmp_path_factory, place, change):
    """Whichever byte it is."""
    seal = Seal(tmp_path_factory.mktemp("keys") / "k")
    sealed = bytearray(seal.seal("gallery", "a", PIXELS))
    sealed[place] ^= change
    assert seal.unseal("gallery", "a", bytes(sealed)) is None


@pytest.mark.parametrize("content", [b"", MAGIC, MAGIC + b"x" * 12, b"plain"])
def test_what_is_no_sealed_file_does_not_open(seal, content):
    """Nor does it break anything."""
    seal.seal("gallery", "a", PIXELS)
    assert seal.unseal("gallery", "a", content) is None


def test_another_project_opens_nothing(seal, tmp_path):
    """Its key is another."""
    other = Seal(tmp_path / "other")
    other.seal("gallery", "a", b"own")
    assert other.unseal("gallery", "a", seal.seal("gallery", "a", PIXELS)) is None


def test_names_tell_nothing_and_are_always_the_same(keys, seal, tmp_path):
    """64 hex digits that follow from the project's key."""
    alias = seal.alias("case", "müller-1")
    assert (
        alias
        == Seal(keys).alias("case", "müller-1")
        != Seal(tmp_path / "o").alias("case", "müller-1")
    )
    assert len(alias) == 64 and seal.alias("embedding", "müller-1") != alias


def test_a_destroyed_key_opens_nothing_ever(keys, seal):
    """The others' do."""
    a, b = (seal.seal("gallery", name, PIXELS) for name in "ab")
    assert seal.destroy("gallery", "a") and not seal.destroy("gallery", "a")
    for later in (seal, Seal(keys)):
        assert later.unseal("gallery", "a", a) is None
        assert later.unseal("gallery", "b", b) == PIXELS


def test_a_new_key_does_not_open_the_old_file(seal):
    """A case that comes back gets a new key."""
    old = seal.seal("gallery", "a", PIXELS)
    seal.destroy("gallery", "a")
    new = seal.seal("gallery", "a", b"new")
    assert (seal.unseal("gallery", "a", old), seal.unseal("gallery", "a", new)) == (None, b"new")


def test_a_destroyed_project_opens_nothing(keys, seal):
    """Key and records are gone, and a new project begins."""
    sealed = seal.seal("gallery", "a", PIXELS)
    assert destroy_keys(keys) and not destroy_keys(keys)
    assert not list(keys.iterdir())
    assert Seal(keys).unseal("gallery", "a", sealed) is None


def test_a_record_that_a_crash_cut_short_costs_itself_alone(keys, seal):
    """The next one is written over it."""
    sealed = seal.seal("gallery", "a", PIXELS)
    with (keys / "files.keys").open("ab") as file:
        file.write(b"torn")
    later = Seal(keys)
    new = later.seal("gallery", "b", PIXELS)
    last = Seal(keys)
    assert last.unseal("gallery", "a", sealed) == last.unseal("gallery", "b", new) == PIXELS


def test_two_processes_share_the_keys(keys, seal):
    """What one seals the other opens and seals again."""
    other = Seal(keys)
    sealed = seal.seal("gallery", "a", PIXELS)
    assert other.unseal("gallery", "a", sealed) == PIXELS
    assert seal.unseal("gallery", "a", other.seal("gallery", "a", PIXELS)) == PIXELS


def test_keys_are_their_owners_alone(keys, seal):
    """From their first moment."""
    modes = {path.name: path.stat().st_mode & 0o777 for path in keys.iterdir()}
    assert modes == {"project.key": 0o600, "files.keys": 0o600}
    assert keys.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["project.key", "files.keys"])
def test_keys_that_others_can_read_are_refused(keys, seal, name):
    """With the command that repairs it."""
    (keys / name).chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        Seal(keys)


def test_a_lost_project_key_is_not_replaced_unsaid(keys, seal):
    """It would hide that all is lost."""
    (keys / "project.key").unlink()
    with pytest.raises(UsageError, match="cannot be opened any more"):
        Seal(keys)
