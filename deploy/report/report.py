"""Write a run's report: one self-contained page with curves, tables and pseudo-labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from knowmine.deploy.report.figures import as_data, colours_of, dice_chart, outline
from knowmine.deploy.report.mining_figures import Measured, fit_of, mined_bars
from knowmine.deploy.report.tables import digests, flat, mining_cards, roster, round_row, site_row
from knowmine.deploy.report.units import duration, human_bytes, score
from knowmine.shared.files import write_atomically

SHOWN = 48
"""Most gallery items in the page; more would make it slow to open."""


@dataclass(frozen=True)
class GalleryItem:
    """One pseudo-label of the gallery, in the model frame.

    predicted, true_dice: its predicted and its true Dice; the latter is None if the truth is unknown.
    image: (S, S, 3) uint8. unet, sam, fused: (S, S) in [0, 1]; sam is None if SAM was not prompted.
    truth: (S, S) uint8, or None if it is unknown.
    """

    site: str
    round: int
    case: str
    predicted: float
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
    measured: Sequence[Measured] = (),
) -> Path:
    """Write `RUN/report.html` and return its path.

    measured: pseudo-labels whose true mask is known, to compare predicted and true Dice.
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
        "fit": fit_of(measured),
        "digests": digests(run, summary),
    }
    page = environment.get_template("report.html").render(**content)
    file = run / "report.html"
    write_atomically(file, page.encode(errors="replace"))
    return file


def worst_first(gallery: Iterable[GalleryItem]) -> list[GalleryItem]:
    """Sorted by true Dice, or by predicted Dice if the truth is unknown."""
    return sorted(
        gallery,
        key=lambda item: item.predicted if item.true_dice is None else item.true_dice,
    )


def _content(summary: Mapping[str, Any], gallery: Sequence[GalleryItem]) -> dict[str, Any]:
    """The values of the template."""
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
    """The title, and a few sentences on what happened."""
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
        said.append(f"On {images}, which were not used for training, the Dice {course}.")
    mined = sum(row["kept"] + row["dropped"] for row in rounds)
    if mined:
        kept = sum(row["kept"] for row in rounds)
        said.append(
            f"Over all rounds the sites made pseudo-labels for {mined} images and trained on "
            f"{kept} of them."
        )
    return {"title": title, "text": " ".join(said)}


def _card(item: GalleryItem) -> dict[str, Any]:
    """One gallery item; the true outline is drawn on each panel."""
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
