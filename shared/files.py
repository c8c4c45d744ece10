"""Files on disk: whole writes, digests, and one process at a time."""

import errno
import hashlib
import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from knowmine.shared.errors import UsageError

_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system answers that has no locks, such as some network disks."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is either the old one or the new one, whole.

    Raises `OSError` as the system gives it (a full disk, a missing permission); the old
    content is still there then, and nothing half-written is left behind.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself must reach the disk too, or a power cut undoes it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def one_at_a_time(path: Path) -> AbstractContextManager[object]:
    """Take the lock file `path`, until the `with` that this stands in ends.

    Waits while another thread or process holds it. Raises `OSError` if it cannot be made.
    """
    return FileLock(path, mode=0o600, fallback_to_soft=False).acquire()


class FolderLock:
    """An exclusive lock on `folder`, held until `release` or until the process ends.

    The system drops the lock with the process, so a kill leaves nothing stale. The file stays:
    it names the process that took the lock last.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock; raise `UsageError` if another process holds it."""
        path = folder / ".lock"
        # Any thread may release it. A lock that only a file's existence stands for would outlive
        # its process, so filelock must not fall back to one.
        self._lock = FileLock(
            path,
            blocking=False,
            mode=0o644,
            thread_local=False,
            fallback_to_soft=False,
            on_acquired=_name_holder,
        )
        try:
            if not folder.is_dir():  # filelock would make it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            self._lock.acquire()
        except Timeout:
            raise UsageError(
                f"another process{_holder_of(path)} works in {folder}: "
                "wait until it ends, stop it, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno in _CANNOT_LOCK:
                raise UsageError(
                    f"cannot lock {folder} ({error.strerror}): choose a folder on a local disk"
                ) from error
            raise UsageError(
                f"cannot write in {folder} ({error.strerror}): choose a folder you can write to"
            ) from error

    def release(self) -> None:
        """Let others in. A second call does nothing."""
        self._lock.release()


def _name_holder(file: int) -> None:
    """Write this process's number into the lock file; a full disk only costs the number."""
    with suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)


def _holder_of(path: Path) -> str:
    try:
        holder = path.read_bytes()[:20].decode("ascii", "replace").strip()
    except OSError:
        return ""
    return f" ({holder})" if holder else ""
