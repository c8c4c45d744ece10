"""The messages that travel once, by hand, before a site can connect: a kit and a request.

The kit carries a one-time secret to the site. The request carries back the public halves of the
keys that the site made, a signature by each private half, and a code over all of it that needs the
secret. Nothing else has to travel: the coordinator pins the keys in the request.
"""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Annotated, TypeVar

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import AwareDatetime, BaseModel, ConfigDict, StringConstraints, ValidationError

from knowmine.shared.errors import UsageError
from knowmine.shared.settings import SiteName
from knowmine.shared.trust.keys import sign

KIT_FILES = ("client.yaml", "ca.crt", "enrolment.json", "README.txt")
MAX_REQUEST_BYTES = 64_000

# So a signed request can never pass for a message of another kind.
_CONTEXT = b"knowmine enrolment request 1\n"

Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
KitId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
SignatureHex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2,400}$")]
PublicLine = Annotated[str, StringConstraints(max_length=400)]
PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


M = TypeVar("M", bound=_Message)


class Enrolment(_Message):
    """A kit's enrolment.json. Its repr hides the secret."""

    federation: SiteName
    site: SiteName
    kit: KitId
    secret: Hex32
    expires_at: AwareDatetime

    def __repr__(self) -> str:
        return f"Enrolment(site={self.site!r}, kit={self.kit!r}, secret=***)"

    __str__ = __repr__


class RequestBody(_Message):
    """Who the site is, and the keys by which it will be known."""

    federation: SiteName
    site: SiteName
    kit: KitId
    certificate: Annotated[str, StringConstraints(max_length=8_000)]
    node_key: PublicLine
    audit_key: PublicLine
    created_at: AwareDatetime


class Proofs(_Message):
    """The body signed by each private key, which proves that the sender owns the keys."""

    tls: SignatureHex
    node: SignatureHex
    audit: SignatureHex


class Request(_Message):
    """A request as a file holds it: the body is one string, so that its exact bytes are signed."""

    body: Annotated[str, StringConstraints(max_length=MAX_REQUEST_BYTES)]
    proofs: Proofs
    code: Hex32

    def parsed_body(self) -> RequestBody:
        """The body, checked for form; raise `UsageError` if it is not one."""
        return _parse(RequestBody, self.body.encode(), "the request's body")


def make_request(body: RequestBody, keys: Mapping[str, PrivateKey], secret: str) -> bytes:
    """A request as the file to send. keys: tls, node and audit."""
    text = body.model_dump_json()
    proofs = Proofs(**{name: sign(keys[name], signed_bytes(text)) for name in Proofs.model_fields})
    request = Request(body=text, proofs=proofs, code=code_of(text, secret))
    return (request.model_dump_json(indent=2) + "\n").encode()


def read_request(content: bytes) -> Request:
    """Parse a request; raise `UsageError` for anything else."""
    if len(content) > MAX_REQUEST_BYTES:
        raise UsageError(f"a request has at most {MAX_REQUEST_BYTES} bytes: this is another file")
    return _parse(Request, content, "the request")


def read_enrolment(content: bytes) -> Enrolment:
    """Parse a kit's enrolment.json; raise `UsageError` for anything else."""
    return _parse(Enrolment, content, "enrolment.json")


def signed_bytes(body: str) -> bytes:
    """What each key signs."""
    return _CONTEXT + body.encode()


def code_of(body: str, secret: str) -> str:
    """HMAC-SHA256 of the body under the kit's secret, in hex."""
    return hmac.new(bytes.fromhex(secret), signed_bytes(body), hashlib.sha256).hexdigest()


def _parse(kind: type[M], content: bytes, what: str) -> M:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "top level"
        raise UsageError(
            f"{what} is not as expected: {where}: {problem['msg']}; take the file as it was made"
        ) from None
