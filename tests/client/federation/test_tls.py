"""How a site connects, and what it tells a person if it cannot."""

import re
import ssl
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from knowmine.client.federation.tls import detail_of, explained, http_client
from knowmine.client.settings import NetworkSettings
from knowmine.shared.errors import Refused
from knowmine.shared.trust.certificates import CLIENT, make_certificate
from knowmine.shared.trust.keys import make_ec_key

SETTINGS = NetworkSettings(server="knowmine.example:9443")
UNTRUSTED = ssl.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")


@pytest.fixture
def certificate(tmp_path):
    """A site's, ten days after it ended."""
    begin = datetime.now(UTC) - timedelta(days=5000)
    return make_certificate("lyon", make_ec_key(tmp_path / "key"), CLIENT, now=begin)


def test_responses_are_requested_uncompressed():
    """Compressed ones are refused."""
    with http_client(SETTINGS, ssl.create_default_context()) as client:
        request = client.build_request("POST", "https://localhost:1", content=b"")
    assert request.headers["accept-encoding"] == "identity"


def test_no_redirect_is_followed():
    """A redirect could lead to another server."""
    with http_client(SETTINGS, ssl.create_default_context()) as client:
        assert not client.follow_redirects


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ConnectError("refused"), "nothing answers at knowmine.example:9443"),
        (httpx.ProxyError("403"), "check HTTPS_PROXY"),
        (httpx.RemoteProtocolError("closed"), "hung up: .* ended"),
        (httpx.ReadTimeout("slow"), "knowmine.example:9443: slow"),
        (UNTRUSTED, "ask the coordinator whether this is their server"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_is_explained(certificate, error, said):
    """With the next thing to look at."""
    assert re.search(said, explained(error, SETTINGS, certificate, joined=True))


def test_a_server_that_was_never_the_right_one_is_refused(certificate):
    """The site does not try for ever."""
    with pytest.raises(Refused, match="does not vouch for"):
        explained(UNTRUSTED, SETTINGS, certificate, joined=False)


@pytest.mark.parametrize(
    ("body", "said"),
    [(b'{"detail": "too late"}', "too late (HTTP 409)"), (b"<html>", "<html> (HTTP 409)")],
)
def test_what_the_server_says_is_quoted(body, said):
    """Its own reason, or whatever a proxy in between wrote."""
    assert detail_of(httpx.Response(409, content=body)) == said


def test_a_long_answer_is_cut():
    """So a log line stays short."""
    assert len(detail_of(httpx.Response(500, text="x" * 10_000))) < 400
