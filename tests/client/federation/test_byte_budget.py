"""No response of a server is held beyond what the installed model needs."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from knowmine.client.federation.byte_budget import Intake
from knowmine.shared.errors import Refused
from knowmine.shared.wire.flower_objects import SMALL_BYTES

PIECE = bytes(100_000)


class Hostile(BaseHTTPRequestHandler):
    """Sends as many bytes as the address says, without end, or not before `go_on`."""

    protocol_version = "HTTP/1.1"
    sent = 0
    stalls, go_on = threading.Event(), threading.Event()

    def do_GET(self):
        kind, size = self.path.strip("/").split("-")
        self.send_response(200)
        if kind == "packed":
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(int(size) or 10**12))
        self.end_headers()
        left = int(size) or 10**12
        if kind == "stalled":
            self.stalls.set()
            self.go_on.wait(30)
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
    Hostile.stalls, Hostile.go_on = threading.Event(), threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        Hostile.go_on.set()
        server.shutdown()


@pytest.fixture
def intake():
    """Of one connection."""
    return Intake()


@pytest.fixture
def get(server, intake):
    """The body of a kind of response of a size."""
    address = f"http://127.0.0.1:{server.server_port}"
    with httpx.Client(base_url=address, trust_env=False) as client:
        client.event_hooks["response"] = [intake.look_at]
        yield lambda kind, size: client.get(f"/{kind}-{size}").content


@pytest.fixture
def get_part(get):
    """The same as a part of a question."""

    def get_part(room, size, kind="part"):
        with room.part():
            return get(kind, size)

    return get_part


def test_what_the_model_needs_comes_whole(intake, get_part):
    """To the last byte that is allowed."""
    with intake.question(3_000_000, 0) as room:
        assert len(get_part(room, 3_000_000)) == 3_000_000


def test_one_byte_more_is_refused(intake, get_part):
    """With what was expected."""
    with (
        intake.question(3_000_000, 0) as room,
        pytest.raises(Refused, match="more than 3,000,000 bytes"),
    ):
        get_part(room, 3_000_001)


def test_parts_count_together(intake, get_part):
    """Many small ones are one large one."""
    with intake.question(3_000_000, 0) as room:
        for _ in range(3):
            get_part(room, 1_000_000)
        with pytest.raises(Refused):
            get_part(room, 1)


def test_the_next_question_has_its_own_room(intake, get_part):
    """What the last one used is not held against it."""
    for _ in range(2):
        with intake.question(3_000_000, 0) as room:
            assert len(get_part(room, 3_000_000)) == 3_000_000


@pytest.fixture
def stalled(intake, get_part):
    """A question of which one part failed while another still hangs in a thread.

    Holds what became of that part, in the end.
    """
    ended = []

    def hang(room):
        try:
            ended.append(get_part(room, 2_000_000, "stalled"))
        except Refused as error:
            ended.append(error)

    with suppress(ZeroDivisionError), intake.question(3_000_000, 0) as room:
        thread = threading.Thread(target=hang, args=[room])
        thread.start()
        assert Hostile.stalls.wait(30)
        raise ZeroDivisionError  # as a part that fails does
    yield ended
    Hostile.go_on.set()
    thread.join(30)


@pytest.mark.usefixtures("stalled")
def test_two_questions_are_never_held_at_once(intake):
    """While a part of a question that failed hangs, the next one is not begun."""
    with pytest.raises(httpx.ReadTimeout, match="earlier question"):
        intake.question(3_000_000, 0.05)


def test_the_next_question_begins_when_the_last_part_is_gone(intake, get_part, stalled):
    """That part is cut off at its next piece, and the new question has its room to itself."""
    Hostile.go_on.set()
    with intake.question(3_000_000, 30) as room:
        assert [str(end) for end in stalled] == ["a part of a question that is over"]
        assert len(get_part(room, 3_000_000)) == 3_000_000


def test_a_part_that_is_asked_for_too_late_is_not_asked_for(intake, get_part, server):
    """Its question is over."""
    with intake.question(3_000_000, 0) as room:
        pass
    with pytest.raises(Refused, match="over"):
        get_part(room, 1)
    assert Hostile.sent == 0


def test_a_part_without_end_is_cut_off(intake, get_part, server):
    """The server got rid of the allowed bytes and of what sockets hold, and no more."""
    with intake.question(3_000_000, 0) as room, pytest.raises(Refused):
        get_part(room, 0)
    server.shutdown()
    assert Hostile.sent < 3_000_000 + 30_000_000


def test_a_body_without_end_is_cut_off(get, server):
    """The same, of whatever is no part."""
    with pytest.raises(Refused):
        get("other", 0)
    server.shutdown()
    assert Hostile.sent < 3_000_000 + 30_000_000


def test_a_response_that_is_no_part_is_small(intake, get):
    """Whatever room the parts have."""
    with intake.question(10**9, 0), pytest.raises(Refused, match="more than 2,000,000"):
        get("other", SMALL_BYTES + 1)


def test_a_compressed_body_is_refused(get):
    """A kilobyte of it could become a gigabyte; who did it may be a proxy, and that is said."""
    with pytest.raises(Refused, match="proxy"):
        get("packed", 1000)
