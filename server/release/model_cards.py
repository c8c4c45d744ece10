"""From a run's records to its model card, and from the card to a page for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from knowmine.shared.model_card import SMALL_COUNT, ModelCard, SiteCard
from knowmine.shared.settings import Plan

LIMITS = (
    """Research software, not a medical device. A person must look at every mask before anyone
    acts on it.""",
    """Scores were measured on images of the sites that trained it. Other scanners, patients and
    tasks were not tested: measure it on your own labelled images first.""",
    """An image is shrunk to a square of {px} x {px} pixels before the model sees it: structures
    finer than about a {px}th of the image's side are lost.""",
    """It always looks for what it was trained on and cannot tell that an image shows something
    else. A high agreement of mirrored views is not proof of a right mask.""",
    """Weights carry traces of their training images. Share them no more widely than the sites
    agreed.""",
)


def site_cards(summary: Mapping[str, Any]) -> tuple[SiteCard, ...]:
    """Each site's part, with counts below `SMALL_COUNT` and the scores behind them left out."""
    last_update: dict[str, Mapping[str, Any]] = {}
    for record in summary["per_round"]:
        last_update |= record.get("updates", {})
    cards = []
    for site in summary["sites"]:
        scores = summary["per_site"].get(site, {})
        trained = last_update.get(site, {})
        tested = published(scores.get("test_images"))
        cards.append(
            SiteCard(
                site=site,
                labelled=published(trained.get("labelled")),
                pseudo_labelled=published(trained.get("pseudo_labelled")),
                test_images=tested,
                dice=scores.get("dice") if tested else None,
                iou=scores.get("iou") if tested else None,
            )
        )
    return tuple(cards)


def published(count: int | None) -> int | None:
    """A count as it may be told: none at all is no secret, a handful is.

    >>> published(0), published(4), published(5), published(None)
    (0, None, 5, None)
    """
    return count if count is not None and (count == 0 or count >= SMALL_COUNT) else None


def overall(sites: Sequence[SiteCard]) -> dict[str, Any]:
    """Dice and IoU over all test images of the sites shown.

    Not the run's own mean: beside the others it would give away a site that is left out.
    """
    shown = [site for site in sites if site.test_images]
    images = sum(site.test_images or 0 for site in shown)
    means = {
        key: round(sum(getattr(s, key) * (s.test_images or 0) for s in shown) / images, 6)
        if images
        else None
        for key in ("dice", "iou")
    }
    return {**means, "test_images": images or None}


def limits_of(summary: Mapping[str, Any], plan: Plan, sites: Sequence[SiteCard]) -> tuple[str, ...]:
    """The standing limits, and those that this run adds."""
    limits = [" ".join(limit.format(px=plan.model.image_px).split()) for limit in LIMITS]
    shown = sum(site.test_images or 0 for site in sites)
    if shown < 100:
        limits.append(f"Scores rest on {shown} test images: too few to trust their decimals.")
    if plan.training.batch_norm == "local":
        limits.append(
            "Sites kept batch-norm layers of their own (batch_norm: local). This file holds the "
            "shared ones, which no site was scored with."
        )
    if summary["rounds"] < summary["settings"].get("run", {}).get("rounds", 0):
        limits.append("The run did not reach its last round.")
    return tuple(limits)


def page_of(card: ModelCard) -> str:
    """The card as Markdown, for people."""
    rows = "".join(
        f"| {site.site} | {_count(site.labelled)} | {_count(site.pseudo_labelled)} "
        f"| {_count(site.test_images)} | {_score(site.dice)} | {_score(site.iou)} |\n"
        for site in card.sites
    )
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(card.class_names, 1))
    modalities = ", ".join(card.modalities) or "not stated"
    opset = f", ONNX opset {card.opset}" if card.opset else ""
    sam = f"{card.sam['name']}, sha256 `{card.sam['sha256']}`" if card.sam else "none"
    px, model = card.plan.model.image_px, card.plan.model
    versions = "".join(f"- {name} {version}\n" for name, version in sorted(card.versions.items()))
    limits = "".join(f"- {limit}\n" for limit in card.limits)
    return f"""# {card.name}

A U-Net++ ({model.encoder}) that {len(card.sites)} sites trained together with knowmine, without
sharing images, in {card.rounds} rounds. Exported {card.exported}.

- Finds: {classes} (0 is background)
- DICOM modality: {modalities}
- File: `{card.model_file}` ({card.model_format}{opset})
- Input: {px} x {px} RGB, values 0 to 1; the normalisation is {_normalisation(card)}
- Output: one logit for each class and pixel; a pixel belongs to the likeliest class whose sigmoid
  is above 0.5
- Licence: {card.licence}

## Limits

{limits}
## How good it was

| site | labelled | pseudo-labelled | test images | Dice | IoU |
|---|---|---|---|---|---|
{rows}| **all shown** | | | {_count(card.test_images)} | {_score(card.dice)} | {_score(card.iou)} |

Means over each site's own test images, at their original size, by the model of the last round.
A dash: not measured, or fewer than {SMALL_COUNT} images, which are not published.

## How it was made

- Method: {card.plan.method}, seed {card.plan.seed}
- SAM: {sam}
- Settings: under `plan` in `model_card.json`

{versions}
## Digests

Weights, whatever the format: sha256 `{card.weights_sha256}`. Files: `manifest.json`.
"""


def _normalisation(card: ModelCard) -> str:
    return "done by the bundle" if card.model_format == "monai" else "inside the model"


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
