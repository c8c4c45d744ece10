"""The run as one self-contained page: curves, what was mined, and overlays to judge by eye."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from knowmine.deploy.report.figures import as_data, colours_of, dice_chart, outline
from knowmine.deploy.report.mining_figures import Judged, mined_bars, worth_of_judging
from knowmine.deploy.report.tables import digests, flat, mining_cards, roster, round_row, site_row
from knowmine.deploy.simulation.progress import duration
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


def write_report(
    run: Path,
    summary: Mapping[str, Any],
    gallery: Sequence[GalleryItem],
    judged: Sequence[Judged] = (),
) -> Path:
    """Write `RUN/report.html` from the summary and the pseudo-labels kept to look at.

    judged: pseudo-labels whose truth is known, to see what judging is worth.
    The page needs nothing but itself: styles, charts and pictures are in it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"score": score, "bytes": human_bytes, "duration": duration}
    content = _content(summary, gallery) | {
        "worth": worth_of_judging(judged),
        "digests": digests(run, summary),
    }
    page = environment.get_template("report.html").render(**content)
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
    rows = [site_row(site, summary, per_round) for site in sites]
    rounds = [round_row(record) for record in per_round]
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
        "rounds": rounds,
        "lead": _lead(summary, rounds),
        "bar_step": 400 / max(len(rounds), 1),
        "bars": mined_bars(
            [(row["round"], row["kept"], row["dropped"]) for row in rounds], height=200
        ),
        "mining": mining_cards(sites, per_round),
        "roster": roster(sites, per_round),
        "bytes": sum(row["bytes"] for row in rounds),
        "seconds": sum(row["seconds"] for row in rounds),
        "refused": [
            (record["round"], site, why)
            for record in per_round
            for site, why in record.get("refused", {}).items()
        ],
        "left_out": summary.get("left_out", {}),
        "cards": [_card(item) for item in shown],
        "gallery_size": len(gallery),
        "settings": list(flat(summary["settings"])),
    }


def _lead(summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What happened, for a reader of one line and for a reader of three."""
    sites, whole = summary["sites"], summary["global"]
    title = f"{len(sites)} sites, one model" if len(sites) > 1 else f"{sites[0]}, alone"
    said = []
    first = rounds[0]["dice"] if rounds else None
    if first is not None and whole["dice"] is not None:
        images = (
            f"{whole['test_images']} test images" if whole.get("test_images") else "test images"
        )
        course = f"was {whole['dice']:.3f}"
        if len(rounds) > 1:
            gain = whole["dice"] - first
            verb = "rose" if gain >= 0.0005 else "fell" if gain <= -0.0005 else "stayed"
            course = f"{verb} from {first:.3f} after the first round to {whole['dice']:.3f}"
        said.append(f"On {images}, which nobody trained on, its Dice {course}.")
    mined = sum(row["kept"] + row["dropped"] for row in rounds)
    if mined:
        kept = sum(row["kept"] for row in rounds)
        said.append(
            f"Over the rounds the sites looked at {mined} images without labels, and kept {kept} "
            "of the masks found to learn from."
        )
    return {"title": title, "text": " ".join(said)}


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
