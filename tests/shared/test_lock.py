"""One process at a time in a folder."""

import pytest

from knowmine.shared.errors import UsageError
from knowmine.shared.lock import FolderLock


def test_a_second_lock_is_refused(tmp_path):
    """The folder is taken."""
    first = FolderLock(tmp_path)
    with pytest.raises(UsageError, match=r"another process \(\d+\) works in"):
        FolderLock(tmp_path)
    first.release()


def test_a_released_lock_can_be_taken(tmp_path):
    """Twice released is as good as once."""
    first = FolderLock(tmp_path)
    first.release()
    first.release()
    FolderLock(tmp_path).release()


def test_a_lock_file_left_behind_locks_nothing(tmp_path):
    """After a kill the file is there and the lock is not."""
    (tmp_path / ".lock").write_text("12345\n")
    FolderLock(tmp_path).release()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """The message says what to choose."""
    with pytest.raises(UsageError, match="choose a folder you can write to"):
        FolderLock(tmp_path / "gone")
