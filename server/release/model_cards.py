"""Fill a model card from a run's records, and write it as a page for people."""

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
    """It always looks for what it was trained on and cannot recognise that an image shows something
    else. High agreement between mirrored views does not prove that a mask is right.""",
    """Weights contain traces of their training images. Do not share them more widely than the sites
    agreed.""",
)


def site_cards(summary: Mapping[str, Any]) -> tuple[SiteCard, ...]:
    """Each site's contribution, without counts below `SMALL_COUNT` and their scores."""
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
    """A count that may be published: 0 may, 1 to 4 may not.

    >>> published(0), published(4), published(5), published(None)
    (0, None, 5, None)
    """
    return count if count is not None and (count == 0 or count >= SMALL_COUNT) else None


def overall(sites: Sequence[SiteCard]) -> dict[str, Any]:
    """Dice and IoU over all test images of the sites that are shown.

    The run's own mean would reveal the score of a site that is left out.
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
    """The limits of every model, and those of this run."""
    limits = [" ".join(limit.format(px=plan.model.image_px).split()) for limit in LIMITS]
    shown = sum(site.test_images or 0 for site in sites)
    if shown < 100:
        limits.append(f"Scores rest on {shown} test images, too few for precise scores.")
    if plan.training.batch_norm == "local":
        limits.append(
            "Each site has its own batch-norm layers (batch_norm: local). This file holds the shared "
            "layers; no site was scored with them."
        )
    if summary["rounds"] < summary["settings"].get("run", {}).get("rounds", 0):
        limits.append("The run ended before its last round.")
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

A U-Net++ ({model.encoder}) that {len(card.sites)} sites trained together with knowmine in {card.rounds} rounds,
without sharing images. Exported {card.exported}.

- Finds: {classes} (0 is background)
- DICOM modality: {modalities}
- File: `{card.model_file}` ({card.model_format}{opset})
- Input: {px} x {px} RGB, values 0 to 1; the normalisation is {_normalisation(card)}
- Output: one logit for each class and pixel; a pixel belongs to the likeliest class whose sigmoid
  is above 0.5
- Licence: {card.licence}

## Limits

{limits}
## Scores

| site | labelled | pseudo-labelled | test images | Dice | IoU |
|---|---|---|---|---|---|
{rows}| **all shown** | | | {_count(card.test_images)} | {_score(card.dice)} | {_score(card.iou)} |

Means over each site's test images at their original size, for the model of the last round.
A dash means: not measured, or fewer than {SMALL_COUNT} images, which are not published.

## Training

- Method: {card.plan.method}, seed {card.plan.seed}
- SAM: {sam}
- Settings: under `plan` in `model_card.json`

{versions}
## Digests

Weights, the same in every format: sha256 `{card.weights_sha256}`. Files: `manifest.json`.
"""


def _normalisation(card: ModelCard) -> str:
    return "done by the bundle" if card.model_format == "monai" else "inside the model"


def _count(value: int | None) -> str:
    return "–" if value is None else str(value)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
