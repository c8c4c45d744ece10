"""The authority survives; the server's certificate follows its hosts and its date."""

import stat
from datetime import UTC, datetime, timedelta

import pytest

from knowmine.server.enrolment.authority import Authority
from knowmine.shared.errors import UsageError
from knowmine.shared.trust.certificates import expires, fingerprint, hosts_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)
HOSTS = ["fed.example.org", "10.0.0.1"]


@pytest.fixture
def authority(tmp_path):
    return Authority.open(tmp_path / "ca", "chest", NOW)


def test_the_authority_survives_a_rebuild(authority, tmp_path):
    """Every kit that is out trusts this one."""
    again = Authority.open(tmp_path / "ca", "chest", NOW + timedelta(days=400))
    assert again.fingerprint == authority.fingerprint


@pytest.mark.parametrize("lost", ["ca.key", "ca.crt"])
def test_a_lost_half_is_never_replaced_by_another_key(authority, tmp_path, lost):
    """A lost key ends in an error; a lost certificate is made again for the same key."""
    (tmp_path / "ca" / lost).unlink()
    if lost == "ca.key":
        with pytest.raises(UsageError, match=r"ca\.key is not: restore"):
            Authority.open(tmp_path / "ca", "chest", NOW)
    else:
        again = Authority.open(tmp_path / "ca", "chest", NOW)
        assert again.certificate.public_key() == authority.certificate.public_key()


def test_a_foreign_certificate_is_not_used(authority, tmp_path):
    """Key and certificate have to belong together."""
    Authority.open(tmp_path / "other", "chest", NOW)
    (tmp_path / "ca" / "ca.crt").write_bytes((tmp_path / "other" / "ca.crt").read_bytes())
    with pytest.raises(UsageError, match="do not belong together"):
        Authority.open(tmp_path / "ca", "chest", NOW)


def test_the_key_is_private(authority, tmp_path):
    """Nobody else can sign for the federation."""
    modes = [stat.S_IMODE((tmp_path / "ca" / n).stat().st_mode) for n in (".", "ca.key")]
    assert modes == [0o700, 0o600]


@pytest.mark.parametrize(("after_days", "renewed"), [(0, False), (304, False), (306, True)])
def test_a_server_certificate_is_renewed_in_its_last_60_days(
    authority, tmp_path, after_days, renewed
):
    """Before that, provisioning again leaves it alone."""
    old = authority.certify_server(tmp_path / "keys", HOSTS, NOW)
    new = authority.certify_server(tmp_path / "keys", HOSTS, NOW + timedelta(days=after_days))
    assert (fingerprint(new) != fingerprint(old)) == renewed


def test_other_hosts_need_another_certificate(authority, tmp_path):
    """A moved server answers to its new name."""
    authority.certify_server(tmp_path / "keys", HOSTS, NOW)
    new = authority.certify_server(tmp_path / "keys", ["new.example.org"], NOW)
    assert hosts_of(new) == {"new.example.org"}


def test_a_renewal_keeps_the_key(authority, tmp_path):
    """One file changes, so no crash leaves a certificate without its key."""
    old = authority.certify_server(tmp_path / "keys", HOSTS, NOW)
    new = authority.certify_server(tmp_path / "keys", ["b.org"], NOW)
    assert new.public_key() == old.public_key()


def test_a_server_certificate_lasts_a_year(authority, tmp_path):
    """And no longer."""
    new = authority.certify_server(tmp_path / "keys", HOSTS, NOW)
    assert expires(new) == NOW + timedelta(days=365)
