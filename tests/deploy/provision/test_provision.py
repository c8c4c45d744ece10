"""Provisioning: complete, repeatable, and nothing is dropped silently."""

import stat
from datetime import timedelta

import pytest

from knowmine.server.settings import ServerSettings
from knowmine.shared.errors import SettingsError, UsageError
from knowmine.shared.settings import read_settings
from knowmine.shared.trust.certificates import hosts_of, load_certificate
from tests.provisioned import NOW, YAML, Federation

WITH_ROME = YAML.replace("oslo", "oslo, rome")
WITHOUT_OSLO = YAML.replace(", oslo", "")


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    made.provision()
    return made


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_provisioning_again_changes_no_byte(federation):
    """Same kits, same secrets, same authority."""
    before = contents(federation.folder)
    federation.provision()
    assert contents(federation.folder) == before


def test_the_server_settings_load(federation):
    """As knowmine-server reads them."""
    settings = read_settings(ServerSettings, federation.folder / "server.yaml", {})
    assert (settings.federation, settings.keys) == ("chest", federation.folder / "keys")


def test_a_new_site_gets_a_kit_and_the_others_keep_theirs(federation):
    """A federation grows."""
    before = contents(federation.folder / "kits")
    again = federation.provision(WITH_ROME)
    after = contents(federation.folder / "kits")
    assert again.made == ("rome",) and before.items() <= after.items()


def test_kits_and_secrets_are_private(federation):
    """Whoever reads a kit can become its site."""
    folder = federation.folder
    paths = [*(folder / "kits").rglob("*"), *(folder / "enrolments").glob("*.json")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()}
    folders = {stat.S_IMODE((folder / name).stat().st_mode) for name in ("kits", "enrolments")}
    assert (modes, folders) == ({0o600}, {0o700})


def test_a_used_kit_is_not_made_again_by_itself(federation):
    """The site is admitted; another kit is asked for by name."""
    federation.admit("lyon")
    again = federation.provision()
    assert (again.made, list(again.kits)) == ((), ["oslo"])


def test_a_new_kit_replaces_a_lost_one(federation):
    """The lost one is worthless from then on."""
    before = (federation.folder / "kits" / "lyon.tar.gz").read_bytes()
    again = federation.provision(new_kit="lyon")
    assert again.made == ("lyon",)
    assert (federation.folder / "kits" / "lyon.tar.gz").read_bytes() != before


def test_a_kit_past_its_date_is_told(federation):
    """And not made anew without being asked."""
    again = federation.provision(now=NOW + timedelta(days=31))
    assert (again.ended, again.kits, again.made) == (("lyon", "oslo"), {}, ())


def test_an_admitted_site_cannot_be_left_out(federation):
    """It would still be let in."""
    federation.admit("oslo")
    with pytest.raises(UsageError, match="revoke oslo"):
        federation.provision(WITHOUT_OSLO)


def test_an_unused_kit_cannot_be_left_out(federation):
    """It would still admit."""
    with pytest.raises(UsageError, match="'oslo' has an unused kit"):
        federation.provision(WITHOUT_OSLO)


def test_a_revoked_site_can_be_left_out(federation):
    """It was turned away openly."""
    federation.admit("oslo")
    federation.sites.revoke("oslo")
    assert federation.provision(WITHOUT_OSLO).ended == ()


def test_a_federation_keeps_its_name(federation):
    """Its authority bears it."""
    with pytest.raises(UsageError, match=r"'knowmine chest'.* 'brain'"):
        federation.provision(YAML.replace("chest", "brain"))


def test_server_settings_changed_by_hand_are_not_overwritten(federation):
    """The change moves to the federation's file first."""
    with (federation.folder / "server.yaml").open("a") as file:
        file.write("out: elsewhere\n")
    with pytest.raises(UsageError, match="was changed by hand"):
        federation.provision()


def test_moved_hosts_reach_certificate_and_kits(federation):
    """The same kit, with the new address."""
    federation.provision(YAML.replace("127.0.0.1, ", "fed.example.org, "))
    certificate = load_certificate(federation.folder / "keys" / "server.crt")
    kit = (federation.folder / "kits" / "lyon" / "client.yaml").read_text()
    assert hosts_of(certificate) == {"fed.example.org", "localhost"}
    assert "server: fed.example.org:9443" in kit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (YAML.replace("oslo", "lyon"), "names lyon twice"),
        (YAML.replace("oslo", "Oslo"), r"sites\.1"),
        (YAML.replace("127.0.0.1", "a b"), "neither a host name"),
        (YAML + "attendance: {minimum: 3}\n", "sites names 2"),
        (YAML + "attendance: {expected: [rome]}\n", "names rome, not in sites"),
        (YAML + "round: 3\n", "unknown key `round`"),
    ],
)
def test_a_wrong_file_is_refused_before_anything_is_made(tmp_path, text, said):
    """With file, key and repair."""
    federation = Federation(tmp_path)
    with pytest.raises(SettingsError, match=said):
        federation.provision(text)
    assert not federation.folder.exists()


def test_a_new_kit_for_nobody_is_refused(federation):
    """The site has to be named first."""
    with pytest.raises(UsageError, match="no site 'rome'"):
        federation.provision(new_kit="rome")
