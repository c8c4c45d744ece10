"""Enrolment: keys that stay, settings that load, and a folder that is enrolled once."""

import stat

import pytest

from knowmine.client.federation import enrolment
from knowmine.client.federation import keys as site_keys
from knowmine.client.federation.keys import SiteKeys
from knowmine.client.settings import ClientSettings
from knowmine.server.enrolment.enrolments import admit_request
from knowmine.shared.errors import UsageError
from knowmine.shared.settings import read_settings
from knowmine.shared.trust import keys
from tests.provisioned import Federation


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    made.provision()
    return made


def test_the_settings_load(federation):
    """With the data folder and the coordinator put in."""
    federation.enrol("lyon")
    settings = read_settings(ClientSettings, federation.home("lyon") / "client.yaml", {})
    seen = (settings.site, settings.network.server, settings.data, settings.keys)
    home = federation.home("lyon")
    assert seen == ("lyon", "127.0.0.1:9443", federation.root / "data", home / "keys")


def test_private_keys_are_private(federation):
    """From the start."""
    federation.enrol("lyon")
    keys = federation.home("lyon") / "keys"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [keys, *keys.glob("*.key")]}
    assert modes == {"keys": 0o700, "tls.key": 0o600, "node.key": 0o600, "audit.key": 0o600}


def test_no_private_part_is_in_the_request(federation):
    """It may go by mail."""
    request = federation.enrol("lyon").read_text()
    secret = federation.folder / "enrolments" / "lyon.json"
    assert "PRIVATE" not in request
    assert all(word not in request for word in secret.read_text().split('"') if len(word) == 64)


def test_a_folder_is_enrolled_once(federation):
    """Its keys are what the coordinator knows."""
    federation.enrol("lyon")
    before = SiteKeys.load(federation.home("lyon") / "keys", "lyon").certificate
    with pytest.raises(UsageError, match=r"is already enrolled .*--new-kit lyon"):
        federation.enrol("lyon")
    assert SiteKeys.load(federation.home("lyon") / "keys", "lyon").certificate == before


def test_a_missing_data_folder_costs_nothing(federation):
    """No key is made before everything was checked."""
    with pytest.raises(UsageError, match="no folder"):
        enrolment.enrol(
            federation.folder / "kits" / "lyon", federation.home("lyon"), federation.root / "none"
        )
    assert not federation.home("lyon").exists()


@pytest.mark.parametrize("writes", range(7))
def test_a_crash_at_any_write_is_mended_by_enrolling_again(federation, monkeypatch, writes):
    """The same command again, and the coordinator admits what it made."""
    left = [writes]

    def dying(real):
        def write(*args, **more):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return real(*args, **more)

        return write

    with monkeypatch.context() as patch:
        for module, name in [
            (keys, "write_secret"),
            (site_keys, "write_atomically"),
            (enrolment, "write_atomically"),
        ]:
            patch.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(KeyboardInterrupt):
            federation.enrol("lyon")
    admit_request(federation.enrol("lyon"), federation.folder)
    assert list(federation.sites.sites()) == ["lyon"]
