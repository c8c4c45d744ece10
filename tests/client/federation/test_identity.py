"""Requests are signed by the server's clock, and name the process."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.client.federation.identity import Identity
from knowmine.shared.log import silent
from knowmine.shared.wire import codec

from flwr.common.constant import TIMESTAMP_HEADER


@pytest.fixture
def identity():
    """A process called one, after a process called zero."""
    made = Identity(ec.derive_private_key(7, ec.SECP384R1()), "one", silent())
    made.replaces = "zero"
    return made


class Server:
    """Refuses the first requests; its clock differs from ours by `ahead`."""

    def __init__(self, refusals, ahead):
        self.refusals, self.ahead, self.times = refusals, ahead, []

    def __call__(self, context):
        self.times.append(datetime.fromisoformat(context.request.headers[TIMESTAMP_HEADER]))
        date = format_datetime(datetime.now(UTC) + self.ahead, usegmt=True)
        status = 401 if len(self.times) <= self.refusals else 200
        return httpx.Response(status, headers={"date": date} if self.ahead else {})


def send(identity, server):
    """The status that the caller sees."""
    request = httpx.Request("POST", "https://server")
    return identity.intercept(SimpleNamespace(request=request), server).status_code


def test_a_request_names_its_process_and_the_one_before(identity):
    """The server lets only one process work for a site."""
    request = httpx.Request("POST", "https://server")
    identity.sign(request)
    names = [request.headers[name] for name in (codec.INSTANCE_HEADER, codec.REPLACES_HEADER)]
    assert names == ["one", "zero"]


def test_a_wrong_clock_is_corrected_and_the_request_sent_again(identity):
    """The second request carries the server's time."""
    server = Server(refusals=1, ahead=timedelta(hours=3))
    assert send(identity, server) == 200
    assert server.times[1] - server.times[0] > timedelta(hours=2)


@pytest.mark.parametrize("ahead", [timedelta(), timedelta(seconds=20)])
def test_a_refusal_that_the_clock_does_not_explain_is_returned(identity, ahead):
    """The server gives no time, or nearly ours."""
    server = Server(refusals=9, ahead=ahead)
    assert (send(identity, server), len(server.times)) == (401, 1)


def test_a_clock_is_corrected_once_per_request(identity):
    """A server that refuses for another reason is not asked for ever."""
    server = Server(refusals=9, ahead=timedelta(hours=3))
    assert (send(identity, server), len(server.times)) == (401, 2)
