"""A site's keys, and a renewal that a crash may cut at any step."""

import shutil
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from knowmine.client.federation import keys as site_keys
from knowmine.client.federation.keys import SiteKeys, adopt_renewal, renew_certificate
from knowmine.shared.errors import UsageError
from knowmine.shared.trust.certificates import to_pem


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "keys"
    SiteKeys.open(folder, "lyon")
    return folder


@pytest.fixture
def keys(made, tmp_path):
    """The keys of lyon, a copy for each test."""
    shutil.copytree(made, tmp_path / "keys")
    return tmp_path / "keys"


def pem_in_use(keys):
    return to_pem(SiteKeys.load(keys, "lyon").certificate).decode()


def test_a_renewal_changes_nothing_until_it_is_adopted(keys):
    """The server does not know it yet."""
    before = pem_in_use(keys)
    renew_certificate(keys, "lyon")
    assert pem_in_use(keys) == before


def test_an_adopted_renewal_is_in_use(keys):
    """With its own key, and nothing left over."""
    new = renew_certificate(keys, "lyon")
    adopt_renewal(keys, "lyon")
    assert (pem_in_use(keys), list(keys.glob("tls-next*"))) == (new, [])


def test_a_renewal_makes_a_new_key(keys):
    """A key that leaked ends with its certificate."""
    before = SiteKeys.load(keys, "lyon").certificate.public_key()
    new = x509.load_pem_x509_certificate(renew_certificate(keys, "lyon").encode())
    assert new.public_key() != before


def test_a_renewal_is_asked_for_again_without_harm(keys):
    """The answer may have been lost."""
    assert renew_certificate(keys, "lyon") == renew_certificate(keys, "lyon")


def test_a_renewal_that_waited_too_long_is_made_anew(keys):
    """It ended before it was used."""
    old = renew_certificate(keys, "lyon", datetime.now(UTC) - timedelta(days=400))
    assert renew_certificate(keys, "lyon") != old


def test_adopting_nothing_changes_nothing(keys):
    """A site may do it at every start."""
    before = pem_in_use(keys)
    adopt_renewal(keys, "lyon")
    assert pem_in_use(keys) == before


@pytest.mark.parametrize("moves", [0, 1])
def test_a_crash_while_adopting_leaves_a_pair_that_fits(keys, monkeypatch, moves):
    """Old or new, whole; and adopting again ends with the new one."""
    new, real, left = renew_certificate(keys, "lyon"), site_keys._move, [moves]

    def dying(*args):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*args)

    before = pem_in_use(keys)
    with monkeypatch.context() as patch:
        patch.setattr(site_keys, "_move", dying)
        with pytest.raises(KeyboardInterrupt):
            adopt_renewal(keys, "lyon")
    assert pem_in_use(keys) == (new if moves else before)
    adopt_renewal(keys, "lyon")
    assert pem_in_use(keys) == new


def test_a_lost_next_key_does_not_take_the_certificate_in_use(keys):
    """A certificate without its key is worth nothing."""
    before = pem_in_use(keys)
    renew_certificate(keys, "lyon")
    (keys / "tls-next.key").unlink()
    adopt_renewal(keys, "lyon")
    assert pem_in_use(keys) == before


def test_keys_of_another_site_are_refused(keys):
    """Two sites on one machine are not confused."""
    with pytest.raises(UsageError, match="is of site 'lyon'; expected 'oslo'"):
        SiteKeys.load(keys, "oslo")


def test_a_key_that_does_not_fit_is_refused(keys):
    """Restored from another backup, say."""
    shutil.copy(keys / "tls.key", keys / "node.key")
    renew_certificate(keys, "lyon")
    shutil.copy(keys / "tls-next.key", keys / "tls.key")
    with pytest.raises(UsageError, match="do not belong together"):
        SiteKeys.load(keys, "lyon")
