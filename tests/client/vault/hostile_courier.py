"""A courier that was taken over: it tries every way to read and to change what is not its own.

    python hostile_courier.py SETTINGS OUT FILE...

It notes what it got of each, and whether it can still do its own work. Shut is what the kernel
refuses; any other error ends the attack, for then nothing was shown. What it could do it undoes.

It starts the real vault first, as a courier does, and it imports nothing that starts a thread.
"""

import ctypes
import errno
import json
import os
import sys
from functools import partial
from pathlib import Path

import knowmine.client.vault.process
from knowmine.client.paths import COURIER, PENDING
from knowmine.client.settings import SITE_LOG, ClientSettings
from knowmine.client.vault.launcher import start_vault
from knowmine.shared.settings import read_settings

if __name__ == "__main__":
    settings = read_settings(ClientSettings, Path(sys.argv[1]), {})
    out, targets = Path(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    elsewhere = settings.state / COURIER / "elsewhere"  # where a courier may do as it likes

    def through_link(target):
        link = elsewhere / f"{targets.index(target)}.link"
        link.symlink_to(target)
        return link.read_bytes()

    def through_hard_link(target):
        link = elsewhere / f"{targets.index(target)}.hard"
        link.hardlink_to(target)
        return link.read_bytes()

    def moved(target, place):
        target.rename(place)
        try:
            return place.read_bytes()
        finally:
            place.rename(target)

    def overwritten(target):
        with target.open("r+b") as file:
            file.write(b"x")

    def removed(target):
        target.unlink()
        target.write_bytes(b"its like")

    def joined(target):
        other = target.with_name("planted")
        other.write_bytes(b"planted")
        other.unlink()

    def replaced(target):
        """Put a folder that we can read in the place of the one that the target is in."""
        folder, away = target.parent, target.parent.with_name("away")
        folder.rename(away)
        folder.symlink_to(elsewhere)
        folder.unlink()
        away.rename(folder)

    def through_mount(target):
        place = str(elsewhere).encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(str(target.parent).encode(), place, None, 4096, None):
            raise OSError(ctypes.get_errno(), "mount")
        try:
            return (elsewhere / target.name).read_bytes()
        finally:
            libc.umount2(place, 0)

    def through_vault(target):
        return Path(f"/proc/{vault.pid}/root{target}").read_bytes()

    def own_work():
        from knowmine.client.paths import audit_log_of
        from knowmine.shared.files import FolderLock, write_atomically
        from knowmine.shared.log import open_log

        FolderLock(settings.state).release()
        for folder in (
            settings.state / COURIER,
            settings.state / PENDING,
            audit_log_of(settings.state).parent,
        ):
            write_atomically(folder / "trial", b"mine")
            write_atomically(folder / "trial", b"still mine")
            (folder / "trial").read_bytes()
        with Path(os.devnull).open("wb") as nowhere:
            nowhere.write(b"nothing")
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
        "moved elsewhere": lambda target: moved(target, elsewhere / target.name),
        "moved": lambda target: moved(target, target.with_name("moved")),
        "overwritten": overwritten,
        "removed": removed,
        "joined": joined,
        "its folder replaced": replaced,
    }
    before = {str(target): len(target.read_bytes()) for target in targets}
    report = out.open("w")  # while it may
    vault = start_vault(settings)
    # What the vault goes by when it is started again, beside its own files.
    state, own_settings = settings.state, vault.socket.with_name("settings.yaml")
    changes = {
        "the vault's settings, overwritten": lambda: overwritten(own_settings),
        "the vault's settings, replaced": lambda: moved(own_settings, own_settings.parent / "away"),
        "the vault's code": lambda: (
            Path(knowmine.client.vault.process.__file__).open("r+b").close()
        ),
        "the state folder, replaced": lambda: replaced(state / "site.log.jsonl"),
        "the state folder, joined": lambda: joined(state / "site.log.jsonl"),
    }

    def tried(way, *, may_be_hidden=False):
        try:
            way()
        except OSError as error:
            refused = {errno.EACCES, errno.EPERM, errno.EXDEV}
            if error.errno not in refused | ({errno.ENOENT} if may_be_hidden else set()):
                raise
            return f"shut: {error}"
        return "open"

    with vault, report:
        own_work()
        elsewhere.mkdir()
        got = {
            str(target): {
                name: tried(partial(way, target), may_be_hidden=name == "through the vault")
                for name, way in ways.items()
            }
            for target in targets
        }
        changed = {name: tried(change) for name, change in changes.items()}
        found = {"before": before, "ways": got, "changes": changed, "missing": vault.missing}
        found["settings"] = str(own_settings)
        report.write(json.dumps(found))
