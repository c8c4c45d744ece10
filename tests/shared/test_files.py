"""Files are whole or not there, and a folder has one process at a time."""

import errno
import fcntl
import os
import subprocess
import sys
import threading

import pytest

from knowmine.shared.errors import UsageError
from knowmine.shared.files import FolderLock, one_at_a_time, sha256_of, write_atomically

HOLD = """
import sys, time
from pathlib import Path
from knowmine.shared.files import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


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


def test_a_lock_of_another_process_is_refused_by_its_number_and_ends_with_it(tmp_path):
    """The message names the process, and a kill leaves nothing stale."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match=rf"another process \({other.pid}\) works in"):
            FolderLock(tmp_path)
        other.kill()
    FolderLock(tmp_path).release()


def test_another_thread_can_release_a_lock(tmp_path):
    """The thread that ends a task need not be the one that began it."""
    lock = FolderLock(tmp_path)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named(tmp_path, monkeypatch, number):
    """Some network disks have none; a lock that outlives its process is no substitute."""

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match=r"cannot lock .* choose a folder on a local disk"):
        FolderLock(tmp_path)


def test_threads_that_share_a_file_take_turns(tmp_path):
    """The second waits until the first is done."""
    order = []

    def second():
        with one_at_a_time(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with one_at_a_time(tmp_path / "lock"):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path):
    """As `sha256sum` prints it."""
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_full_disk_leaves_the_old_file_and_no_half_one(tmp_path):
    """Until the new content is whole, the old one stays."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / "file.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        write_atomically(path, b"new")
    left = [entry.name for entry in tmp_path.iterdir()]
    assert (caught.value.errno, path.read_bytes(), left) == (errno.ENOSPC, b"old", ["file"])


def test_a_second_write_replaces_the_first(tmp_path):
    """The newest content counts."""
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
