"""One process at a time in a folder."""

import fcntl
import os
from pathlib import Path

from knowmine.shared.errors import UsageError


class FolderLock:
    """An exclusive lock on `folder`, held until `release`, or until the process ends however.

    The system drops it with the process, so nothing stale is left after a kill.
    """

    def __init__(self, folder: Path) -> None:
        """Take the lock; raise `UsageError` where another process holds it."""
        path = folder / ".lock"
        try:
            self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"cannot write in {folder} ({error.strerror}): choose a folder you can write to"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            self._file = None
            if not isinstance(error, BlockingIOError):
                raise UsageError(
                    f"cannot lock {folder} ({error.strerror}): choose a folder on a local disk"
                ) from error
            raise UsageError(
                f"another process{f' ({holder})' if holder else ''} works in {folder}: "
                "wait until it ends, stop it, or choose another folder"
            ) from None
        # Who holds it, for the message above; a full disk only costs that name.
        try:
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)
        except OSError:
            pass

    def release(self) -> None:
        """Let others in. Doing it twice is harmless."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
