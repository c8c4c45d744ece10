"""A courier that was taken over: it tries every way to an image and notes what it got.

    python hostile_courier.py SETTINGS IMAGE OUT

It starts the real vault first, as a courier does, and it imports nothing that starts a thread.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

from knowmine.client.courier import start_vault
from knowmine.client.settings import ClientSettings
from knowmine.shared.settings import read_settings

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy, which settings know, starts threads with it
    settings = read_settings(ClientSettings, Path(sys.argv[1]), {})
    image, out = Path(sys.argv[2]), Path(sys.argv[3])
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()

    def through_link():
        (elsewhere / "link").symlink_to(image)
        return (elsewhere / "link").read_bytes()

    def through_hard_link():
        (elsewhere / "hard").hardlink_to(image)
        return (elsewhere / "hard").read_bytes()

    def through_mount():
        target = str(elsewhere).encode()
        if ctypes.CDLL(None, use_errno=True).mount(
            str(image.parent).encode(), target, None, 4096, None
        ):
            raise OSError(ctypes.get_errno(), "mount")
        return (elsewhere / image.name).read_bytes()

    def through_vault():
        return Path(f"/proc/{vault.pid}/root{image}").read_bytes()

    ways = {
        "open": image.read_bytes,
        "list": lambda: os.listdir(image.parent),  # noqa: PTH208
        "through /proc": lambda: Path(f"/proc/self/root{image}").read_bytes(),
        "through the vault": through_vault,
        "link": through_link,
        "hard link": through_hard_link,
        "mount": through_mount,
    }
    before = len(image.read_bytes())
    vault = start_vault(settings)
    with vault:
        got = {}
        for name, way in ways.items():
            try:
                way()
                got[name] = "open"
            except OSError as error:
                got[name] = f"shut: {error}"
    out.write_text(json.dumps({"before": before, "ways": got, "missing": vault.missing}))
