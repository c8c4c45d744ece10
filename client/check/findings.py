"""The findings of a check: each says what was seen, why it matters and how to fix it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["good", "note", "warning", "error"]
LEVELS: tuple[Level, ...] = ("good", "note", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One finding.

    area: data, weights, machine, isolation, disk, keys, network, pace, canary or leaves. what: what
    was seen. why: why it matters. repair: how to fix it. facts: numbers for scripts.
    """

    area: str
    level: Level
    what: str
    why: str = ""
    repair: str = ""
    facts: dict[str, Any] | None = None


def stopped(area: str, error: Exception, why: str) -> Finding:
    """The finding for an error that stopped the check of an area; a system error names the file."""
    if not isinstance(error, OSError):
        return Finding(area, "error", str(error), why)
    where = f" ({error.filename})" if error.filename else ""
    what = f"the system says: {error.strerror or error}{where}"
    return Finding(
        area, "error", what, why, "check its owner, its mode, and whether the disk is full"
    )


def worst(findings: Iterable[Finding]) -> Level:
    """The most serious level of the findings.

    >>> worst([Finding("disk", "good", "9 GB free"), Finding("keys", "warning", "ends soon")])
    'warning'
    """
    return max((f.level for f in findings), key=LEVELS.index, default="good")


def as_json(findings: Iterable[Finding]) -> dict[str, Any]:
    """The findings as JSON."""
    findings = list(findings)
    return {"level": worst(findings), "findings": [asdict(finding) for finding in findings]}
