"""A site's three private keys and its certificate; renewed so that no crash locks the site out."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.trust.certificates import (
    CLIENT,
    common_name,
    expires,
    load_certificate,
    make_certificate,
    to_pem,
)
from knowmine.shared.trust.keys import (
    load_audit_key,
    load_ec_key,
    make_audit_key,
    make_ec_key,
    make_private_folder,
    sync_folder,
)
from knowmine.shared.weights import write_atomically


@dataclass(frozen=True)
class SiteKeys:
    """What a site is known by: `tls` with `certificate`, `node` for Flower, `audit`."""

    tls: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    node: ec.EllipticCurvePrivateKey
    audit: ed25519.Ed25519PrivateKey

    @classmethod
    def open(cls, folder: Path, site: str, now: datetime | None = None) -> "SiteKeys":
        """The keys in `folder`; what is missing is made, for enrolment alone."""
        make_private_folder(folder)
        if not (folder / "tls.key").exists():
            make_ec_key(folder / "tls.key")
        if not (folder / "tls.crt").exists():
            _certify(folder, "tls", site, now)
        if not (folder / "node.key").exists():
            make_ec_key(folder / "node.key", openssh=True)
        if not (folder / "audit.key").exists():
            make_audit_key(folder / "audit.key")
        return cls.load(folder, site)

    @classmethod
    def load(cls, folder: Path, site: str) -> "SiteKeys":
        """The keys of an enrolled site, after a renewal that a crash cut short is settled.

        Raises `UsageError` where one is missing, readable by others or of another site.
        """
        settle_renewal(folder)
        tls, certificate = _pair(folder, "tls", site)
        node, audit = load_ec_key(folder / "node.key"), load_audit_key(folder / "audit.key")
        return cls(tls, certificate, node, audit)


def renew_certificate(folder: Path, site: str, now: datetime | None = None) -> str:
    """A new key and certificate beside the present ones, as tls-next.*; return the PEM.

    Send it to the server by the connection that the present ones still open, then call
    `adopt_renewal`. Asked again before that, it gives the same certificate again.
    """
    now = now or datetime.now(UTC)
    settle_renewal(folder)
    next_key, next_certificate = folder / "tls-next.key", folder / "tls-next.crt"
    if next_certificate.exists() and expires(load_certificate(next_certificate)) <= now:
        next_certificate.unlink()
    if not next_key.exists():
        make_ec_key(next_key)
    if not next_certificate.exists():
        _certify(folder, "tls-next", site, now)
    return to_pem(_pair(folder, "tls-next", site)[1]).decode()


def adopt_renewal(folder: Path, site: str) -> None:
    """Use tls-next.* from now on; the server pinned it. Without one, nothing happens."""
    settle_renewal(folder)
    if not (folder / "tls-next.crt").exists() or not (folder / "tls-next.key").exists():
        return
    _pair(folder, "tls-next", site)
    # The key goes first: tls-next.crt without tls-next.key then says that we were at it.
    _move(folder, "tls-next.key", "tls.key")
    settle_renewal(folder)


def settle_renewal(folder: Path) -> None:
    """Finish a switch that a crash cut between its two files; harmless at any time."""
    certificate = folder / "tls-next.crt"
    if not certificate.exists() or (folder / "tls-next.key").exists():
        return
    if load_certificate(certificate).public_key() == load_ec_key(folder / "tls.key").public_key():
        _move(folder, "tls-next.crt", "tls.crt")


def _certify(folder: Path, name: str, site: str, now: datetime | None) -> None:
    key = load_ec_key(folder / f"{name}.key")
    path = folder / f"{name}.crt"
    try:
        write_atomically(path, to_pem(make_certificate(site, key, CLIENT, now=now)))
    except OSError as error:
        raise CannotWrite(f"cannot write {path} ({error.strerror})") from error


def _pair(
    folder: Path, name: str, site: str
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = load_ec_key(folder / f"{name}.key")
    certificate = load_certificate(folder / f"{name}.crt")
    if certificate.public_key() != key.public_key():
        raise UsageError(
            f"{folder}: {name}.key and {name}.crt do not belong together: restore them"
        )
    if common_name(certificate) != site:
        raise UsageError(
            f"{folder / name}.crt is of site {common_name(certificate)!r}; expected {site!r}: "
            "name the right folder of keys"
        )
    return key, certificate


def _move(folder: Path, old: str, new: str) -> None:
    try:
        (folder / old).replace(folder / new)
        sync_folder(folder)
    except OSError as error:
        raise CannotWrite(f"cannot rename {folder / old} ({error.strerror})") from error
