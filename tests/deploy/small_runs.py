"""Simulations that take a second: tiny drawn images, a narrow network, one step a round."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from knowmine.deploy.simulation.settings import SimulationSettings

SMALL: Mapping[str, Any] = {
    "plan": {
        "method": "supervised",
        "model": {"image_px": 32, "decoder_channels": [16, 8, 8], "pretrained": False},
        "training": {"steps": 1, "batch": 2},
    },
    "run": {"rounds": 2},
    "sites": {"count": 2},
    "machine": {"threads": 1, "device": "cpu"},
}


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`, key by key at every depth."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        both = isinstance(inner, Mapping) and isinstance(value, Mapping)
        result[key] = merged(inner, value) if both else value  # type: ignore[arg-type]  # `both`
    return result


def small(changes: Mapping[str, Any]) -> SimulationSettings:
    """The settings of a small run, with some of them changed."""
    return SimulationSettings.model_validate(merged(SMALL, changes))


def draw_data(folder: Path, images: int, masks: int | None = None) -> Path:
    """A data folder of noisy pictures with one bright disc each; the first `masks` are labelled."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rows, columns = np.mgrid[:40, :48]
    for index in range(images):
        rng = np.random.default_rng(index)
        row, column = rng.integers(12, 28, 2)
        disc = (rows - row) ** 2 + (columns - column) ** 2 < 80
        picture = rng.integers(0, 120, (40, 48, 3)) + 110 * disc[..., None]
        case_id = f"case-{index:02d}"
        Image.fromarray(picture.astype(np.uint8)).save(folder / "images" / f"{case_id}.png")
        if masks is None or index < masks:
            mask = Image.fromarray(disc.astype(np.uint8) * np.uint8(255))
            mask.save(folder / "masks" / f"{case_id}.png")
    return folder
