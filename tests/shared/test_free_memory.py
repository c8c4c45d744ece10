"""What may still be taken: the machine's free memory, or less where a container has a limit."""

import pytest

from knowmine.shared.free_memory import UNKNOWN, free_memory_bytes

GB = 1 << 30
NEW = ("0::/lyon/job", "sys/fs/cgroup/lyon", "memory.max", "memory.current", "inactive_file")
OLD = (
    "4:memory:/lyon/job",
    "sys/fs/cgroup/memory/lyon",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
)


def put(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def root(tmp_path):
    """A machine with 8 GB available."""
    put(tmp_path, "proc/meminfo", f"MemTotal: 99 kB\nMemAvailable:  {8 << 20} kB\n")
    return tmp_path


def test_a_machine_says_what_is_available(root):
    """Files that it can drop are counted in, unlike in what is called free."""
    assert free_memory_bytes(root) == 8 * GB


@pytest.mark.parametrize(("line", "folder", "limit", "use", "kept"), [NEW, OLD])
def test_a_container_may_have_less(root, line, folder, limit, use, kept):
    """The limit of any group around this process; files that were read do not count."""
    put(root, "proc/self/cgroup", f"{line}\n")
    put(root, f"{folder}/{limit}", f"{4 * GB}\n")
    put(root, f"{folder}/{use}", f"{3 * GB}\n")
    put(root, f"{folder}/memory.stat", f"anon 5\n{kept} {GB}\n")
    assert free_memory_bytes(root) == 2 * GB


def test_no_limit_is_no_limit(root):
    """Not a limit of nothing."""
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/memory.max", "max\n")
    put(root, "sys/fs/cgroup/memory.current", "7\n")
    assert free_memory_bytes(root) == 8 * GB


def test_a_container_that_is_full_has_nothing_left(root):
    """Rather than less than nothing."""
    put(root, "proc/self/cgroup", "0::/\n")
    put(root, "sys/fs/cgroup/memory.max", "5\n")
    put(root, "sys/fs/cgroup/memory.current", "7\n")
    assert free_memory_bytes(root) == 0


def test_a_system_that_does_not_say(tmp_path):
    """Is taken for a small one."""
    assert free_memory_bytes(tmp_path) == UNKNOWN


def test_this_machine_has_some():
    """By its own word."""
    assert 1 << 20 < free_memory_bytes() < 1 << 50
