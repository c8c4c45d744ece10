"""Sign each request of one process, as Flower's node authentication expects it.

Flower accepts a signed timestamp only within five minutes of the server's clock. If this machine's
clock is wrong, the time comes from the server's responses, which TLS has authenticated.
"""

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from importlib.metadata import version

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.shared.log import RunLog
from knowmine.shared.wire import codec

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

MAX_CLOCK_ERROR = timedelta(seconds=60)
"""A larger difference from the server's clock is corrected. Flower's limit is five minutes."""


class Identity:
    """The node key and the process name that go with every request; one of Flower's interceptors.

    instance: the random name of this process. replaces: the name of the process before it on this
    machine, empty if there was none.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, instance: str, log: RunLog) -> None:
        self._key, self._log = key, log
        self.instance, self.replaces = instance, ""
        self.public_key: bytes = public_key_to_bytes(key.public_key())
        self._offset = timedelta()

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Send the request; send it once more if the response shows that our clock is wrong."""
        self.sign(context.request)
        response = call_next(context)
        if response.status_code == httpx.codes.UNAUTHORIZED and self._correct_clock(response):
            self.sign(context.request)
            response = call_next(context)
        return response

    def sign(self, request: httpx.Request) -> None:
        """Add the headers that name this process and carry the signed time."""
        now = (datetime.now(UTC) + self._offset).isoformat()
        signature = sign_message(self._key, now.encode("ascii"))
        request.headers.update(
            {
                FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(self.public_key).decode("ascii"),
                TIMESTAMP_HEADER: now,
                FLEET_HTTP_SIGNATURE_HEADER: b64encode(signature).decode("ascii"),
                codec.INSTANCE_HEADER: self.instance,
                codec.REPLACES_HEADER: self.replaces,
                codec.VERSION_HEADER: version("knowmine"),
            }
        )

    def _correct_clock(self, response: httpx.Response) -> bool:
        """Follow the server's clock; return whether that changed the time by much."""
        try:
            there = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError):
            return False
        offset = there - datetime.now(UTC)
        if abs(offset - self._offset) < MAX_CLOCK_ERROR:
            return False
        self._log.event("clock", level="warning", wrong_by_s=round(offset.total_seconds()))
        self._offset = offset
        return True
