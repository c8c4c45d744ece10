"""What two machines compare to know that they run the same knowmine: versions and digests."""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("client", "deploy", "server", "shared")
OURS = (".py", ".html", ".css", ".js", ".proto")
OTHERS = ("flwr", "torch", "onnxruntime", "segment-anything", "numpy")


def facts() -> list[str]:
    """The lines of `--version`; the first is the version alone.

    The airlock's digest stands for the list of what may leave a site's images.
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
    """SHA-256 over names and contents of all of knowmine's own files under `home`.

    Of the same release it is the same in a checkout and in a wheel.
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
