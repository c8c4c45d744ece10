"""Keep the list of admitted sites: one file each, with the keys that identify the site.

No authority signs a site's certificate. It is pinned here when the site is admitted, as SSH pins a
key. So the folder alone decides: a site without a file in it is not admitted.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from pydantic import TypeAdapter, ValidationError

from knowmine.server.enrolment.site_certificate import check_site_certificate
from knowmine.shared.errors import CannotWrite, Refused, UsageError
from knowmine.shared.files import one_at_a_time, write_atomically
from knowmine.shared.settings import SiteName
from knowmine.shared.trust.certificates import expires, fingerprint, to_der, to_pem

MAX_CERTIFICATES = 2
"""The one in use and the one that takes over. More would be old keys without an owner."""

MAX_FILE_BYTES = 64_000


@dataclass(frozen=True)
class AdmittedSite:
    """One site as the coordinator knows it.

    node_key, audit_key: public halves, one OpenSSH line each.
    certificates: PEM, oldest first; two while one takes over from the other.
    admitted_at, revoked_at: UTC, ISO 8601; revoked_at is None while the site is admitted.
    """

    site: SiteName
    node_key: str
    certificates: tuple[str, ...]
    audit_key: str
    admitted_at: str
    revoked_at: str | None = None

    def loaded_certificates(self) -> list[x509.Certificate]:
        """The pinned certificates."""
        return [x509.load_pem_x509_certificate(pem.encode()) for pem in self.certificates]

    def expires(self) -> datetime:
        """When the newest certificate ends."""
        return max(expires(certificate) for certificate in self.loaded_certificates())


_SITE = TypeAdapter(AdmittedSite)


class AllowList:
    """The folder of admitted sites. Every call reads it again, and every change is atomic.

    damaged: file name and reason for each file that could not be read last time. Such a site is
    not admitted; the others are not affected.
    """

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist yet."""
        self.folder = folder
        self.damaged: dict[str, str] = {}

    def all(self) -> dict[str, AdmittedSite]:
        """Every site that was ever admitted, by name, including revoked ones."""
        found, damaged = {}, {}
        for path in sorted(self.folder.glob("*.json")):
            try:
                found[path.stem] = _read(path)
            except (OSError, ValueError, UnsupportedAlgorithm) as error:
                damaged[path.name] = str(error).splitlines()[0]
        self.damaged = damaged
        return found

    def sites(self) -> dict[str, AdmittedSite]:
        """The sites that are admitted now."""
        return {name: site for name, site in self.all().items() if site.revoked_at is None}

    def site_of(self, certificate_der: bytes) -> str | None:
        """The admitted site that this certificate is pinned for, or None."""
        for name, site in self.sites().items():
            if any(to_der(pinned) == certificate_der for pinned in site.loaded_certificates()):
                return name
        return None

    def version(self) -> tuple[tuple[str, int, int, int], ...]:
        """A value that changes whenever a site's file changes."""
        seen = []
        for path in sorted(self.folder.glob("*.json")):
            try:
                state = path.stat()
            except FileNotFoundError:
                continue
            seen.append((path.name, state.st_ino, state.st_mtime_ns, state.st_size))
        return tuple(seen)

    def put(self, site: AdmittedSite) -> None:
        """Admit `site`, in place of an earlier entry under its name.

        Raises `Refused` if another site has one of its keys.
        """
        with self._changing():
            for name, other in self.all().items():
                if name == site.site:
                    continue
                shared = {*other.certificates} & {*site.certificates}
                if shared or other.node_key == site.node_key or other.audit_key == site.audit_key:
                    raise Refused(
                        f"site {site.site!r} shows a key of site {name!r}; each site makes its "
                        "own: it has to enrol again in a new folder"
                    )
            self._write(site)

    def revoke(self, site: str, now: datetime | None = None) -> AdmittedSite:
        """Stop admitting a site; revoking twice changes nothing."""
        with self._changing():
            known = self._known(site)
            if known.revoked_at is None:
                known = replace(known, revoked_at=_iso(now))
                self._write(known)
            return known

    def renew(
        self,
        site: str,
        certificate_pem: str,
        *,
        in_use: bytes | None = None,
        now: datetime | None = None,
    ) -> AdmittedSite:
        """Pin a new certificate beside the present one, so that both serve during the switch.

        in_use: DER of the certificate that the site is connected with; it stays pinned. Without
        it, the newest stays. A certificate that is sent twice is pinned once.
        Raises `Refused` if the certificate is unsound or the site was revoked.
        """
        now = now or datetime.now(UTC)
        new = check_site_certificate(certificate_pem, site, now)
        with self._changing():
            known = self._known(site)
            if known.revoked_at is not None:
                raise Refused(
                    f"site {site!r} was revoked on {known.revoked_at}, so nothing is renewed"
                )
            others = [
                old
                for old in known.loaded_certificates()
                if expires(old) > now and fingerprint(old) != fingerprint(new)
            ]
            others.sort(key=lambda old: to_der(old) == in_use)
            kept = [*others[-(MAX_CERTIFICATES - 1) :], new]
            pems = tuple(to_pem(certificate).decode() for certificate in kept)
            known = replace(known, certificates=pems)
            self._write(known)
            return known

    def _known(self, site: str) -> AdmittedSite:
        known = self.all()
        if site in known:
            return known[site]
        if f"{site}.json" in self.damaged:
            reason = self.damaged[f"{site}.json"]
            raise UsageError(f"{self.folder / site}.json is damaged ({reason}): restore it")
        raise UsageError(
            f"no site {site!r} in {self.folder}; known: {', '.join(sorted(known)) or 'none'}"
        )

    def _write(self, site: AdmittedSite) -> None:
        content = json.dumps(asdict(site), indent=2) + "\n"
        path = self.folder / f"{site.site}.json"
        try:
            write_atomically(path, content.encode())
        except OSError as error:
            raise CannotWrite(f"cannot write {path} ({error.strerror})") from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, so that a renewal by the server cannot undo a revocation."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = one_at_a_time(self.folder / ".lock")
        except OSError as error:
            raise CannotWrite(f"cannot write in {self.folder} ({error.strerror})") from error
        with lock:
            yield


def _read(path: Path) -> AdmittedSite:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    values: Any = json.loads(path.read_text(encoding="utf-8"))
    try:
        site = _SITE.validate_python(values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None
    if site.site != path.stem:
        raise ValueError(f"names site {site.site!r}")
    # After this check, callers can rely on every key in the list.
    site.loaded_certificates()
    for line in (site.node_key, site.audit_key):
        load_ssh_public_key(line.encode())
    return site


def _iso(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).isoformat(timespec="seconds")
