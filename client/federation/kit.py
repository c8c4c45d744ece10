"""Open a kit without trusting it: read four known files into memory and check each."""

import gzip
import io
import os
import stat
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath

from cryptography import x509
from pydantic import Field

from knowmine.client.settings import NetworkSettings
from knowmine.shared.errors import UsageError
from knowmine.shared.settings import ModelSettings, Settings, SiteName, read_settings
from knowmine.shared.trust.certificates import expires
from knowmine.shared.trust.enrolment import KIT_FILES, Enrolment, read_enrolment

MAX_FILE_BYTES = 64_000
MAX_UNPACKED_BYTES = 1_000_000
MAX_MEMBERS = 10


class KitNetwork(Settings):
    """The only network setting that a kit may decide."""

    server: str = Field(
        pattern=NetworkSettings.model_fields["server"].metadata[0].pattern,
        description="The coordinator's host:port.",
    )


class KitSettings(Settings):
    """A kit's client.yaml: it can name no path and no program on the site's machine."""

    federation: SiteName = Field(description="The federation's name.")
    site: SiteName = Field(description="The site's name in it.")
    network: KitNetwork = Field(description="How the site reaches the coordinator.")
    model: ModelSettings = Field(description="The network that the federation trains.")


@dataclass(frozen=True)
class Kit:
    """A checked kit."""

    settings: KitSettings
    authority: x509.Certificate
    enrolment: Enrolment


def open_kit(path: Path, now: datetime) -> Kit:
    """Read and check a kit, a folder or a .tar.gz; raise `UsageError` if it cannot be used.

    1. It holds the four expected files, plain and small, and nothing else.
    2. Its settings name the coordinator and the model, and no more.
    3. Its ca.crt is one certificate authority that is valid now.
    4. Its enrolment is for the same site and federation, and has not expired.
    """
    # 1. the files
    files = _from_folder(path) if path.is_dir() else _from_archive(path)
    missing = sorted(set(KIT_FILES) - set(files))
    if missing:
        raise UsageError(f"{path} is not a whole kit: {', '.join(missing)} missing; fetch it again")

    # 2. settings
    settings = _settings(files["client.yaml"])

    # 3. the authority
    try:
        found = x509.load_pem_x509_certificates(files["ca.crt"])
        authority = found[0]
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        is_authority = len(found) == 1 and constraints.value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise UsageError(f"{path}: ca.crt cannot be read ({error}); fetch the kit again") from None
    if not is_authority or expires(authority) <= now:
        raise UsageError(
            f"{path}: ca.crt is not one certificate authority that is valid today; "
            "ask the coordinator for another kit"
        )

    # 4. the enrolment
    enrolment = read_enrolment(files["enrolment.json"])
    if (enrolment.federation, enrolment.site) != (settings.federation, settings.site):
        raise UsageError(
            f"{path} mixes two kits: its settings are for {settings.site!r} in "
            f"{settings.federation!r}, its enrolment is for {enrolment.site!r} in "
            f"{enrolment.federation!r}; fetch the kit again"
        )
    if enrolment.expires_at <= now:
        raise UsageError(
            f"the kit ended at {enrolment.expires_at}: ask the coordinator for another "
            f"(`knowmine-server provision ... --new-kit {enrolment.site}`)"
        )
    return Kit(settings, authority, enrolment)


def _settings(content: bytes) -> KitSettings:
    # `read_settings` reads files, so this one exists for the length of the call.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "client.yaml"
        file.write_bytes(content)
        return read_settings(KitSettings, file, {})


def _from_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    try:
        for entry in sorted(folder.iterdir()):
            name = _expected(entry.name, folder)
            opened = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(opened, "rb") as file:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise UsageError(f"{entry} is not a plain file: this is not a knowmine kit")
                files[name] = _at_most(file.read(MAX_FILE_BYTES + 1), folder, name)
    except OSError as error:
        raise UsageError(f"cannot read kit {folder} ({error.strerror}: {error.filename})") from None
    return files


def _from_archive(path: Path) -> dict[str, bytes]:
    """The archive's files. Nothing is unpacked to disk, so no name in it can lead anywhere."""
    files: dict[str, bytes] = {}
    try:
        with gzip.open(path) as packed:
            content = packed.read(MAX_UNPACKED_BYTES + 1)
        if len(content) > MAX_UNPACKED_BYTES:
            raise UsageError(
                f"{path} unpacks to more than {MAX_UNPACKED_BYTES} bytes: not a knowmine kit"
            )
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise UsageError(
                        f"{path} has more than {MAX_MEMBERS} entries: not a knowmine kit"
                    )
                parts = PurePosixPath(member.name).parts
                if member.isdir() and len(parts) == 1 and parts[0] not in ("..", "/"):
                    continue
                if not member.isreg() or len(parts) != 2 or parts[0] in ("..", "/"):
                    raise UsageError(f"{path} holds {member.name!r}: this is not a knowmine kit")
                name = _expected(parts[1], path)
                reader = archive.extractfile(member)
                if reader is None or name in files:
                    raise UsageError(f"{path} holds {name} twice, or empty: not a knowmine kit")
                files[name] = _at_most(reader.read(MAX_FILE_BYTES + 1), path, name)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise UsageError(f"cannot read kit {path} ({error}): expected NAME.tar.gz") from None
    return files


def _expected(name: str, kit: Path) -> str:
    if name not in KIT_FILES:
        raise UsageError(f"{kit} holds {name!r}; a kit holds {', '.join(KIT_FILES)} and no more")
    return name


def _at_most(content: bytes, kit: Path, name: str) -> bytes:
    if len(content) > MAX_FILE_BYTES:
        raise UsageError(f"{kit}: {name} is larger than {MAX_FILE_BYTES} bytes: not a knowmine kit")
    return content
