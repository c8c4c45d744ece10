"""The run as one self-contained page: curves, what was mined, and overlays to judge by eye."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from knowmine.deploy.figures import as_data, colours_of, dice_chart, outline
from knowmine.deploy.progress import duration
from knowmine.shared.weights import write_atomically

SHOWN = 48
"""Gallery items in the page, the worst first; more would make it too heavy to open."""


@dataclass(frozen=True)
class GalleryItem:
    """One pseudo-label to look at, in the model frame.

    quality: as the judge guessed it; true_dice: as it was, where the truth is known.
    image: (S, S, 3) uint8. unet, sam, fused: (S, S) in [0, 1], sam None where it was not asked.
    truth: (S, S) uint8, or None where it is not known.
    """

    site: str
    round: int
    stem: str
    quality: float
    kept: bool
    true_dice: float | None
    image: NDArray[np.uint8]
    unet: NDArray[np.floating[Any]]
    sam: NDArray[np.floating[Any]] | None
    fused: NDArray[np.floating[Any]]
    truth: NDArray[np.uint8] | None


def write_report(run: Path, summary: Mapping[str, Any], gallery: Sequence[GalleryItem]) -> Path:
    """Write `RUN/report.html` from the summary and the pseudo-labels kept to look at.

    The page needs nothing but itself: styles, charts and pictures are in it.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"score": score, "bytes": human_bytes, "duration": duration}
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = environment.from_string(source).render(**_content(summary, gallery))
    file = run / "report.html"
    write_atomically(file, page.encode(errors="replace"))
    return file


def worst_first(gallery: Iterable[GalleryItem]) -> list[GalleryItem]:
    """By true Dice where it is known, by judged quality elsewhere."""
    return sorted(
        gallery,
        key=lambda item: item.quality if item.true_dice is None else item.true_dice,
    )


def score(value: float | None, digits: int = 3) -> str:
    """A number that may be missing.

    >>> score(0.81234), score(None)
    ('0.812', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def human_bytes(count: float) -> str:
    """A number of bytes as people say it.

    >>> human_bytes(512), human_bytes(21_300_000)
    ('512 B', '21.3 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _content(summary: Mapping[str, Any], gallery: Sequence[GalleryItem]) -> dict[str, Any]:
    """Everything that the template names."""
    sites, per_round = list(summary["sites"]), list(summary["per_round"])
    rows = [_site_row(site, summary, per_round) for site in sites]
    shown = worst_first(gallery)[:SHOWN]
    plan = summary["settings"].get("plan", {})
    return {
        "summary": summary,
        "reason": summary.get("reason", ""),
        "method": plan.get("method", ""),
        "whole": {key: summary["global"].get(key) for key in ("dice", "iou", "hd95")},
        "test_images": sum(s.get("test_images") or 0 for s in summary["per_site"].values()),
        "chart": dice_chart(per_round, sites),
        "colours": colours_of(sites),
        "sites": rows,
        "labelled": sum(row["labelled"] or 0 for row in rows),
        "rounds": [_round_row(record) for record in per_round],
        "refused": [
            (record["round"], site, why)
            for record in per_round
            for site, why in record.get("refused", {}).items()
        ],
        "left_out": summary.get("left_out", {}),
        "cards": [_card(item) for item in shown],
        "gallery_size": len(gallery),
        "settings": list(_flat(summary["settings"])),
    }


def _site_row(
    site: str, summary: Mapping[str, Any], per_round: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    scores = summary["per_site"].get(site, {})
    course = [r.get("per_site", {}).get(site, {}).get("dice") for r in per_round]
    known = [value for value in course if value is not None]
    updates = [r["updates"][site] for r in per_round if site in r.get("updates", {})]
    return {
        "name": site,
        **{key: scores.get(key) for key in ("dice", "iou", "hd95", "test_images")},
        "change": known[-1] - known[0] if len(known) > 1 else None,
        "labelled": updates[-1]["labelled"] if updates else None,
        "pseudo_labelled": updates[-1]["pseudo_labelled"] if updates else None,
    }


def _round_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round with its sites; means over sites weigh each by the images that it mined."""
    mined = record.get("mined_per_site", {})
    weights = {site: m.get("kept", 0) + m.get("dropped", 0) for site, m in mined.items()}
    total = sum(weights.values())

    def mean(key: str) -> float | None:
        if not total:
            return None
        return float(sum(m.get(key, 0.0) * weights[site] for site, m in mined.items()) / total)

    kept, dropped = record["mined"]["kept"], record["mined"]["dropped"]
    return {
        "round": record["round"],
        "dice": record["dice"],
        "kept": kept,
        "dropped": dropped,
        "kept_share": 100 * kept / (kept + dropped) if kept + dropped else None,
        "empty": sum(m.get("empty", 0) for m in mined.values()),
        "gate": record["mined"]["gate"],
        "fuse_weight": mean("fuse_weight"),
        "mean_agreement": mean("mean_agreement"),
        "mean_quality": mean("mean_quality"),
        "seconds": record["seconds"],
        "bytes": record.get("bytes_down", 0) + record.get("bytes_up", 0),
        "sites": [{"name": site, "mined": weights[site], **m} for site, m in mined.items()],
    }


def _card(item: GalleryItem) -> dict[str, Any]:
    """One gallery item; the truth's outline goes over every panel."""
    panels = [("U-Net++", "unet", outline(item.unet))]
    if item.sam is not None:
        panels.append(("SAM", "sam", outline(item.sam)))
    panels.append(
        ("fused" if item.sam is not None else "pseudo-label", "fused", outline(item.fused))
    )
    truth = None if item.truth is None else outline(item.truth > 0)
    return {
        "item": item,
        "size": item.image.shape[0],
        "data": as_data(item.image),
        "panels": panels,
        "truth": truth,
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted keys and their values."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            shown = "not set" if value is None else value
            yield prefix + str(key), str(shown)
