"""Provision a federation: make its authority, its server's settings, and a kit for each site.

Running it again adds what is missing. The authority, keys, admitted sites and unused kits stay.
"""

import gzip
import hashlib
import io
import tarfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from knowmine.deploy.provision.settings import FederationSettings
from knowmine.server.enrolment.allow_list import AllowList
from knowmine.server.enrolment.authority import Authority
from knowmine.server.enrolment.enrolments import Enrolments, IssuedKit
from knowmine.server.settings import ServerSettings
from knowmine.shared.errors import CannotWrite, UsageError
from knowmine.shared.files import FolderLock, write_atomically
from knowmine.shared.settings import Settings, read_settings
from knowmine.shared.trust.certificates import common_name, load_certificate, to_pem
from knowmine.shared.trust.keys import make_private_folder, write_secret


@dataclass(frozen=True)
class Provisioned:
    """The result of provisioning.

    kits: archive of each site whose kit can still be used.
    made: sites whose kit is new.
    ended: sites whose kit expired unused; `new_kit` makes another.
    authority: SHA-256 of the authority's certificate, for the sites to compare.
    """

    folder: Path
    settings: Path
    kits: dict[str, Path]
    made: tuple[str, ...]
    ended: tuple[str, ...]
    authority: str


def provision(
    federation: Path, out: Path, *, new_kit: str | None = None, now: datetime | None = None
) -> Provisioned:
    """Make the federation that the file `federation` describes in the folder `out`, or complete it.

    new_kit: a site that gets another kit, because its kit was used, lost or has expired.

    Raises `UsageError` if the file drops a site or renames the federation, or if server.yaml was
    changed by hand.
    """
    now = now or datetime.now(UTC)
    settings = read_settings(FederationSettings, federation, {})
    if new_kit is not None and new_kit not in settings.sites:
        raise UsageError(f"no site {new_kit!r} in {federation}; add it to `sites` first")
    make_private_folder(out)
    lock = FolderLock(out)
    try:
        issued, admitted = Enrolments(out / "enrolments"), AllowList(out / "sites")
        _refuse_to_drop(settings, out, issued, admitted)
        server_yaml = _server_yaml(settings)
        _refuse_to_overwrite_edits(out / "server.yaml")

        authority = Authority.open(out / "ca", settings.federation, now)
        authority.certify_server(out / "keys", settings.server.hosts, now)
        (out / "sites").mkdir(exist_ok=True)
        _write(out / "server.yaml", server_yaml)
        read_settings(ServerSettings, out / "server.yaml", {})

        make_private_folder(out / "kits")
        kits, made, ended = {}, [], []
        known = admitted.all()
        for site in settings.sites:
            kit = issued.of(site)
            if site == new_kit or (kit is None and site not in known):
                kit = issued.issue(settings.federation, site, now)
                made.append(site)
            if kit is None or kit.secret is None:
                continue
            if kit.expires_at <= now:
                ended.append(site)
                continue
            kits[site] = _write_kit(out / "kits", kit, settings, authority)
        return Provisioned(
            out, out / "server.yaml", kits, tuple(made), tuple(ended), authority.fingerprint
        )
    finally:
        lock.release()


def _refuse_to_drop(
    settings: FederationSettings, out: Path, issued: Enrolments, admitted: AllowList
) -> None:
    certificate = out / "ca" / "ca.crt"
    if certificate.exists():
        name = common_name(load_certificate(certificate))
        if name != f"knowmine {settings.federation}":
            raise UsageError(
                f"{out} holds the authority {name!r}, and the settings name federation "
                f"{settings.federation!r}: keep the name, or provision into a new folder"
            )
    for site in sorted(set(admitted.sites()) - set(settings.sites)):
        raise UsageError(
            f"site {site!r} is admitted and the settings leave it out: name it again, or "
            f"revoke it first with `knowmine-server revoke {site}`"
        )
    for site in sorted(set(issued.sites()) - set(settings.sites)):
        kit = issued.of(site)
        if kit is not None and kit.secret is not None:
            raise UsageError(
                f"site {site!r} has an unused kit and the settings leave it out: name it again, "
                f"or delete {issued.folder / site}.json, which makes the kit useless"
            )


def _refuse_to_overwrite_edits(path: Path) -> None:
    if not path.exists():
        return
    first, _, rest = path.read_text(encoding="utf-8").partition("\n")
    if first != _mark(rest):
        raise UsageError(
            f"{path} was changed by hand and would be overwritten: move the change to the "
            f"federation's file, then delete {path} and provision again"
        )


def _server_yaml(settings: FederationSettings) -> bytes:
    values: dict[str, Any] = {
        "federation": settings.federation,
        "listen": {"host": settings.server.listen, "port": settings.server.port},
        "keys": "keys",
        "sites": "sites",
        "out": "run",
    }
    for key in ("plan", "run", "attendance", "deadlines"):
        values[key] = _plain(getattr(settings, key))
    rest = "# Do not change this file: change the federation's file and provision again.\n"
    rest += yaml.safe_dump(values, sort_keys=False)
    return f"{_mark(rest)}\n{rest}".encode()


def _mark(text: str) -> str:
    return f"# Made by knowmine-server provision, {hashlib.sha256(text.encode()).hexdigest()}"


def _write_kit(
    kits: Path, kit: IssuedKit, settings: FederationSettings, authority: Authority
) -> Path:
    """Write the kit's folder and its archive; the same kit gives the same bytes."""
    client = {
        "federation": settings.federation,
        "site": kit.site,
        "network": {"server": settings.server.first},
        "model": _plain(settings.plan.model),
    }
    files = {
        "README.txt": _readme(kit, settings, authority).encode(),
        "ca.crt": to_pem(authority.certificate),
        "client.yaml": yaml.safe_dump(client, sort_keys=False).encode(),
        "enrolment.json": _enrolment_json(kit),
    }
    folder = kits / kit.site
    make_private_folder(folder)
    for name, content in files.items():
        write_secret(folder / name, content, replace=True)
    archive = kits / f"{kit.site}.tar.gz"
    write_secret(archive, _packed(kit.site, files), replace=True)
    return archive


def _enrolment_json(kit: IssuedKit) -> bytes:
    return (kit.enrolment().model_dump_json(indent=2) + "\n").encode()


def _packed(site: str, files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(f"{site}/{name}")
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def _readme(kit: IssuedKit, settings: FederationSettings, authority: Authority) -> str:
    site = kit.site
    return f"""knowmine: kit of site {site} in federation {settings.federation}

This kit can be used once, until {kit.expires_at:%Y-%m-%d %H:%M} UTC. Whoever has it can apply as
{site}: keep it secret, and tell the coordinator if others have seen it.

1. Ask the coordinator for the authority's fingerprint by telephone, and compare:
     openssl x509 -in {site}/ca.crt -noout -fingerprint -sha256
     {_as_openssl_shows(authority.fingerprint)}

2. Make this site's keys; they never leave this machine. DATA holds images/ and masks/:
     knowmine-client enrol {site}.tar.gz --home knowmine-{site} --data DATA

3. Send knowmine-{site}/{site}.request to the coordinator. It contains no secret.
   The coordinator runs: knowmine-server admit {site}.request

4. Check the settings, the data and the connection to the server:
     knowmine-client check knowmine-{site}/client.yaml

5. Take part:
     knowmine-client run knowmine-{site}/client.yaml

The server is {settings.server.first}; the site needs only an outgoing connection to it.
"""


def _as_openssl_shows(fingerprint: str) -> str:
    """A fingerprint as openssl prints it: pairs of capital letters between colons.

    >>> _as_openssl_shows("00fe")
    '00:FE'
    """
    return ":".join(fingerprint[i : i + 2] for i in range(0, len(fingerprint), 2)).upper()


def _plain(settings: Settings) -> Any:
    return settings.model_dump(mode="json")


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, content)
    except OSError as error:
        raise CannotWrite(f"cannot write {path} ({error.strerror})") from error
