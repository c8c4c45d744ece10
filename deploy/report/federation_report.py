"""A federation's run as the same page as a simulation's: no pictures, and no small counts.

Counts of fewer than five test images are left out with the scores that rest on them, and means are
those of the sites shown, so that the page can be handed to every site.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowmine.deploy.report.report import write_report
from knowmine.server.release.model_cards import published
from knowmine.shared.errors import UsageError

SCORES = ("dice", "iou", "hd95")
TOLD_SETTINGS = ("federation", "plan", "run")
"""The others are paths and addresses of the server's machine."""


def write_federation_report(run: Path) -> Path:
    """Write `RUN/report.html` of a run that has ended, and return its path."""
    file = run / "summary.json"
    try:
        summary = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(
            f"no summary in {run} ({error.strerror}): name the folder of a run that has ended"
        ) from error
    except ValueError as error:
        raise UsageError(f"{file} is damaged ({error}): put it back from a copy") from error
    return write_report(run, without_small_counts(summary), ())


def without_small_counts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary as every site may read it."""
    per_round = [
        {
            **record,
            **_scores(record.get("per_site", {})),
            "per_site": {s: _score(scores) for s, scores in record.get("per_site", {}).items()},
            "updates": {
                site: {
                    **update,
                    **{key: published(update[key]) for key in ("labelled", "pseudo_labelled")},
                }
                for site, update in record.get("updates", {}).items()
            },
        }
        for record in summary["per_round"]
    ]
    return {
        **summary,
        "global": _scores(summary["per_site"]),
        "per_site": {site: _score(scores) for site, scores in summary["per_site"].items()},
        "per_round": per_round,
        "settings": {k: v for k, v in summary["settings"].items() if k in TOLD_SETTINGS},
    }


def _score(scores: Mapping[str, Any]) -> dict[str, Any]:
    """One site's scores, or none of them."""
    images = published(scores.get("test_images"))
    return {"test_images": images, **{k: scores.get(k) if images else None for k in SCORES}}


def _scores(per_site: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over all test images of the sites shown."""
    shown = [s for scores in per_site.values() if (s := _score(scores))["test_images"]]
    images = sum(s["test_images"] for s in shown)

    def mean(key: str) -> float | None:
        known = [(s[key], s["test_images"]) for s in shown if s[key] is not None]
        total = sum(count for _, count in known)
        return round(sum(value * count for value, count in known) / total, 6) if total else None

    return {"test_images": images or None, **{key: mean(key) for key in SCORES}}
