"""A kit is hostile until it is checked: nothing is unpacked, four known files are read."""

import gzip
import io
import tarfile
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.client.federation.kit import open_kit
from knowmine.shared.errors import KnowmineError, UsageError
from tests.provisioned import NOW, Federation


@pytest.fixture(scope="module")
def kits(tmp_path_factory):
    """The kits of lyon and oslo; tests leave them as they are."""
    made = Federation(tmp_path_factory.mktemp("federation"))
    made.provision()
    return made.folder / "kits"


def files_of(kits, site="lyon"):
    return {file.name: file.read_bytes() for file in (kits / site).iterdir()}


def member(name, content=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def packed(folder, *members):
    path = folder / "lyon.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def whole_members(kits):
    return [member(f"lyon/{name}", content) for name, content in files_of(kits).items()]


def written(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("form", ["lyon", "lyon.tar.gz"])
def test_a_kit_opens(kits, form):
    """As a folder and as an archive."""
    kit = open_kit(kits / form, NOW)
    assert (kit.enrolment.site, kit.settings.network.server) == ("lyon", "127.0.0.1:9443")


HOSTILE = {
    "a way out": member("lyon/../../evil", b"x"),
    "a way out below a known name": member("../ca.crt", b"x"),
    "an absolute path": member("/ca.crt", b"x"),
    "a soft link": member("lyon/ca.crt", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "a hard link": member("lyon/ca.crt", kind=tarfile.LNKTYPE, link="lyon/client.yaml"),
    "a device": member("lyon/ca.crt", kind=tarfile.CHRTYPE),
    "a fifo": member("lyon/ca.crt", kind=tarfile.FIFOTYPE),
    "an unknown file": member("lyon/run.sh", b"x"),
    "a file twice": member("lyon/ca.crt", b"x"),
    "a deeper file": member("lyon/keys/ca.crt", b"x"),
    "a file without folder": member("ca.crt", b"x"),
    "a large file": member("lyon/ca.crt", b"x" * 70_000),
    "a folder above": member("..", kind=tarfile.DIRTYPE),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("place", [0, 4])
def test_a_hostile_archive_is_refused(kits, tmp_path, what, place):
    """Before and behind the good files; and nothing is written anywhere."""
    members = whole_members(kits)
    members.insert(place, HOSTILE[what])
    path = packed(tmp_path, *members)
    with pytest.raises(UsageError):
        open_kit(path, NOW)
    assert list(tmp_path.iterdir()) == [path]


def test_a_bomb_is_not_unpacked(tmp_path):
    """A gigabyte of zeros in a small file."""
    with gzip.open(tmp_path / "lyon.tar.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1_000_000))
    with pytest.raises(UsageError, match="unpacks to more than"):
        open_kit(tmp_path / "lyon.tar.gz", NOW)


def test_a_crowd_of_entries_is_refused(kits, tmp_path):
    """Folders without end."""
    folders = [member("lyon", kind=tarfile.DIRTYPE)] * 20
    with pytest.raises(UsageError, match="more than 10 entries"):
        open_kit(packed(tmp_path, *folders), NOW)


def test_a_link_in_a_folder_is_not_followed(kits, tmp_path):
    """Not even to a good file."""
    folder = written(tmp_path / "kit", files_of(kits))
    (folder / "ca.crt").unlink()
    (folder / "ca.crt").symlink_to(kits / "lyon" / "ca.crt")
    with pytest.raises(UsageError, match="cannot read kit"):
        open_kit(folder, NOW)


@pytest.mark.parametrize("name", ["client.yaml", "ca.crt", "enrolment.json"])
def test_a_missing_file_is_named(kits, tmp_path, name):
    """Half a kit enrols nobody."""
    files = files_of(kits)
    del files[name]
    with pytest.raises(UsageError, match=f"{name} missing"):
        open_kit(written(tmp_path / "kit", files), NOW)


@pytest.mark.parametrize("line", ["data: /etc", "keys: /tmp", "sam: {weights: /x}", "state: ../x"])
def test_a_kit_names_no_path_on_the_machine(kits, tmp_path, line):
    """Those are the site's to choose."""
    files = files_of(kits)
    files["client.yaml"] += f"{line}\n".encode()
    with pytest.raises(UsageError, match=f"unknown key `{line.split(':')[0]}`"):
        open_kit(written(tmp_path / "kit", files), NOW)


def test_two_kits_are_not_mixed(kits, tmp_path):
    """Lyon's settings with oslo's secret."""
    files = files_of(kits) | {"enrolment.json": files_of(kits, "oslo")["enrolment.json"]}
    with pytest.raises(UsageError, match="mixes two kits"):
        open_kit(written(tmp_path / "kit", files), NOW)


def test_an_authority_has_to_be_one(kits, tmp_path):
    """A server's own certificate in its place would pin that one for good."""
    server = (kits.parent / "keys" / "server.crt").read_bytes()
    with pytest.raises(UsageError, match="not one certificate authority"):
        open_kit(written(tmp_path / "kit", files_of(kits) | {"ca.crt": server}), NOW)


def test_a_kit_past_its_date_says_so(kits):
    """Before keys are made in vain."""
    with pytest.raises(UsageError, match=r"the kit ended at .*--new-kit lyon"):
        open_kit(kits / "lyon.tar.gz", NOW + timedelta(days=31))


@settings(max_examples=60)
@given(cut=st.integers(0, 3000), flip=st.integers(0, 3000), by=st.integers(1, 255))
def test_a_damaged_archive_opens_as_it_was_or_not_at_all(kits, tmp_path_factory, cut, flip, by):
    """Cut short or changed in one byte."""
    content = bytearray((kits / "lyon.tar.gz").read_bytes())
    good = open_kit(kits / "lyon.tar.gz", NOW)
    content[flip % len(content)] ^= by
    path = tmp_path_factory.mktemp("kit") / "lyon.tar.gz"
    path.write_bytes(content[: len(content) - cut % len(content)] if cut else content)
    try:
        assert open_kit(path, NOW).enrolment == good.enrolment
    except KnowmineError as error:
        assert isinstance(error, UsageError)


@settings(max_examples=60)
@given(name=st.sampled_from(["client.yaml", "ca.crt", "enrolment.json"]), content=st.binary())
def test_no_content_of_a_file_crashes(kits, tmp_path_factory, name, content):
    """What is no kit is called so."""
    folder = written(tmp_path_factory.mktemp("kit") / "kit", files_of(kits) | {name: content})
    with pytest.raises(UsageError):
        open_kit(folder, NOW)
