"""A site holds no more of a server's responses than the installed model needs."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from knowmine.client.federation.byte_budget import ByteBudget
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
def connection():
    """The budget of one connection."""
    return ByteBudget()


@pytest.fixture
def get(server, connection):
    """The body of a kind of response of a size."""
    address = f"http://127.0.0.1:{server.server_port}"
    with httpx.Client(base_url=address, trust_env=False) as client:
        client.event_hooks["response"] = [connection.count]
        yield lambda kind, size: client.get(f"/{kind}-{size}").content


@pytest.fixture
def get_part(get):
    """The same, as a part of a task."""

    def get_part(budget, size, kind="part"):
        with budget.part():
            return get(kind, size)

    return get_part


def test_what_the_model_needs_comes_whole(connection, get_part):
    """To the last byte that is allowed."""
    with connection.for_task(3_000_000, 0) as budget:
        assert len(get_part(budget, 3_000_000)) == 3_000_000


def test_one_byte_more_is_refused(connection, get_part):
    """With what was expected."""
    with (
        connection.for_task(3_000_000, 0) as budget,
        pytest.raises(Refused, match="more than 3,000,000 bytes"),
    ):
        get_part(budget, 3_000_001)


def test_parts_count_together(connection, get_part):
    """Many small ones are one large one."""
    with connection.for_task(3_000_000, 0) as budget:
        for _ in range(3):
            get_part(budget, 1_000_000)
        with pytest.raises(Refused):
            get_part(budget, 1)


def test_the_next_task_has_its_own_budget(connection, get_part):
    """The bytes of the last one do not count."""
    for _ in range(2):
        with connection.for_task(3_000_000, 0) as budget:
            assert len(get_part(budget, 3_000_000)) == 3_000_000


@pytest.fixture
def stalled(connection, get_part):
    """A task with one part that failed and another that still hangs in a thread.

    The list holds how that other part ended.
    """
    ended = []

    def hang(budget):
        try:
            ended.append(get_part(budget, 2_000_000, "stalled"))
        except Refused as error:
            ended.append(error)

    with suppress(ZeroDivisionError), connection.for_task(3_000_000, 0) as budget:
        thread = threading.Thread(target=hang, args=[budget])
        thread.start()
        assert Hostile.stalls.wait(30)
        raise ZeroDivisionError  # as a part that fails does
    yield ended
    Hostile.go_on.set()
    thread.join(30)


@pytest.mark.usefixtures("stalled")
def test_two_tasks_are_never_held_at_once(connection):
    """While a part of a failed task hangs, the next task does not start."""
    with pytest.raises(httpx.ReadTimeout, match="earlier task"):
        connection.for_task(3_000_000, 0.05)


def test_the_next_task_starts_when_the_last_part_is_gone(connection, get_part, stalled):
    """That part is cut off at its next piece, and the new task has its whole budget."""
    Hostile.go_on.set()
    with connection.for_task(3_000_000, 30) as budget:
        assert [str(end) for end in stalled] == ["this part belongs to a task that is over"]
        assert len(get_part(budget, 3_000_000)) == 3_000_000


def test_a_part_of_a_task_that_is_over_is_not_requested(connection, get_part, server):
    """The request is refused before it is sent."""
    with connection.for_task(3_000_000, 0) as budget:
        pass
    with pytest.raises(Refused, match="over"):
        get_part(budget, 1)
    assert Hostile.sent == 0


def test_a_part_without_end_is_cut_off(connection, get_part, server):
    """The server got rid of the allowed bytes and of what sockets hold, and no more."""
    with connection.for_task(3_000_000, 0) as budget, pytest.raises(Refused):
        get_part(budget, 0)
    server.shutdown()
    assert Hostile.sent < 3_000_000 + 30_000_000


def test_a_body_without_end_is_cut_off(get, server):
    """The same, for a response that is not a part."""
    with pytest.raises(Refused):
        get("other", 0)
    server.shutdown()
    assert Hostile.sent < 3_000_000 + 30_000_000


def test_a_response_that_is_not_a_part_is_small(connection, get):
    """Whatever the budget of the parts is."""
    with connection.for_task(10**9, 0), pytest.raises(Refused, match="more than 2,000,000"):
        get("other", SMALL_BYTES + 1)


def test_a_compressed_body_is_refused(get):
    """A kilobyte of it can unpack to a gigabyte. A proxy may have done it, and the message says so."""
    with pytest.raises(Refused, match="proxy"):
        get("packed", 1000)
