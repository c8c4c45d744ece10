"""Checkpoints of a site's audit log, and the server's signed confirmation of them.

With each reply a site sends the checkpoint of its audit log (`Head`): the number and hash of the
reply's receipt. The server writes the checkpoint into its record of the round. It also signs what
it received with it (`Confirmation`) and returns that with its next task. If the site later cuts
off the end of its log, anyone who holds a checkpoint can prove it; and the server cannot deny what
it confirmed.
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
    """A checkpoint of an audit log: the number of its last receipt and the SHA-256 of that line."""

    receipts: int
    hash: str


@dataclass(frozen=True)
class Confirmation:
    """What the server signs about a reply that arrived.

    receipts, head: the audit log's checkpoint, as the site sent it. digest: of the reply as it
    arrived, tensors and numbers (`digest_of_reply`). time: the server's, UTC.
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
    """The confirmation, signed."""
    return replace(confirmation, signature=sign(key, _signed(confirmation)))


def is_countersigned(public_key: object, confirmation: Confirmation) -> bool:
    """Whether the owner of `public_key` signed it; never raises."""
    return is_signed_by(public_key, _signed(confirmation), confirmation.signature)


def digest_of_reply(reply: Answer) -> str:
    """SHA-256 over all that a reply holds, tensors and numbers; equal at both ends."""
    weights = digest_of(reply.weights) if isinstance(reply, Update) else ""
    content = {"kind": _KINDS[type(reply)], "weights": weights, "numbers": numbers_of(reply)}
    return hashlib.sha256(_canonical(content)).hexdigest()


def numbers_of(reply: Answer) -> dict[str, Any]:
    """All of a reply except its tensors."""
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
