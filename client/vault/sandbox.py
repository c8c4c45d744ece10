"""Isolate a process with what Linux offers: no network, no new sockets, folders out of reach.

Three means need no privilege: a network namespace of its own (`unshare`), a filter of system calls
(seccomp), and rules for reading files (Landlock). Each can be missing: some containers and
distributions forbid the first, and old kernels lack the last. Each function returns in words why
it failed, or None. `measured` then tests what holds instead of trusting any of them.

The calls are made with ctypes, because the Python packages that wrap them are no longer
maintained.
"""

import ctypes
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION = 1
_READ = 1 << 2 | 1 << 3  # a file, a folder
_WRITE = 1 << 1 | sum(1 << bit for bit in range(4, 13))  # remove, and make whatever there is
_TRUNCATE, _TRUNCATE_SINCE = 1 << 14, 3  # Linux 6.2
_OF_FILES = 1 << 1 | 1 << 2 | _TRUNCATE


class _Machine(NamedTuple):
    """Numbers of an architecture: linux/audit.h and its table of system calls."""

    audit_arch: int
    seccomp: int
    refused: tuple[int, ...]


# socket, connect, bind; ptrace, process_vm_readv, process_vm_writev, setns, pidfd_getfd, which
# reach into other processes; io_uring_setup, which makes sockets past any filter.
_MACHINES = {
    "x86_64": _Machine(0xC000003E, 317, (41, 42, 49, 101, 310, 311, 308, 438, 425)),
    "aarch64": _Machine(0xC00000B7, 277, (198, 203, 200, 117, 270, 271, 268, 438, 425)),
}


class Isolation(NamedTuple):
    """What a vault found when it tested its isolation; True means isolated."""

    no_network: bool
    no_sockets: bool
    no_keys: bool

    def missing(self) -> list[str]:
        """What is not isolated, in words."""
        words = {
            "no_network": "it still sees the machine's network",
            "no_sockets": "it can still open sockets",
            "no_keys": "it can still read the folder of the private keys",
        }
        return [words[name] for name, shut in self._asdict().items() if not shut]


def measured(keys: Path) -> Isolation:
    """Try what must fail: see a network, open a socket, list the folder of the keys."""
    return Isolation(_interfaces() <= {"lo"}, not _has_sockets(), not can_list(keys))


def tried(keys: Path) -> list[str]:
    """What a vault on this machine could still reach, found by a process that tries."""
    command = [sys.executable, "-m", "knowmine.client.vault.sandbox", str(keys)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - ours
    if found.returncode:
        return [f"the trial ended with {found.returncode}: {found.stderr.strip()[-200:]}"]
    return found.stdout.splitlines()


def leave_network() -> str | None:
    """Move into a network namespace of our own, without a way out; return why if that fails.

    Call it before any thread starts: the kernel refuses it to a process with several.
    """
    user, group = os.getuid(), os.getgid()
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        return f"no network namespace of its own ({os.strerror(ctypes.get_errno())})"
    # Without these lines, all files would seem to belong to the user `nobody`.
    for file, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            Path("/proc/self", file).write_text(line)
        except OSError as error:
            return f"no user of its own namespace ({file}: {error.strerror})"
    return None


def refuse_sockets() -> str | None:
    """Have the kernel refuse every new socket, in all threads and for good; return why if it fails.

    Open sockets stay open: one that listens already continues to accept.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        return f"no filter of system calls for {platform.machine()}"
    eperm = struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | 1)  # return SECCOMP_RET_ERRNO | EPERM
    calls = machine.refused
    # Each test jumps forward over the remaining tests and the `allow` line.
    tests = [struct.pack("HBBI", 0x15, len(calls) - i, 0, number) for i, number in enumerate(calls)]
    program = b"".join(
        (
            struct.pack("HBBI", 0x20, 0, 0, 4),  # load the architecture
            struct.pack("HBBI", 0x15, 0, len(calls) + 3, machine.audit_arch),  # another: refuse
            struct.pack("HBBI", 0x20, 0, 0, 0),  # load the call's number
            struct.pack("HBBI", 0x35, len(calls) + 1, 0, 0x40000000),  # x32's doubles: refuse
            *tests,
            struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
            eperm,
        )
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return f"no filter of system calls ({os.strerror(ctypes.get_errno())})"
    if _LIBC.syscall(machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, header):
        return f"no filter of system calls ({os.strerror(ctypes.get_errno())})"
    return None


def hide_folders(folders: Iterable[Path], writable: Iterable[Path] | None = None) -> str | None:
    """Have the kernel refuse us, for good, to read anything in `folders`; return why if it fails.

    writable: the only files and folders, all existing, that we may change from then on. None: we
    may change what we could before.

    It holds for this thread and those that it starts; see `older_threads`. Landlock's rules can
    only allow. So everything else that exists beside the path to the folders stays readable, and
    what is made there later (a new folder next to a hidden one) is not. Files can no longer be
    moved from one folder to another, and nothing can be mounted.
    """
    changes = _changes() if writable is not None else 0
    wanted = struct.pack("Q", _READ | changes)
    rules = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, wanted, len(wanted), 0)
    if rules < 0:
        return f"folders not hidden (no Landlock: {os.strerror(ctypes.get_errno())})"
    try:
        hidden = {Path(os.path.realpath(folder)) for folder in folders}
        _allow_beside(rules, Path("/"), hidden)
        if writable is not None:
            for path in (*writable, Path(os.devnull)):
                _allow(rules, Path(os.path.realpath(path)), changes)
        if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or _LIBC.syscall(
            _LANDLOCK_RESTRICT_SELF, rules, 0
        ):
            return f"folders not hidden (Landlock: {os.strerror(ctypes.get_errno())})"
    except OSError as error:
        # What lies beside a hidden folder is allowed by name; a folder of mode 0711 lists none.
        return f"folders not hidden (cannot list {error.filename}: {error.strerror})"
    finally:
        os.close(rules)
    return None


def keep_to_one_thread() -> None:
    """Keep NumPy from starting threads in this process and in its children.

    Entry points call it before anything imports NumPy, whose import starts OpenBLAS's threads.
    Landlock does not bind a thread that is older than its rules, and the kernel gives no namespace
    of its own to a process with several threads. It overrides a number that is already set.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def older_threads() -> int:
    """How many other threads this process has; `hide_folders` does not bind them."""
    return len(os.listdir("/proc/self/task")) - 1  # noqa: PTH208 - only the names are needed


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, in whatever way."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def can_list(folder: Path) -> bool:
    """Whether this process can list a folder, found by trying."""
    try:
        os.listdir(folder)  # noqa: PTH208 - only whether it may
    except OSError:
        return False
    return True


def _allow_beside(rules: int, folder: Path, hidden: set[Path]) -> None:
    for name in os.listdir(folder):  # noqa: PTH208 - only the names are needed
        path = folder / name
        # A link's target is allowed at its own place, unless it must stay hidden.
        if path in hidden or path.is_symlink():
            continue
        if any(path in below.parents for below in hidden):
            _allow_beside(rules, path, hidden)
            continue
        _allow(rules, path, _READ)


def _allow(rules: int, path: Path, rights: int) -> None:
    """Allow rights in `path` and below; do nothing if it is gone or we may not see it."""
    try:
        opened = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights &= -1 if path.is_dir() else _OF_FILES
        _LIBC.syscall(_LANDLOCK_ADD_RULE, rules, 1, struct.pack("=Qi", rights, opened), 0)
    finally:
        os.close(opened)


def _changes() -> int:
    """All kinds of change to a file system that this kernel can refuse."""
    version = _LIBC.syscall(_LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    return _WRITE | (_TRUNCATE if version >= _TRUNCATE_SINCE else 0)


def _has_sockets() -> bool:
    try:
        socket.socket(socket.AF_UNIX).close()
    except OSError:
        return False
    return True


def _interfaces() -> set[str]:
    """The names of the network interfaces, read from the kernel without a socket."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    return {line.split(":")[0].strip() for line in lines}


if __name__ == "__main__":  # the trial of `tried`
    _keys = Path(sys.argv[1])
    leave_network()
    hide_folders([_keys])
    refuse_sockets()
    sys.stdout.write("\n".join(measured(_keys).missing()))
