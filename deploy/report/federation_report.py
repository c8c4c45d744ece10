"""Write the report of a federation's run, without pictures and small counts.

Counts of fewer than five test images and their scores are left out, and means are taken over the
remaining sites, so that every site may read the page.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knowmine.deploy.report.report import write_report
from knowmine.server.release.finished_run import read_summary
from knowmine.server.release.model_cards import published

SCORES = ("dice", "iou", "hd95")
SHOWN_SETTINGS = ("federation", "plan", "run")
"""The other settings are paths and addresses of the server's machine."""


def write_federation_report(run: Path) -> Path:
    """Write `RUN/report.html` of a run that has ended, and return its path.

    Raises `UsageError` if there is no such run, or if another version of knowmine wrote it.
    """
    summary, _ = read_summary(run)
    return write_report(run, without_small_counts(summary), ())


def without_small_counts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary that every site may read."""
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
        "settings": {k: v for k, v in summary["settings"].items() if k in SHOWN_SETTINGS},
    }


def _score(scores: Mapping[str, Any]) -> dict[str, Any]:
    """One site's scores, or None for each if they rest on few images."""
    images = published(scores.get("test_images"))
    return {"test_images": images, **{k: scores.get(k) if images else None for k in SCORES}}


def _scores(per_site: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Means over all test images of the sites that are shown."""
    shown = [s for scores in per_site.values() if (s := _score(scores))["test_images"]]
    images = sum(s["test_images"] for s in shown)

    def mean(key: str) -> float | None:
        known = [(s[key], s["test_images"]) for s in shown if s[key] is not None]
        total = sum(count for _, count in known)
        return round(sum(value * count for value, count in known) / total, 6) if total else None

    return {"test_images": images or None, **{key: mean(key) for key in SCORES}}
