"""One receipt: a line of JSON that says what crossed, chained to the line before and signed.

A line is canonical JSON (sorted keys, no blanks, ASCII) and ends in a newline. `previous` is the
SHA-256 of the line before without its newline, so `sha256sum` can check the chain by hand. The
signature is Ed25519 over the same JSON without the key `signature`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519

from knowmine.shared.trust.keys import is_signed_by, sign

ZEROS = "0" * 64
"""`previous` of a chain's first receipt."""
MAX_LINE = 1_000_000
_PURPOSE = b"knowmine receipt 1\n"

DIRECTIONS = ("in", "out", "here")
KINDS = MappingProxyType(
    {
        "opened": "the audit log began; `about` holds the site and its public key",
        "hello": "an introduction was asked for, or left",
        "train": "a round of training was asked for",
        "update": "an update left",
        "evaluate": "scores were asked for",
        "scores": "scores left",
        "refused": "something did not leave; `about` names the check",
        "failed": "an error left: one word of a closed list, which `about` holds",
        "held": "an update waits for a person",
        "approved": "a person let it leave",
        "end": "the server said that the run is over",
        "countersigned": "the server confirmed a receipt",
        "recovered": "a line that a crash cut short was removed from the end",
        "retired": "old files were removed, as the policy's keep_days says",
        "forgot": "keys and files of a project or a case were destroyed",
    }
)


@dataclass(frozen=True)
class Receipt:
    """What crossed, when, and what the site had let out by then.

    direction: in, out, or here if nothing crossed. kind: a key of `KINDS`. digest: SHA-256 of the
    whole message, numbers included. rounds_out, bytes_out: all that left until now, with this
    receipt. about: a few numbers and words that belong to the kind.
    """

    number: int
    time: str
    direction: str
    kind: str
    previous: str
    run: str = ""
    round: int = 0
    digest: str = ""
    bytes: int = 0
    policy: str = ""
    model: str = ""
    rounds_out: int = 0
    bytes_out: int = 0
    about: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def left(self) -> bool:
        """Whether this is an answer that went out."""
        return self.direction == "out"


_TYPES: dict[str, type] = {
    "number": int,
    "round": int,
    "bytes": int,
    "rounds_out": int,
    "bytes_out": int,
}
_TYPES |= {"about": dict}


def signed_line(receipt: Receipt, key: ed25519.Ed25519PrivateKey) -> bytes:
    """The receipt as its line, newline included."""
    values = asdict(receipt)
    signature = sign(key, _PURPOSE + canonical(values))
    return canonical({**values, "signature": signature}) + b"\n"


def read_line(line: bytes) -> tuple[Receipt, str]:
    """The receipt in a line without its newline, and its signature, which is not checked here.

    Raises `ValueError`, in words for the auditor, if the line is no receipt.
    """
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("it is no JSON") from None
    expected = {f.name for f in fields(Receipt)} | {"signature"}
    if not isinstance(values, dict) or set(values) != expected:
        raise ValueError("it has not the fields of a receipt")
    for name, value in values.items():
        if type(value) is not _TYPES.get(name, str) or (type(value) is int and value < 0):
            raise ValueError(f"its {name} is not what a receipt holds")
    if values["direction"] not in DIRECTIONS or values["kind"] not in KINDS:
        raise ValueError("its direction or kind is unknown")
    if not all(type(v) in (int, str) for v in values["about"].values()):
        raise ValueError("its about is not what a receipt holds")
    try:
        same = canonical(values) == line
    except ValueError:
        same = False
    if not same:
        raise ValueError("it is not written as a receipt is: something rewrote it")
    signature = values.pop("signature")
    return Receipt(**values), signature


def is_signed(line: bytes, public_key: object) -> bool:
    """Whether a line that `read_line` accepted is signed by the owner of `public_key`."""
    values: dict[str, Any] = json.loads(line)
    signature: str = values.pop("signature")
    return is_signed_by(public_key, _PURPOSE + canonical(values), signature)


def hash_of(line: bytes) -> str:
    """The next line's `previous`, from a line without its newline."""
    return hashlib.sha256(line).hexdigest()


def canonical(values: Mapping[str, Any]) -> bytes:
    """The one way to write these values, whoever writes them."""
    return json.dumps(
        values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()
