"""The allow-list: revocation, renewal, and files that are damaged or changed meanwhile."""

import json
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from knowmine.server.enrolment.allow_list import AdmittedSite, AllowList
from knowmine.shared.errors import Refused, UsageError
from knowmine.shared.trust.certificates import (
    CLIENT,
    SERVER,
    make_authority_certificate,
    make_certificate,
    to_der,
    to_pem,
)
from knowmine.shared.trust.keys import audit_line, node_line
from tests.provisioned import NOW

KEY = ec.generate_private_key(ec.SECP384R1())


def pem(site="lyon", key=None, usage=CLIENT, **more):
    key = key or ec.generate_private_key(ec.SECP384R1())
    return to_pem(make_certificate(site, key, usage, **more)).decode()


@pytest.fixture
def sites(tmp_path):
    """Lyon, with one certificate."""
    listed = AllowList(tmp_path / "sites")
    node, audit = node_line(KEY), audit_line(ed25519.Ed25519PrivateKey.generate())
    listed.put(AdmittedSite("lyon", node, (pem(now=NOW),), audit, "2026-01-01T00:00:00+00:00"))
    return listed


def test_a_revoked_site_is_remembered_and_not_welcome(sites):
    """Its file says since when."""
    sites.revoke("lyon", NOW)
    assert (sites.sites(), sites.all()["lyon"].revoked_at) == ({}, NOW.isoformat())


def test_revoking_twice_keeps_the_first_date(sites):
    """It tells since when its updates cannot be in a model."""
    sites.revoke("lyon", NOW)
    assert sites.revoke("lyon", NOW + timedelta(days=1)).revoked_at == NOW.isoformat()


def test_an_unknown_site_is_answered_with_the_known(sites):
    """A misspelling shows."""
    with pytest.raises(UsageError, match=r"no site 'lion' in .*; known: lyon"):
        sites.revoke("lion")


def test_a_renewal_adds_a_certificate(sites):
    """The old one serves beside it."""
    (old,) = sites.all()["lyon"].certificates
    new = pem(now=NOW)
    assert sites.renew("lyon", new, now=NOW).certificates == (old, new)


def test_a_renewal_sent_twice_is_pinned_once(sites):
    """A site that heard no answer sends it again."""
    new = pem(now=NOW)
    assert sites.renew("lyon", new, now=NOW) == sites.renew("lyon", new, now=NOW)


def test_a_third_certificate_pushes_out_the_one_that_is_not_in_use(sites):
    """The site that lost its second key still has the first."""
    first = sites.all()["lyon"].loaded_certificates()[0]
    sites.renew("lyon", pem(now=NOW), now=NOW)
    third = pem(now=NOW)
    renewed = sites.renew("lyon", third, in_use=to_der(first), now=NOW)
    assert renewed.certificates == (to_pem(first).decode(), third)


def test_a_certificate_that_ended_is_dropped(sites):
    """It opens nothing any more."""
    later = NOW + timedelta(days=366)
    new = pem(now=later)
    assert sites.renew("lyon", new, now=later).certificates == (new,)


def test_a_revoked_site_renews_nothing(sites):
    """Whatever certificate it shows."""
    sites.revoke("lyon")
    with pytest.raises(Refused, match="was revoked"):
        sites.renew("lyon", pem(now=NOW), now=NOW)


def by_another_key():
    issuer = make_authority_certificate("lyon", KEY, days=9, now=NOW), KEY
    return pem(issuer=issuer, now=NOW)


def of_an_authority():
    return to_pem(make_authority_certificate("lyon", KEY, days=9, now=NOW)).decode()


def of_rsa():
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lyon")])
    return to_pem(
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=9)).sign(
            key, hashes.SHA256()
        )
    ).decode()


UNSOUND = {
    "made out to 'CN=oslo'": lambda: pem("oslo", now=NOW),
    "not signed by its own key": by_another_key,
    "could sign others": of_an_authority,
    "weak or other key": of_rsa,
    "expected an elliptic curve": lambda: pem(key=ec.generate_private_key(ec.SECP192R1()), now=NOW),
    "not made for TLS clients": lambda: pem(usage=SERVER, now=NOW),
    "more than two years": lambda: pem(days=800, now=NOW),
    "check both clocks": lambda: pem(now=NOW - timedelta(days=400)),
    "is valid from": lambda: pem(now=NOW + timedelta(days=3)),
    "found 2 certificates": lambda: pem(now=NOW) + pem(now=NOW),
    "cannot be read": lambda: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "expected at most 8000": lambda: "a" * 9000,
}


@pytest.mark.parametrize("said", UNSOUND)
def test_an_unsound_certificate_is_not_pinned(sites, said):
    """And the one before stays."""
    before = sites.all()
    with pytest.raises(Refused, match=said):
        sites.renew("lyon", UNSOUND[said](), now=NOW)
    assert sites.all() == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"site": "oslo"}', "\ufeff{"])
def test_a_damaged_file_is_named_and_hurts_nobody_else(sites, content):
    """The rest of the federation goes on."""
    (sites.folder / "oslo.json").write_text(content)
    assert (list(sites.sites()), list(sites.damaged)) == (["lyon"], ["oslo.json"])


def test_a_file_under_another_name_admits_nobody(sites):
    """A copy is no second site."""
    (sites.folder / "oslo.json").write_bytes((sites.folder / "lyon.json").read_bytes())
    assert (list(sites.sites()), sites.damaged) == (["lyon"], {"oslo.json": "names site 'lyon'"})


@pytest.mark.parametrize("field", ["node_key", "audit_key", "certificates"])
def test_a_damaged_key_is_named_too(sites, field):
    """A server that reads the list can rely on every key in it."""
    values = json.loads((sites.folder / "lyon.json").read_text()) | {"site": "oslo"}
    values[field] = ["nothing"] if field == "certificates" else "nothing"
    (sites.folder / "oslo.json").write_text(json.dumps(values))
    assert (list(sites.sites()), list(sites.damaged)) == (["lyon"], ["oslo.json"])


def test_every_change_shows_in_the_version(sites):
    """A running server looks no further."""
    versions = [sites.version()]
    sites.renew("lyon", pem(now=NOW), now=NOW)
    versions.append(sites.version())
    sites.revoke("lyon")
    versions.append(sites.version())
    (sites.folder / "lyon.json").unlink()
    versions.append(sites.version())
    assert len(set(versions)) == 4


def test_looking_changes_no_version(sites):
    """Or a server would read the folder for ever."""
    before = sites.version()
    sites.all()
    assert sites.version() == before
