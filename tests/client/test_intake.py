"""No response of a server is held beyond what the installed model needs."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from knowmine.client.intake import SMALL_BYTES, Intake
from knowmine.shared.errors import Refused

PIECE = bytes(100_000)


class Hostile(BaseHTTPRequestHandler):
    """Sends as many bytes as the address says, or without end, and counts what was taken."""

    sent = 0

    def do_GET(self):
        kind, size = self.path.strip("/").split("-")
        self.send_response(200)
        if kind == "packed":
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        left = int(size) or 10**12
        with suppress(OSError):  # hung up on
            while left > 0:
                self.wfile.write(PIECE[:left])
                type(self).sent += min(left, len(PIECE))
                left -= len(PIECE)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def server():
    """A real one, on a port of its own."""
    Hostile.sent = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def ask(server):
    """Get a kind of response of a size; a `part` counts against what was allowed, here 3 MB."""
    client = httpx.Client(base_url=f"http://127.0.0.1:{server.server_port}", trust_env=False)
    with client:

        def ask(kind, size, allow=3_000_000):
            intake = Intake(f"/{kind}-{size}" if kind == "part" else "/elsewhere")
            intake.allow(allow)
            client.event_hooks["response"] = [intake.look_at]
            return intake, lambda: client.get(f"/{kind}-{size}").content

        yield ask


def test_what_the_model_needs_comes_whole(ask):
    """To the last byte that is allowed."""
    _, get = ask("part", 3_000_000)
    assert len(get()) == 3_000_000


def test_one_byte_more_is_refused(ask):
    """With what was expected."""
    _, get = ask("part", 3_000_001)
    with pytest.raises(Refused, match="more than 3,000,000 bytes"):
        get()


def test_parts_count_together(ask):
    """Many small ones are one large one."""
    _, get = ask("part", 1_000_000)
    for _ in range(3):
        get()
    with pytest.raises(Refused):
        get()


def test_the_next_question_has_its_own_room(ask):
    """What the last one used is not held against it."""
    intake, get = ask("part", 3_000_000)
    get()
    intake.allow(3_000_000)
    assert len(get()) == 3_000_000


@pytest.mark.parametrize("kind", ["part", "other"])
def test_a_body_without_end_is_cut_off(ask, server, kind):
    """The server got rid of the allowed bytes and of what sockets hold, and no more."""
    _, get = ask(kind, 0)
    with pytest.raises(Refused):
        get()
    server.shutdown()
    assert Hostile.sent < 3_000_000 + 30_000_000


def test_a_response_that_is_no_part_is_small(ask):
    """Whatever room the parts have."""
    _, get = ask("other", SMALL_BYTES + 1, allow=10**9)
    with pytest.raises(Refused, match="more than 2,000,000"):
        get()


def test_a_compressed_body_is_refused(ask):
    """A kilobyte of it could become a gigabyte."""
    _, get = ask("packed", 1000)
    with pytest.raises(Refused, match="compressed"):
        get()
