"""A courier that was taken over: it tries every way to files that are not its own.

    python hostile_courier.py SETTINGS OUT FILE...

It notes what it got of each, and whether it can still do its own work.

It starts the real vault first, as a courier does, and it imports nothing that starts a thread.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

from knowmine.client.approval import PENDING
from knowmine.client.courier import start_vault
from knowmine.client.settings import SITE_LOG, ClientSettings
from knowmine.client.state_folder import COURIER
from knowmine.shared.settings import read_settings

if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy, which settings know, starts threads with it
    settings = read_settings(ClientSettings, Path(sys.argv[1]), {})
    out, targets = Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()

    def through_link(target):
        link = elsewhere / f"{target.name}.link"
        link.symlink_to(target)
        return link.read_bytes()

    def through_hard_link(target):
        link = elsewhere / f"{target.name}.hard"
        link.hardlink_to(target)
        return link.read_bytes()

    def moved_away(target):
        try:
            moved = target.rename(elsewhere / target.name)
        except OSError:
            return target.rename(target.with_name("moved")).read_bytes()
        return moved.read_bytes()

    def through_mount(target):
        place = str(elsewhere).encode()
        if ctypes.CDLL(None, use_errno=True).mount(
            str(target.parent).encode(), place, None, 4096, None
        ):
            raise OSError(ctypes.get_errno(), "mount")
        return (elsewhere / target.name).read_bytes()

    def through_vault(target):
        return Path(f"/proc/{vault.pid}/root{target}").read_bytes()

    def own_work():
        from knowmine.client.audit import record_of
        from knowmine.shared.lock import FolderLock
        from knowmine.shared.log import open_log
        from knowmine.shared.weights import write_atomically

        FolderLock(settings.state).release()
        for folder in (
            settings.state / COURIER,
            settings.state / PENDING,
            record_of(settings.state).parent,
        ):
            write_atomically(folder / "trial", b"mine")
            write_atomically(folder / "trial", b"still mine")
            (folder / "trial").read_bytes()
        for _ in range(2):
            with open_log(settings.state / SITE_LOG) as log:
                log.event("trial")

    ways = {
        "open": Path.read_bytes,
        "list": lambda target: os.listdir(target.parent),  # noqa: PTH208
        "through /proc": lambda target: Path(f"/proc/self/root{target}").read_bytes(),
        "through the vault": through_vault,
        "link": through_link,
        "hard link": through_hard_link,
        "mount": through_mount,
        "moved away": moved_away,
    }
    before = {str(target): len(target.read_bytes()) for target in targets}
    vault = start_vault(settings)
    with vault:
        own_work()
        got = {str(target): dict.fromkeys(ways, "open") for target in targets}
        for target in targets:
            for name, way in ways.items():
                try:
                    way(target)
                except OSError as error:
                    got[str(target)][name] = f"shut: {error}"
    out.write_text(json.dumps({"before": before, "ways": got, "missing": vault.missing}))
