"""The checks that a request has to pass, at the level of ASGI."""

import asyncio
import json
from base64 import b64encode

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from knowmine.client.federation.keys import SiteKeys
from knowmine.server.network.guard import Guard, Members, status_of
from knowmine.server.network.presence import AnotherIsHere, NotHere, Presence
from knowmine.shared.errors import Refused
from knowmine.shared.trust.certificates import to_der
from tests.provisioned import Federation

LIMIT = 1000


def key_bytes(key):
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


class Door:
    """A guard, its sites, and an app behind it that reads the body and returns its sender."""

    def __init__(self, root):
        self.federation = Federation(root)
        self.federation.provision()
        for site in ("lyon", "oslo"):
            self.federation.admit(site)
        self.presence = Presence(60)
        self.presence.arrive("lyon", "one")
        self.members = Members(self.federation.sites, key_bytes)
        self.guard = Guard(
            self.app,
            members=self.members,
            presence=self.presence,
            before_joining=frozenset({"/join"}),
            key_header="key",
            max_bytes=LIMIT,
        )

    async def app(self, scope, receive, send):
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        body = json.dumps([scope["state"]["sender"].site, size]).encode()
        self.state = scope["state"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    def keys(self, site):
        return SiteKeys.load(self.federation.home(site) / "keys", site)

    def ask(self, certificate="lyon", key="lyon", instance="one", path="/", body=(b"",), **headers):
        """Status and body of the answer; `body` comes in chunks."""
        shown = {"key": b64encode(key_bytes(self.keys(key).node.public_key())).decode()}
        shown |= {"knowmine-instance": instance, **headers}
        state = {"certificate": to_der(self.keys(certificate).certificate) if certificate else None}
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in shown.items()],
            "state": state,
        }
        chunks, sent = list(body), []

        async def receive():
            chunk = chunks.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(chunks)}

        async def send(message):
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.fixture(scope="module")
def door(tmp_path_factory):
    return Door(tmp_path_factory.mktemp("door"))


def test_a_site_that_shows_everything_comes_in(door):
    """The app behind the guard knows its name."""
    assert door.ask() == (200, ["lyon", 0])


def test_no_certificate(door):
    """403, before any other check."""
    assert door.ask(certificate=None)[0] == 403


def test_the_node_key_of_another_site(door):
    """The reason names the site of the certificate."""
    status, reason = door.ask(key="oslo")
    assert (status, reason["detail"]) == (403, "this is not the node key of site 'lyon'")


@pytest.mark.parametrize("key", ["", "%%%", "AAAA"])
def test_a_node_key_that_is_none(door, key):
    """Whatever the header holds."""
    checked = door.guard._check(
        {"state": {"certificate": to_der(door.keys("lyon").certificate)}, "path": "/"},
        {"key": key},
    )
    assert checked[0] == 403


def test_another_process(door):
    """409: only one works for a site."""
    assert door.ask(instance="two")[0] == 409


def test_a_process_that_did_not_join(door):
    """401: it has to join first."""
    assert door.ask(certificate="oslo", key="oslo")[0] == 401


def test_a_process_that_joins_is_checked_by_the_route(door):
    """The route knows the whole request."""
    assert door.ask(certificate="oslo", key="oslo", path="/join") == (200, ["oslo", 0])


@pytest.mark.parametrize("length", [str(LIMIT + 1), "-1", "1e3", "many", ""])
def test_an_announced_length_that_will_not_do(door, length):
    """413 without reading a byte."""
    assert door.ask(content_length=length)[0] == 413


@given(st.lists(st.integers(0, 400), min_size=1, max_size=6))
def test_bodies_are_counted_as_they_come(door, sizes):
    """Up to the limit they arrive whole, above it they are 413, however they are cut."""
    status, answer = door.ask(body=[bytes(size) for size in sizes])
    if sum(sizes) <= LIMIT:
        assert (status, answer) == (200, ["lyon", sum(sizes)])
    else:
        assert (status, answer["detail"]) == (413, f"a request may hold at most {LIMIT} bytes")


def test_what_is_not_http_is_ignored(door):
    """Web sockets and the like."""
    asyncio.run(door.guard({"type": "websocket"}, None, None))


def test_refusals_have_a_status():
    """It tells the site what to do next."""
    assert [status_of(kind("")) for kind in (NotHere, AnotherIsHere, Refused)] == [401, 409, 403]


def test_a_revoked_site_is_a_stranger_within_a_second(tmp_path):
    """The allow-list is checked that often."""
    door = Door(tmp_path)
    before = door.ask()[0]
    door.federation.sites.revoke("lyon")
    door.members._checked_at -= 2
    assert (before, door.ask()[0]) == (200, 403)


def test_a_request_that_is_answered_is_let_go(door):
    """The connection stays open and would keep the request's parsed body until the next one."""
    status, _ = door.ask()
    assert (status, door.state) == (200, {})
