"""Collect what a run's folder says of its progress, without small counts.

Counts of fewer than five test images are left out, and so are the scores that rest on them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from knowmine.server.release.model_cards import published
from knowmine.server.status.status import read_status

EVENTS = 40
"""Events of the log that are shown."""


def figures_of(run: Path) -> dict[str, Any]:
    """What the page, the metrics and `status --format json` show of the run in a folder.

    It is `read_status` with `history` (a record for each round) and `events` (the end of the log).
    Raises `UsageError` if there is no run.
    """
    history = []
    for file in sorted((run / "rounds").glob("*.json")):
        try:
            record = json.loads(file.read_bytes())
        except (OSError, ValueError):
            continue  # damaged; the journal reports it
        if record.get("round"):
            history.append(_without_small_counts(record))
    dice = history[-1]["dice"] if history else None
    return {
        **read_status(run),
        "dice": dice,
        "history": history,
        "events": _events(run / "run.log.jsonl"),
    }


def mining_cards(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The mining of each site over all rounds, by name; a site that mined nothing has no card.

    last: figures of the last round. curve: predicted Dice by round, as points of an SVG of 100 x 20.
    """
    mined: dict[str, list[Mapping[str, Any]]] = {}
    for record in history:
        for name, one in record["mined_per_site"].items():
            if one["kept"] + one["dropped"]:
                mined.setdefault(name, []).append(one)
    cards = []
    for name, rounds in sorted(mined.items()):
        kept, dropped = (sum(one[key] for one in rounds) for key in ("kept", "dropped"))
        qualities = [one["mean_quality"] for one in rounds]
        step = 100 / max(1, len(qualities) - 1)
        points = (
            list(enumerate(qualities)) if len(qualities) > 1 else [(n, *qualities) for n in (0, 1)]
        )
        cards.append(
            {
                "name": name,
                "last": rounds[-1],
                "rounds": len(rounds),
                "kept": kept,
                "total": kept + dropped,
                "curve": " ".join(f"{i * step:.1f},{20 - 20 * q:.1f}" for i, q in points),
            }
        )
    return cards


def _without_small_counts(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round's record without small counts, and with the mean over the remaining sites."""
    sites = {
        name: {
            "test_images": published(scores["test_images"]),
            "dice": scores["dice"] if published(scores["test_images"]) else None,
        }
        for name, scores in record.get("per_site", {}).items()
    }
    shown = [
        (int(s["test_images"]), float(s["dice"]))
        for s in sites.values()
        if s["test_images"] and s["dice"] is not None
    ]
    images = sum(count for count, _ in shown)
    return {
        "round": record["round"],
        "seconds": record["seconds"],
        "sites": record["sites"],
        # The run's own mean would reveal the score of a site that is left out.
        "dice": round(sum(dice * count for count, dice in shown) / images, 6) if images else None,
        "bytes_down": record.get("bytes_down", 0),
        "bytes_up": record.get("bytes_up", 0),
        "mined": record["mined"],
        "per_site": sites,
        "mined_per_site": record.get("mined_per_site", {}),
        "refused": record.get("refused", {}),
    }


def _events(log: Path) -> list[dict[str, str]]:
    """The last events of the log that matter to a person, newest first."""
    events = []
    try:
        lines = log.read_bytes().splitlines()[-400:]
    except OSError:
        return []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") not in ("update", "round"):
            keys = ("time", "level", "event", "site", "reason")
            events.append({key: str(event.get(key) or "") for key in keys})
    return events[-EVENTS:][::-1]
