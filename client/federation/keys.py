"""A site's three private keys and its certificate, renewed so that no crash locks the site out."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.files import write_atomically
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


@dataclass(frozen=True)
class SiteKeys:
    """A site's identity: `tls` with `certificate`, `node` for Flower, `audit` for the audit log."""

    tls: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    node: ec.EllipticCurvePrivateKey
    audit: ed25519.Ed25519PrivateKey

    @classmethod
    def open(cls, folder: Path, site: str, now: datetime | None = None) -> "SiteKeys":
        """The keys in `folder`. What is missing is made, so only enrolment may call this."""
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
        """The keys of an enrolled site. A renewal that a crash interrupted is finished first.

        Raises `UsageError` if a key is missing, readable by others or of another site.
        """
        settle_renewal(folder)
        tls, certificate = _pair(folder, "tls", site)
        node, audit = load_ec_key(folder / "node.key"), load_audit_key(folder / "audit.key")
        return cls(tls, certificate, node, audit)


def renew_certificate(folder: Path, site: str, now: datetime | None = None) -> str:
    """Make a new key and certificate beside the present ones, as tls-next.*; return the PEM.

    Send it to the server over a connection that uses the present ones, then call `adopt_renewal`.
    A second call before that returns the same certificate.
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
    """Use tls-next.*, which the server has pinned, from now on. Without it, nothing happens."""
    settle_renewal(folder)
    if not (folder / "tls-next.crt").exists() or not (folder / "tls-next.key").exists():
        return
    _pair(folder, "tls-next", site)
    # The key moves first: tls-next.crt without tls-next.key then marks an unfinished switch.
    _move(folder, "tls-next.key", "tls.key")
    settle_renewal(folder)


def settle_renewal(folder: Path) -> None:
    """Finish a switch that a crash interrupted between its two files; harmless at any time."""
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
            "name the folder with this site's keys"
        )
    return key, certificate


def _move(folder: Path, old: str, new: str) -> None:
    try:
        (folder / old).replace(folder / new)
        sync_folder(folder)
    except OSError as error:
        raise CannotWrite(f"cannot rename {folder / old} ({error.strerror})") from error
