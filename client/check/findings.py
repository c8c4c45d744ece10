"""What a check found: each finding says what, why it matters and how to mend it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["good", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("good", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    area: data, weights, machine, isolation, disk, keys, network, pace, canary, leaves, ... facts: numbers for scripts.
    """

    area: str
    level: Level
    what: str
    why: str = ""
    mend: str = ""
    facts: dict[str, Any] | None = None


def stopped(area: str, error: Exception, why: str) -> Finding:
    """What ended a look at an area before its time; what the system says of a file names it."""
    if not isinstance(error, OSError):
        return Finding(area, "error", str(error), why)
    where = f" ({error.filename})" if error.filename else ""
    what = f"the system says: {error.strerror or error}{where}"
    return Finding(
        area, "error", what, why, "see whose it is, its mode, and whether the disk is full"
    )


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among them.

    >>> worst([Finding("disk", "good", "9 GB free"), Finding("keys", "warning", "ends soon")])
    'warning'
    """
    return max((f.level for f in findings), key=LEVELS.index, default="good")


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """The report for scripts."""
    findings = list(findings)
    return {"level": worst(findings), "findings": [asdict(finding) for finding in findings]}
