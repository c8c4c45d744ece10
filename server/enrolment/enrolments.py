"""Admit each site once, by the request that was made with its kit.

`enrolments/NAME.json` holds the secret of a site's newest kit until the kit is used.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hmac import compare_digest
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from knowmine.server.enrolment.allow_list import AdmittedSite, AllowList
from knowmine.server.enrolment.site_certificate import check_site_certificate
from knowmine.shared.errors import Refused, UsageError
from knowmine.shared.files import FolderLock
from knowmine.shared.settings import SiteName
from knowmine.shared.trust.certificates import to_pem
from knowmine.shared.trust.enrolment import (
    MAX_REQUEST_BYTES,
    Enrolment,
    Hex32,
    KitId,
    Request,
    RequestBody,
    code_of,
    read_request,
    signed_bytes,
)
from knowmine.shared.trust.keys import is_signed_by, make_private_folder, read_secret, write_secret

KIT_DAYS = 30


class IssuedKit(BaseModel):
    """What the coordinator keeps about a kit. The secret is deleted when the kit is used."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    federation: SiteName
    site: SiteName
    kit: KitId
    secret: Hex32 | None
    made_at: AwareDatetime
    expires_at: AwareDatetime
    used_at: AwareDatetime | None = None

    def __repr__(self) -> str:
        return f"IssuedKit(site={self.site!r}, kit={self.kit!r}, used_at={self.used_at})"

    __str__ = __repr__

    def enrolment(self) -> Enrolment:
        """What goes into the kit; raise `UsageError` if it was already used."""
        if self.secret is None:
            raise UsageError(f"the kit of site {self.site!r} was used: {another_kit(self.site)}")
        return Enrolment(
            federation=self.federation,
            site=self.site,
            kit=self.kit,
            secret=self.secret,
            expires_at=self.expires_at,
        )


@dataclass(frozen=True)
class Enrolments:
    """The folder of issued kits, readable by the coordinator alone."""

    folder: Path

    def of(self, site: str) -> IssuedKit | None:
        """The newest kit of `site`, used or not; None if it never had one."""
        path = self.folder / f"{site}.json"
        if not path.exists():
            return None
        try:
            kit = IssuedKit.model_validate_json(read_secret(path))
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]
            raise UsageError(
                f"{path} is damaged ({problem['msg']}): restore it, or delete it and make "
                f"another kit for site {site!r}"
            ) from None
        if kit.site != site:
            raise UsageError(f"{path} belongs to site {kit.site!r}: restore the right file")
        return kit

    def sites(self) -> list[str]:
        """Names of all sites that ever had a kit."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def issue(self, federation: str, site: str, now: datetime | None = None) -> IssuedKit:
        """Make a new kit; earlier kits of that site are invalid from now on."""
        now = (now or datetime.now(UTC)).replace(microsecond=0)
        make_private_folder(self.folder)
        kit = IssuedKit(
            federation=federation,
            site=site,
            kit=secrets.token_hex(8),
            secret=secrets.token_hex(32),
            made_at=now,
            expires_at=now + timedelta(days=KIT_DAYS),
        )
        self._write(kit)
        return kit

    def mark_used(self, kit: IssuedKit, now: datetime) -> None:
        """Delete the secret, and note when the kit was used."""
        self._write(kit.model_copy(update={"secret": None, "used_at": now.replace(microsecond=0)}))

    def _write(self, kit: IssuedKit) -> None:
        content = kit.model_dump_json(indent=2) + "\n"
        write_secret(self.folder / f"{kit.site}.json", content.encode(), replace=True)


def admit_request(
    request: Path | bytes, federation: Path, now: datetime | None = None
) -> AdmittedSite:
    """Admit the site that sent `request`, and use up its kit.

    federation: the folder with sites/ and enrolments/.

    1. The request has the right form and size.
    2. This federation made a kit for that site, and the request belongs to the newest one.
    3. That kit is unused and has not expired.
    4. The request was made with the kit's secret, and not changed since.
    5. The three keys are of the right kinds, and each signed the request.
    6. The certificate can be pinned safely, see `check_site_certificate`.
    7. No other site has one of the keys.

    The site's file is written before the kit is marked as used. After a crash between the two, the
    same request can be admitted again.
    Raises `UsageError` for 1 to 3, which a new kit or the right file repairs, and `Refused` for the
    others.
    """
    now = now or datetime.now(UTC)
    # 1. form and size
    sealed = read_request(request if isinstance(request, bytes) else _content(request))
    body = sealed.parsed_body()
    issued = Enrolments(federation / "enrolments")
    make_private_folder(issued.folder)
    lock = FolderLock(issued.folder)
    try:
        kit, secret = _usable_kit(issued, body, now)
        # 4. the secret, before any of the sender's keys is parsed
        if not compare_digest(code_of(sealed.body, secret), sealed.code):
            raise Refused(
                f"the request for site {body.site!r} was not made with that site's kit, or was "
                "changed on the way: ask the site how it was sent"
            )
        # 5. and 6. the keys
        _check_proofs(sealed, body)
        certificate = check_site_certificate(body.certificate, body.site, now)
        # The request must be signed by the very key that is pinned.
        if not is_signed_by(certificate.public_key(), signed_bytes(sealed.body), sealed.proofs.tls):
            raise _bad_proof(body.site, "tls")
        admitted = AdmittedSite(
            site=body.site,
            node_key=_without_comment(body.node_key),
            certificates=(to_pem(certificate).decode(),),
            audit_key=_without_comment(body.audit_key),
            admitted_at=now.isoformat(timespec="seconds"),
        )
        # 7. in put
        AllowList(federation / "sites").put(admitted)
        issued.mark_used(kit, now)
        return admitted
    finally:
        lock.release()


def another_kit(site: str) -> str:
    """What to do if a kit cannot be used."""
    return f"make another with `knowmine-server provision ... --new-kit {site}`"


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read request {path} ({error.strerror})") from error


def _usable_kit(issued: Enrolments, body: RequestBody, now: datetime) -> tuple[IssuedKit, str]:
    # 2. of this federation, for this site, the newest
    kit = issued.of(body.site)
    if kit is None:
        known = ", ".join(issued.sites()) or "none"
        raise UsageError(f"no kit was made for site {body.site!r}; sites with a kit: {known}")
    if body.federation != kit.federation:
        raise UsageError(
            f"the request is for federation {body.federation!r}; this one is {kit.federation!r}"
        )
    if body.kit != kit.kit:
        raise UsageError(
            f"the request was made with kit {body.kit} of site {body.site!r}; since {kit.made_at} "
            f"only kit {kit.kit} is valid: send that one to the site"
        )
    # 3. unused and in time
    if kit.secret is None:
        raise UsageError(
            f"the kit of site {body.site!r} was used at {kit.used_at}, and a kit admits once: "
            + another_kit(body.site)
        )
    if kit.expires_at <= now:
        raise UsageError(
            f"the kit of site {body.site!r} ended at {kit.expires_at}: {another_kit(body.site)}"
        )
    return kit, kit.secret


def _check_proofs(sealed: Request, body: RequestBody) -> None:
    """Raise `Refused` unless node and audit key are of the right kinds and signed the body."""
    kinds = {"node": ec.EllipticCurvePublicKey, "audit": ed25519.Ed25519PublicKey}
    lines = {"node": body.node_key, "audit": body.audit_key}
    signatures = {"node": sealed.proofs.node, "audit": sealed.proofs.audit}
    for name, line in lines.items():
        try:
            key = load_ssh_public_key(line.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Refused(
                f"site {body.site!r}: {name} key is not an OpenSSH line ({error})"
            ) from None
        if not isinstance(key, kinds[name]):
            raise Refused(f"site {body.site!r}: {name} key is {type(key).__name__}")
        if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size < 384:
            raise Refused(f"site {body.site!r}: {name} key is on {key.curve.name}, not P-384")
        if not is_signed_by(key, signed_bytes(sealed.body), signatures[name]):
            raise _bad_proof(body.site, name)


def _bad_proof(site: str, name: str) -> Refused:
    return Refused(
        f"the request for site {site!r} is not signed by its {name} key: the sender does not "
        "own that key; the site has to enrol again with another kit"
    )


def _without_comment(line: str) -> str:
    return " ".join(line.split()[:2])
