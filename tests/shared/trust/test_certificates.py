"""Certificates: whom they name, and when their end is announced."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.shared.trust.certificates import (
    CLIENT,
    SERVER,
    checked_host,
    common_name,
    fingerprint,
    hosts_of,
    make_certificate,
    to_der,
    warning_of_expiry,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEY = ec.generate_private_key(ec.SECP384R1())


def test_hosts_come_back():
    """Names and addresses, each as its kind."""
    hosts = ["fed.example.org", "10.0.0.1", "::1"]
    assert hosts_of(make_certificate("fed", KEY, SERVER, hosts=hosts)) == set(hosts)


def test_a_site_is_named():
    """The common name is the site's."""
    assert common_name(make_certificate("lyon", KEY, CLIENT)) == "lyon"


def test_a_fingerprint_is_what_openssl_shows():
    """SHA-256 over the DER form, in hex."""
    certificate = make_certificate("lyon", KEY, CLIENT)
    assert fingerprint(certificate) == hashlib.sha256(to_der(certificate)).hexdigest()


@pytest.mark.parametrize(
    ("after_days", "said"),
    [
        (0, None),
        (334, None),
        (335, "ends in 30 days"),
        (364, "ends in 1 days"),
        (365, "ended on 2027-03-01"),
    ],
)
def test_the_end_is_announced_30_days_ahead(after_days, said):
    """Silent before, urgent after."""
    certificate = make_certificate("lyon", KEY, CLIENT, now=NOW)
    warning = warning_of_expiry(certificate, NOW + timedelta(days=after_days))
    assert warning is None if said is None else said in (warning or "")


@pytest.mark.parametrize(
    "host", ["", "a b", "-a.org", "a..org", "10.0.0.300", "a/b", "*.org", "a\n", "x" * 64]
)
def test_what_is_no_host_is_refused(host):
    """A certificate for it would never match."""
    with pytest.raises(ValueError, match="neither a host name"):
        checked_host(host)
