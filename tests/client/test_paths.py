"""The state folder is divided between a site's two processes, and made before both start."""

import stat

import pytest
from PIL import Image

from knowmine.client.paths import (
    audit_log_of,
    couriers_part,
    pictures_of,
    prepare,
    save_picture,
    vaults_part,
)
from knowmine.client.settings import SITE_LOG, ClientSettings
from knowmine.shared.errors import CannotWrite


@pytest.fixture
def settings(tmp_path):
    values = {"federation": "trial", "site": "lyon", "network": {"server": "localhost:1"}}
    values |= {"data": tmp_path / "data", "state": tmp_path / "state", "keys": tmp_path / "keys"}
    return ClientSettings.model_validate({**values, "sam": {"cache": tmp_path / "cache"}})


def files_in(folder):
    """Content by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_all_that_both_processes_need_exists_afterwards(settings):
    """The courier cannot read what is made later beside the vault's part."""
    own = prepare(settings.state)
    assert own == settings.state / "courier" and (own / "answers").is_dir()
    settings.keys.mkdir()
    assert all(path.exists() for path in couriers_part(settings))


def test_its_folders_are_for_their_owner_alone(settings):
    """Other users of the machine see nothing of the site."""
    prepare(settings.state)
    folders = [path for path in settings.state.iterdir() if path.is_dir()]
    assert folders
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


def test_neither_process_has_the_others_part(settings):
    """No folder of the courier lies in one of the vault, or holds one."""
    for mine in couriers_part(settings):
        for other in vaults_part(settings).values():
            assert mine != other
            assert mine not in other.parents and other not in mine.parents


def test_a_second_start_changes_nothing(settings):
    """What was kept stays: answers, the audit log, the site's log."""
    own = prepare(settings.state)
    (own / "answers" / "update-1.safetensors").write_bytes(b"an answer")
    audit_log_of(settings.state).write_bytes(b"receipts")
    (settings.state / SITE_LOG).write_bytes(b"a line")
    before = files_in(settings.state)
    assert prepare(settings.state) == own
    assert files_in(settings.state) == before


def test_a_picture_of_patients_lies_in_the_vaults_part(settings):
    """The courier cannot read it there, and no other user can."""
    file = save_picture(settings.state, "sheet.png", Image.new("L", (2, 2)))
    assert vaults_part(settings)["what the vault keeps of the images"] in file.parents
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [place for place in pictures_of(settings.state) if place in file.parents]


def test_a_state_folder_that_cannot_be_made_is_said(tmp_path):
    """With the folder's name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file"):
        prepare(tmp_path / "file" / "state")
