"""Versions and digests, to compare the knowmine of two machines."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("client", "deploy", "server", "shared")
OURS = (".py", ".html", ".css", ".js", ".proto")
OTHERS = ("flwr", "torch", "onnxruntime", "segment-anything", "numpy")


def facts() -> list[str]:
    """The lines of `--version`; the first is the version alone.

    The digest of airlock.proto identifies the list of what may leave the vault.
    """
    home = Path(__file__).parent.parent
    airlock = home / "client" / "vault" / "airlock.proto"
    others = ", ".join(f"{name} {_version(name)}" for name in OTHERS)
    return [
        f"knowmine {_version('knowmine')}",
        f"code     sha256 {code_digest(home)}",
        f"airlock  sha256 {hashlib.sha256(airlock.read_bytes()).hexdigest()}",
        f"with     Python {platform.python_version()}, {others}",
    ]


def code_digest(home: Path) -> str:
    """SHA-256 over the names and contents of knowmine's own files under `home`.

    A checkout and a wheel of one release have the same digest.
    """
    whole = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((home / package).rglob("*")):
            if file.suffix in OURS:
                name = file.relative_to(home).as_posix()
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                whole.update(f"{name} {content}\n".encode())
    return whole.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
