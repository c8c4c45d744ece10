"""The federation's certificate authority: made once, valid for ten years, signs only the server.

Sites identify the server by this authority. The server identifies sites by their pinned
certificates (`allow_list.py`), which no authority signs.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.files import write_atomically
from knowmine.shared.trust.certificates import (
    SERVER,
    expires,
    fingerprint,
    hosts_of,
    load_certificate,
    make_authority_certificate,
    make_certificate,
    to_pem,
)
from knowmine.shared.trust.keys import load_ec_key, make_ec_key, make_private_folder

AUTHORITY_DAYS = 3652
SERVER_DAYS = 365
RENEW_BEFORE = timedelta(days=60)


class Authority:
    """The key that signs server certificates; `open` makes it if there is none yet."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        """Take a certificate and its key."""
        self.certificate = certificate
        self._key = key

    @classmethod
    def open(cls, folder: Path, federation: str, now: datetime | None = None) -> "Authority":
        """The authority in `folder` (ca.key, ca.crt), made new only if neither file exists.

        Every kit that was sent out trusts it, so it must survive rebuilds. A certificate without
        its key is an error, and nothing here ever overwrites an authority.
        """
        key_file, certificate_file = folder / "ca.key", folder / "ca.crt"
        make_private_folder(folder)
        if not key_file.exists() and certificate_file.exists():
            raise UsageError(
                f"{certificate_file} is there and {key_file} is not: restore the key from your "
                "backup. Without it you need a new federation, in a new folder"
            )
        # A key without a certificate is left by an interrupted first start: go on with it.
        key = load_ec_key(key_file) if key_file.exists() else make_ec_key(key_file)
        if not certificate_file.exists():
            certificate = make_authority_certificate(
                f"knowmine {federation}", key, days=AUTHORITY_DAYS, now=now
            )
            _write(certificate_file, to_pem(certificate))
        certificate = load_certificate(certificate_file)
        if certificate.public_key() != key.public_key():
            raise UsageError(
                f"{certificate_file} and {key_file} do not belong together: restore both"
            )
        return cls(certificate, key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 that a site compares with the one that the coordinator names."""
        return fingerprint(self.certificate)

    def certify_server(
        self, keys: Path, hosts: Sequence[str], now: datetime | None = None
    ) -> x509.Certificate:
        """Make sure that keys/server.crt names `hosts` and lasts 60 days more; return it.

        A renewal changes one file and keeps the key, so that key and certificate match even after
        an interruption. The old certificate stays valid until its end, because sites trust the
        authority.
        """
        now = now or datetime.now(UTC)
        key_file, certificate_file = keys / "server.key", keys / "server.crt"
        make_private_folder(keys)
        key = load_ec_key(key_file) if key_file.exists() else make_ec_key(key_file)
        if certificate_file.exists():
            old = load_certificate(certificate_file)
            if self._still_serves(old, key, hosts, now):
                return old
        issuer = (self.certificate, self._key)
        new = make_certificate(
            hosts[0][:64], key, SERVER, days=SERVER_DAYS, hosts=hosts, issuer=issuer, now=now
        )
        _write(certificate_file, to_pem(new))
        return new

    def _still_serves(
        self,
        old: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        hosts: Sequence[str],
        now: datetime,
    ) -> bool:
        try:
            old.verify_directly_issued_by(self.certificate)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, a new one repairs it
            return False
        return (
            old.public_key() == key.public_key()
            and hosts_of(old) == set(hosts)
            and expires(old) - now > RENEW_BEFORE
        )


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CannotWrite(f"cannot write {path} ({error.strerror})") from error
