"""Summarise a run in one page of JSON, for scripts and the report."""

from collections.abc import Mapping, Sequence
from typing import Any


def summarise(
    *,
    status: str,
    reason: str,
    records: Sequence[Mapping[str, Any]],
    roster: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
    sam: Mapping[str, Any] | None,
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """`RUN/summary.json` from the rounds' records.

    status: done, failed or paused; reason: why it is not done. Scores are from the last recorded
    round, null if nothing was scored.
    """
    last = records[-1] if records else {}
    return {
        "status": status,
        "reason": reason,
        "rounds": len(records),
        "sites": sorted(roster),
        "global": {key: last.get(key) for key in ("dice", "iou", "hd95", "test_images")},
        "per_site": last.get("per_site", {}),
        "per_round": [
            {
                key: value
                for key, value in record.items()
                if key not in ("calibration", "checkpoint")
            }
            for record in records
        ],
        "sam": sam,
        "settings": settings,
        "seed": seed,
        "versions": versions,
    }
