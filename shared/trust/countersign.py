"""Where a site's record of what left stands, and the server's word that it saw that.

With each answer a site sends its record's `Head`: the number and hash of the answer's receipt. The
server signs what it got beside it (`Confirmation`) and gives that back with its next question; it
writes the heads into its own record of the round. An end that a site cuts off later is then missed
by whoever holds a head, and a server cannot deny what it confirmed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from knowmine.shared.protocol import Calibration, Hello, Mined, Scores, Update
from knowmine.shared.trust.keys import is_signed_by, sign
from knowmine.shared.weights import digest_of

_PURPOSE = b"knowmine countersignature 1\n"

Answer: TypeAlias = Update | Scores | Hello
_KINDS = {Update: "update", Scores: "scores", Hello: "hello"}


class Head(NamedTuple):
    """A record's end at some time: the number of its last receipt, and SHA-256 of that line."""

    receipts: int
    hash: str


@dataclass(frozen=True)
class Confirmation:
    """What the server signs of an answer that arrived.

    receipts, head: the site's record, as the site said. digest: of the answer as it arrived
    (`digest_of_reply`), tensors and numbers. time: the server's, UTC.
    """

    site: str
    run: str
    round: int
    receipts: int
    head: str
    digest: str
    time: str
    signature: str = ""


def countersign(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, confirmation: Confirmation
) -> Confirmation:
    """The same, signed."""
    return replace(confirmation, signature=sign(key, _signed(confirmation)))


def is_countersigned(public_key: object, confirmation: Confirmation) -> bool:
    """Whether the owner of `public_key` confirmed it; never raises."""
    return is_signed_by(public_key, _signed(confirmation), confirmation.signature)


def digest_of_reply(reply: Answer) -> str:
    """SHA-256 over all that a reply holds, tensors and numbers; both ends find the same."""
    weights = digest_of(reply.weights) if isinstance(reply, Update) else ""
    told = {"kind": _KINDS[type(reply)], "weights": weights, "numbers": numbers_of(reply)}
    return hashlib.sha256(_canonical(told)).hexdigest()


def numbers_of(reply: Answer) -> dict[str, Any]:
    """All of a reply but its tensors."""
    values = {name: value for name, value in vars(reply).items() if name != "weights"}
    return {
        name: asdict(value) if isinstance(value, Mined | Calibration) else value
        for name, value in values.items()
    }


def _signed(confirmation: Confirmation) -> bytes:
    values = asdict(confirmation)
    del values["signature"]
    return _PURPOSE + _canonical(values)


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()
