"""A vault whose reader of images was taken over: it tries every way out and notes what it got.

    python hostile_vault.py --settings FILE --socket PATH

Keeper and worker are the real ones; only what opens the site is hostile, and a GPU's driver played. It reads the addresses
to reach from targets.json in the state folder and writes escapes.json beside it.
"""

import ctypes
import json
import os
import socket
import sys
import types
from pathlib import Path

from knowmine.client.settings import ClientSettings
from knowmine.client.vault import process
from knowmine.client.vault.sandbox import measured
from knowmine.shared.errors import DataError
from knowmine.shared.settings import read_settings

LIBC = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    """A system call by its number on x86_64 and, where they are equal, on others."""
    if (result := LIBC.syscall(number, *arguments)) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def ways(targets, settings):
    """Each way out, as something that raises `OSError` where it is closed."""

    def talk(family, kind, address):
        with socket.socket(family, kind) as line:
            line.connect(address)
            line.send(b"pixels")

    def listen():
        with socket.socket() as line:
            line.bind(("127.0.0.1", 0))

    def raw():
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()

    def steal():
        os.close(call(438, os.pidfd_open(targets["pid"]), targets["fd"], 0))

    def join():
        with Path(f"/proc/{targets['pid']}/ns/net").open() as space:
            if LIBC.setns(space.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")

    inet, unix, stream = socket.AF_INET, socket.AF_UNIX, socket.SOCK_STREAM
    return {
        "connect": lambda: talk(inet, stream, ("127.0.0.1", targets["tcp"])),
        "datagram": lambda: talk(inet, socket.SOCK_DGRAM, ("127.0.0.1", targets["tcp"])),
        "bind": listen,
        "dns": lambda: socket.getaddrinfo("example.org", 443),
        "raw socket": raw,
        "abstract socket": lambda: talk(unix, stream, "\0" + targets["abstract"]),
        "path socket": lambda: talk(unix, stream, targets["path"]),
        "another's socket": steal,
        "another's network": join,
        "io_uring": lambda: os.close(call(425, 1, bytes(120))),
        "private keys": lambda: (settings.keys / "site.key").read_bytes(),
    }


def start_driver(device):
    """Opens what NVIDIA's driver opens as it starts; refused, it would raise and end the vault."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as own:
        own.bind(f"\0cuda-uvmfd-{os.getpid()}")


def attack(settings, progress):
    """Stands where the site would be opened."""
    targets = json.loads((settings.state / "targets.json").read_text())
    escapes = {}
    for name, way in ways(targets, settings).items():
        try:
            way()
            escapes[name] = "open"
        except OSError as error:
            escapes[name] = f"shut: {error}"
    shut = measured(settings.keys)._asdict()
    (settings.state / "escapes.json").write_text(json.dumps({"ways": escapes, "shut": shut}))
    raise DataError("the attack is over")


if __name__ == "__main__":
    opening = types.ModuleType("knowmine.client.site.open")
    setattr(opening, "open_site_of", attack)  # noqa: B010 - a module made here
    worker = types.ModuleType("knowmine.client.site.worker")
    setattr(worker, "SiteWorker", None)  # noqa: B010
    gpu = types.ModuleType("knowmine.client.vault.gpu")
    setattr(gpu, "start_driver", start_driver)  # noqa: B010
    sys.modules |= {module.__name__: module for module in (opening, worker, gpu)}
    if "--part" in sys.argv:
        sys.exit(process.main(sys.argv[1:]))
    settings = read_settings(ClientSettings, Path(sys.argv[2]), {})
    sys.exit(process.keep([sys.executable, __file__, *sys.argv[1:]], settings))
