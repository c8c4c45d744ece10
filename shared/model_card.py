"""The model card: a description of a finished model that is exported with it.

`server/release/release.py` writes it and `client/predict/predict.py` reads it. It holds sites and
counts, never images. Counts that are small enough to identify people are left out.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from knowmine.shared.errors import WeightsError
from knowmine.shared.settings import Plan, Settings

CARD_FORMAT: Final = 1
"""Version of the card; it grows with each change that would make a reader misread it."""

SMALL_COUNT = 5
"""Counts of images below this, and scores over so few images, are not published."""

ModelFormat = Literal["onnx", "torchscript", "monai", "safetensors"]


class SiteCard(Settings):
    """One site's contribution; None if the count is too small to publish."""

    site: str
    labelled: int | None = Field(description="Labelled images that it trained on.")
    pseudo_labelled: int | None = Field(description="Pseudo-labelled images in its last round.")
    test_images: int | None = Field(description="Test images of the site.")
    dice: float | None = Field(description="Mean Dice over the test images.")
    iou: float | None = Field(description="Mean IoU over the test images.")


class ModelCard(Settings):
    """A finished model: what it is, who trained it, its scores and its limits."""

    card_format: Literal[1] = CARD_FORMAT
    name: str = Field(max_length=64, description="What people call the model.")
    exported: str = Field(description="Date of the export, UTC, YYYY-MM-DD.")
    model_format: ModelFormat
    model_file: str = Field(description="The model, relative to the card's folder.")
    opset: int | None = Field(None, description="ONNX opset; only if the model is ONNX.")
    weights_sha256: str = Field(description="Digest of the weights; the same in every format.")
    class_names: tuple[str, ...] = Field(description="Name of each class, in the order of values.")
    modalities: tuple[str, ...] = Field(
        (), description="DICOM modalities (DX, US, ...) that it is meant for; empty: any image."
    )
    licence: str = Field(description="Licence of the weights, in words or as an SPDX name.")
    rounds: int
    sites: tuple[SiteCard, ...]
    dice: float | None = Field(description="Mean Dice over the test images of the sites shown.")
    iou: float | None
    test_images: int | None
    plan: Plan = Field(description="Settings that all sites shared: network, training, mining.")
    sam: Mapping[str, str] | None = Field(description="Name and digest of the SAM that was used.")
    versions: Mapping[str, str] = Field(
        description="Versions of the software that trained and exported it."
    )
    limits: tuple[str, ...] = Field(
        description="What the model cannot do, and what was not measured."
    )


def pack_card(card: ModelCard) -> bytes:
    """The card as the bytes of `model_card.json`."""
    return (json.dumps(card.model_dump(mode="json"), indent=2) + "\n").encode()


def unpack_card(content: bytes) -> ModelCard:
    """The card in `content`; raise `WeightsError` if it is none or has another version."""
    try:
        values: Any = json.loads(content)
    except ValueError:
        raise WeightsError("model_card.json is not JSON: export the model again") from None
    seen = values.get("card_format") if isinstance(values, dict) else None
    if seen != CARD_FORMAT:
        raise WeightsError(
            f"model_card.json has card_format {seen!r}, expected {CARD_FORMAT}: it is not a model "
            "card, or another version of knowmine wrote it; export the model again or update knowmine here"
        )
    try:
        card = ModelCard.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"model_card.json: `{where}`: {first['msg']}: export the model again"
        ) from None
    if len(card.class_names) != card.plan.model.classes:
        raise WeightsError(
            f"model_card.json names {len(card.class_names)} classes, expected "
            f"{card.plan.model.classes}: export the model again"
        )
    return card
