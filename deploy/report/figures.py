"""Turn scores and masks into numbers that the report's template draws as SVG."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 860, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 16, 14, 30
COLOURS = (
    "#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4",
    "#ec4899", "#84cc16", "#f97316", "#14b8a6", "#6366f1", "#a16207",
)  # fmt: skip
"""Colours of the sites in turn; readable on white and on near-black."""


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    pieces: SVG points of each unbroken piece. dots: (x, y, tooltip). colour: empty for the mean of
    all sites.
    """

    name: str
    colour: str
    pieces: tuple[str, ...]
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Chart:
    """Scores by round. x_ticks, y_ticks: (place, label)."""

    curves: tuple[Curve, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = HEIGHT - BOTTOM


def colours_of(sites: Sequence[str]) -> dict[str, str]:
    """A colour for each site, the same in every figure."""
    return {site: COLOURS[i % len(COLOURS)] for i, site in enumerate(sites)}


def dice_chart(per_round: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> Chart | None:
    """Dice by round, for each site and for all test images; None if nothing was scored."""
    series: dict[str, list[float | None]] = {
        site: [r.get("per_site", {}).get(site, {}).get("dice") for r in per_round] for site in sites
    }
    series["all sites"] = [r.get("dice") for r in per_round]
    known = [value for values in series.values() for value in values if value is not None]
    if not known:
        return None

    rounds = [int(r["round"]) for r in per_round]
    low, high, step = _nice_range(min(known), max(known))
    span = max(rounds[-1] - rounds[0], 1)
    alone = len(rounds) == 1

    def x(round_: int) -> float:
        along = 0.5 if alone else (round_ - rounds[0]) / span
        return round(LEFT + 12 + along * (WIDTH - LEFT - RIGHT - 24), 1)

    def y(value: float) -> float:
        return round(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)

    colours = colours_of(sites)
    curves = []
    for name, values in series.items():
        points = [None if v is None else (x(n), y(v)) for n, v in zip(rounds, values, strict=True)]
        dots = tuple(
            (x(n), y(v), f"{name}, round {n}: Dice {v:.3f}")
            for n, v in zip(rounds, values, strict=True)
            if v is not None
        )
        curves.append(Curve(name, colours.get(name, ""), tuple(_pieces(points)), dots))

    every = math.ceil(len(rounds) / 16)
    count = round((high - low) / step)
    return Chart(
        curves=tuple(curves),
        x_ticks=tuple((x(n), str(n)) for n in rounds[::every]),
        y_ticks=tuple((y(low + i * step), f"{low + i * step:.2f}") for i in range(count + 1)),
    )


def _pieces(points: Sequence[tuple[float, float] | None]) -> list[str]:
    """Split a line at missing scores."""
    pieces: list[list[str]] = [[]]
    for point in points:
        if point is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{point[0]},{point[1]}")
    return [" ".join(piece) for piece in pieces if piece]


def _nice_range(low: float, high: float) -> tuple[float, float, float]:
    """Round limits within [0, 1] that enclose low and high, and the step between ticks.

    >>> _nice_range(0.62, 0.87)
    (0.6, 0.9, 0.05)
    """
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / s <= 5.5 or s == 0.2)
    below = max(0.0, math.floor(low / step) * step)
    above = min(1.0, math.ceil(high / step) * step)
    if above - below < 2 * step:
        below, above = max(0.0, below - step), min(1.0, above + step)
    return round(below, 4), round(above, 4), step


def outline(mask: NDArray[Any]) -> str:
    """The outline of `mask` (S, S) > 0.5 as an SVG path in its pixels; "" if it is empty.

    Holes are part of the path, so it must be filled by the even-odd rule.
    """
    values = np.pad(np.asarray(mask, np.float32), 1)
    if not (values > 0.5).any():
        return ""
    path = []
    for line in contourpy.contour_generator(z=values).lines(0.5):
        # Padded pixel 1 has its centre at .5 of the image. A tenth of a pixel is precise enough.
        corners = _thinned(np.asarray(line) - 0.5)
        path.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z")
    return "".join(path)


def _thinned(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """A long line without every second corner."""
    return line[::2] if len(line) > 40 else line


def as_data(image: NDArray[np.uint8]) -> str:
    """An image (H, W, 3) as a JPEG in a data URI."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=86)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
