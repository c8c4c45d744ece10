"""A site is admitted once, by the request that its kit made; anything else is refused."""

import json
import os
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowmine.client.federation.keys import SiteKeys
from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.enrolment.enrolments import Enrolments, admit_request
from knowmine.shared.errors import KnowmineError, Refused, UsageError
from knowmine.shared.trust.certificates import to_pem
from knowmine.shared.trust.enrolment import PrivateKey, code_of, read_request, signed_bytes
from knowmine.shared.trust.keys import node_line, sign
from tests.provisioned import NOW, Federation


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A federation whose sites have both made their request; tests leave it as it is."""
    made = Federation(tmp_path_factory.mktemp("federation"))
    made.provision()
    made.enrol("lyon")
    made.enrol("oslo")
    return made


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    made.provision()
    return made


def request_of(federation, site="lyon"):
    return (federation.home(site) / f"{site}.request").read_bytes()


def changed(federation, body=(), proofs=(), secret=None):
    """Lyon's request with other values in it, the code made anew where `secret` is given."""
    request = json.loads(request_of(federation))
    request["body"] = json.dumps({**json.loads(request["body"]), **dict(body)})
    request["proofs"].update(dict(proofs))
    if secret:
        request["code"] = code_of(request["body"], secret)
    return json.dumps(request).encode()


def secret_of(federation, site="lyon"):
    kit = Enrolments(federation.folder / "enrolments").of(site)
    assert kit
    return kit.secret


def refusal_of(federation, request, now=NOW):
    """What the operator reads; and nobody was admitted."""
    with pytest.raises(KnowmineError) as caught:
        admit_request(request, federation.folder, now)
    assert AllowList(federation.folder / "sites").all() == {}
    return caught.value


def test_a_request_admits_its_site(federation):
    """By the keys that the site made."""
    request = federation.enrol("lyon")
    admitted = admit_request(request, federation.folder)
    keys = SiteKeys.load(federation.home("lyon") / "keys", "lyon")
    assert federation.sites.sites() == {"lyon": admitted}
    assert (admitted.node_key, admitted.certificates) == (
        node_line(keys.node),
        (to_pem(keys.certificate).decode(),),
    )


def test_a_kit_admits_once(federation):
    """The second time, the operator reads when it was used."""
    federation.admit("lyon")
    with pytest.raises(UsageError, match=r"was used at 20.*--new-kit lyon"):
        admit_request(request_of(federation), federation.folder)


def test_a_revoked_site_does_not_come_back_by_its_old_request(federation):
    """It needs another kit."""
    federation.admit("lyon")
    federation.sites.revoke("lyon")
    with pytest.raises(UsageError, match="was used"):
        admit_request(request_of(federation), federation.folder)
    assert federation.sites.sites() == {}


def test_a_new_kit_admits_a_revoked_site_again(federation):
    """By new keys, in place of the old."""
    federation.admit("lyon")
    federation.sites.revoke("lyon")
    federation.provision(new_kit="lyon")
    admit_request(federation.enrol("lyon", federation.root / "second"), federation.folder)
    assert list(federation.sites.sites()) == ["lyon"]


def test_a_used_secret_is_forgotten(federation):
    """It is on no disk of the coordinator's list any more."""
    secret = secret_of(federation)
    federation.admit("lyon")
    assert secret not in (federation.folder / "enrolments" / "lyon.json").read_text()


def test_a_crash_before_the_kit_is_marked_can_be_repeated(federation, monkeypatch):
    """The same request admits the same site again."""
    request = federation.enrol("lyon")

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Enrolments, "mark_used", crash)
        with pytest.raises(KeyboardInterrupt):
            admit_request(request, federation.folder)
    admit_request(request, federation.folder)
    assert list(federation.sites.sites()) == ["lyon"]


def test_an_older_kit_is_worthless(federation):
    """Only the newest counts."""
    request = federation.enrol("lyon")
    federation.provision(new_kit="lyon")
    refused = refusal_of(federation, request)
    assert isinstance(refused, UsageError) and "only kit" in str(refused)


def test_a_kit_ends(whole):
    """After 30 days."""
    refused = refusal_of(whole, request_of(whole), NOW + timedelta(days=31))
    assert isinstance(refused, UsageError) and "ended at" in str(refused)


def test_a_request_of_nobody_is_refused(whole):
    """Sites with a kit are named."""
    refused = refusal_of(whole, changed(whole, body={"site": "rome"}))
    assert "no kit was made for site 'rome'; sites with a kit: lyon, oslo" in str(refused)


def test_a_request_of_another_federation_is_refused(whole):
    """Both names are said."""
    refused = refusal_of(whole, changed(whole, body={"federation": "brain"}))
    assert "is for federation 'brain'; this one is 'chest'" in str(refused)


def test_a_request_without_the_secret_is_refused(whole):
    """Another kit's secret is no better."""
    refused = refusal_of(whole, changed(whole, secret=secret_of(whole, "oslo")))
    assert isinstance(refused, Refused) and "not made with that site's kit" in str(refused)


def test_an_edited_request_is_refused(whole):
    """Keys exchanged on the way do not fit the code."""
    theirs = json.loads(json.loads(request_of(whole, "oslo"))["body"])["node_key"]
    assert isinstance(refusal_of(whole, changed(whole, body={"node_key": theirs})), Refused)


@pytest.mark.parametrize("name", ["tls", "node", "audit"])
def test_each_key_has_to_prove_itself(whole, name):
    """Even a holder of the secret cannot claim a key that another owns."""
    theirs = json.loads(request_of(whole, "oslo"))["proofs"][name]
    request = changed(whole, proofs={name: theirs}, secret=secret_of(whole))
    if name == "tls":  # the earlier proofs have to hold, over the very same body
        request = json.loads(request_of(whole))
        request["proofs"]["tls"] = theirs
        request = json.dumps(request).encode()
    refused = refusal_of(whole, request)
    assert isinstance(refused, Refused) and "is not signed by its" in str(refused)


def test_a_key_of_another_site_is_refused(federation):
    """Two sites with one identity would count as two."""
    federation.admit("lyon")
    federation.enrol("oslo")
    mine = SiteKeys.load(federation.home("oslo") / "keys", "oslo")
    theirs = SiteKeys.load(federation.home("lyon") / "keys", "lyon")
    sealed = read_request(request_of(federation, "oslo"))
    body = json.dumps({**json.loads(sealed.body), "node_key": node_line(theirs.node)})
    keys: dict[str, PrivateKey] = {"tls": mine.tls, "node": theirs.node, "audit": mine.audit}
    request = {
        "body": body,
        "proofs": {name: sign(key, signed_bytes(body)) for name, key in keys.items()},
        "code": code_of(body, secret_of(federation, "oslo")),
    }
    with pytest.raises(Refused, match="shows a key of site 'lyon'"):
        admit_request(json.dumps(request).encode(), federation.folder)


@settings(max_examples=60)
@given(
    content=st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["body", "proofs", "code", "site"]), inner, max_size=4
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_what_is_no_request_is_called_so(whole, content):
    """Whatever somebody sends."""
    assert isinstance(refusal_of(whole, content), UsageError)


@settings(max_examples=60)
@given(
    field=st.sampled_from(["federation", "site", "kit", "certificate", "node_key", "audit_key"]),
    value=st.text(max_size=60) | st.none() | st.integers(),
    knows_the_secret=st.booleans(),
)
def test_no_changed_field_gets_in(whole, field, value, knows_the_secret):
    """Not even from a holder of the secret: what was signed is something else."""
    secret = secret_of(whole) if knows_the_secret else None
    refusal_of(whole, changed(whole, body={field: value}, secret=secret))


def test_a_huge_request_is_not_read(whole, tmp_path):
    """A request is a page of text."""
    with (tmp_path / "big").open("wb") as file:
        os.truncate(file.fileno(), 10**12)
    assert "at most" in str(refusal_of(whole, tmp_path / "big"))


def test_a_deep_request_is_refused(whole):
    """Nesting cannot exhaust the parser."""
    assert isinstance(refusal_of(whole, b"[" * 60_000), UsageError)


def test_secrets_are_not_shown(whole):
    """Neither kit nor enrolment prints its secret."""
    kit = Enrolments(whole.folder / "enrolments").of("lyon")
    assert kit and kit.secret
    assert kit.secret not in f"{kit!r} {kit} {kit.enrolment()!r} {kit.enrolment()}"
