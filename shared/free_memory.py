"""How much memory a program may still take: what the machine has free, and its container's limit."""

from collections.abc import Iterator
from pathlib import Path

UNKNOWN = 4 << 30
"""Assumed where the system does not say."""


def free_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process can take without swapping and without being ended for it.

    root: of the file system. 4 GB where the system does not say.
    """
    found = [*_of_machine(root), *_of_containers(root)]
    return max(0, min(found, default=UNKNOWN))


def _of_machine(root: Path) -> Iterator[int]:
    for kilobytes in _listed(root / "proc/meminfo", "MemAvailable:"):
        yield kilobytes << 10


def _of_containers(root: Path) -> Iterator[int]:
    """What is left in each control group around this process that has a limit."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, use, kept = "", "memory.max", "memory.current", "inactive_file"
        elif controllers == "memory":  # the older version
            top, limit, use = "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            kept = "total_inactive_file"
        else:
            continue
        # The path may be the host's; seen from within a container its own group is the top.
        inner = Path(path.lstrip("/"))
        for each in (inner, *inner.parents):
            folder = root / "sys/fs/cgroup" / top / each
            most, used = _number(folder / limit), _number(folder / use)
            if most is not None and used is not None:
                # Files that were read are counted as used, and given back when need be.
                yield most - used + sum(_listed(folder / "memory.stat", kept))


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" is no limit


def _listed(file: Path, key: str) -> list[int]:
    return [int(line.split()[1]) for line in _lines(file) if line.split()[:1] == [key]]


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
