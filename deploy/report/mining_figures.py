"""Figures of the mining: bars by round, a site's curves, predicted Dice against true Dice.

As in figures.py, everything is numbers in the frame of an SVG, and the template draws them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

SIDE, MARGIN, FOOT = 340, 40, 34
"""Size of the scatter plot, and the room for its ticks."""
BINS = 6
"""Points of the plot's curve; each is the mean of an equal number of masks."""
FEW = 12
"""With fewer masks than this, no curve is drawn."""


@dataclass(frozen=True)
class Measured:
    """One pseudo-label with a known mask; predicted and true_dice in [0, 1]."""

    site: str
    round: int
    predicted: float
    true_dice: float
    kept: bool


@dataclass(frozen=True)
class Fit:
    """How well the predicted Dice fits the true Dice.

    dots: (x, y, site, kept, tooltip) in a frame SIDE wide; curve: SVG points.
    predicted, true_dice: means. kept, dropped: mean true Dice of the kept and of the dropped
    pseudo-labels, None if there are none. error: mean absolute error. rank: rank correlation.
    """

    dots: tuple[tuple[float, float, str, bool, str], ...]
    curve: str
    count: int
    predicted: float
    true_dice: float
    error: float
    rank: float | None
    kept: float | None
    dropped: float | None
    ticks: tuple[tuple[float, float, str], ...]
    side: int = SIDE
    left: int = MARGIN
    bottom: int = SIDE - FOOT
    top: int = 10
    right: int = SIDE - 10


@dataclass(frozen=True)
class Bar:
    """One round's column: the kept pseudo-labels, and above them the dropped ones."""

    x: float
    kept_y: float
    kept_height: float
    dropped_y: float
    dropped_height: float
    label: str
    tooltip: str


def fit_of(measured: Sequence[Measured]) -> Fit | None:
    """Predicted Dice against true Dice; None if no mask is known."""
    if not measured:
        return None
    predicted = np.array([one.predicted for one in measured])
    truth = np.array([one.true_dice for one in measured])
    kept = np.array([one.kept for one in measured], bool)
    dots = tuple(
        (*_place(one.predicted, one.true_dice), one.site, one.kept, _tooltip(one))
        for one in measured
    )
    curve = ""
    if len(measured) >= FEW:
        groups = np.array_split(np.argsort(predicted, kind="stable"), BINS)
        means = [_place(float(predicted[g].mean()), float(truth[g].mean())) for g in groups]
        curve = " ".join(f"{x},{y}" for x, y in means)
    varied = len(measured) > 2 and np.ptp(predicted) > 0 and np.ptp(truth) > 0
    return Fit(
        dots=dots,
        curve=curve,
        count=len(measured),
        predicted=float(predicted.mean()),
        true_dice=float(truth.mean()),
        error=float(np.abs(predicted - truth).mean()),
        rank=float(spearmanr(predicted, truth).statistic) if varied else None,
        kept=float(truth[kept].mean()) if kept.any() else None,
        dropped=float(truth[~kept].mean()) if not kept.all() else None,
        ticks=tuple((*_place(v, v), f"{v:g}") for v in (0, 0.2, 0.4, 0.6, 0.8, 1)),
    )


def mined_bars(
    rounds: Sequence[tuple[int, int, int]], *, width: float = 400, height: float = 96
) -> tuple[Bar, ...]:
    """A column for each (round, kept, dropped), side by side over `width`."""
    most = max((kept + dropped for _, kept, dropped in rounds), default=0)
    if not most:
        return ()
    step, every = width / len(rounds), -(-len(rounds) // 16)
    bars = []
    for i, (number, kept, dropped) in enumerate(rounds):
        up, over = kept / most * height, dropped / most * height
        bars.append(
            Bar(
                x=round(i * step, 1),
                kept_y=round(height - up, 1),
                kept_height=round(up, 1),
                dropped_y=round(height - up - over, 1),
                dropped_height=round(over, 1),
                label=str(number) if i % every == 0 else "",
                tooltip=f"round {number}: {kept} kept, {dropped} dropped",
            )
        )
    return tuple(bars)


def sparkline(values: Sequence[float], *, width: float = 200, height: float = 44) -> str:
    """Values in [0, 1] as SVG points over `width`; a single value becomes a level line."""
    points = [values[0], *values] if len(values) == 1 else list(values)
    step = width / max(len(points) - 1, 1)
    return " ".join(f"{i * step:.1f},{(1 - v) * height:.1f}" for i, v in enumerate(points))


def _place(predicted: float, true_dice: float) -> tuple[float, float]:
    """Two values in [0, 1] as a place in the plot; larger values lie to the right and higher."""
    wide, high = SIDE - 10 - MARGIN, SIDE - FOOT - 10
    return round(MARGIN + predicted * wide, 1), round(10 + (1 - true_dice) * high, 1)


def _tooltip(one: Measured) -> str:
    done = "kept" if one.kept else "dropped"
    scores = f"predicted Dice {one.predicted:.2f}, true Dice {one.true_dice:.2f}"
    return f"{one.site}, round {one.round}: {scores}, {done}"
