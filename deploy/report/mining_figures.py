"""Small figures of what was mined: a round's bars, a site's course, judged quality and the truth.

As in figures.py everything is numbers in the frame of an SVG, and the template draws them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

SIDE, MARGIN, FOOT = 340, 40, 34
"""Of the calibration plot: a square, and the room for its ticks."""
BINS = 6
"""Points of the calibration curve; each stands for as many masks as the others."""
FEW = 12
"""Fewer masks than this make no curve."""


@dataclass(frozen=True)
class Judged:
    """One pseudo-label whose truth is known; quality and true_dice in [0, 1]."""

    site: str
    round: int
    quality: float
    true_dice: float
    kept: bool


@dataclass(frozen=True)
class Worth:
    """What judging was worth. dots: (x, y, site, kept, what it says) in a frame SIDE wide; curve:
    SVG points. kept, dropped: mean true Dice of either, None where there is none.
    """

    dots: tuple[tuple[float, float, str, bool, str], ...]
    curve: str
    count: int
    quality: float
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
    """One round's column. x, y, height of what was kept and of what was dropped above it."""

    x: float
    kept_y: float
    kept_height: float
    dropped_y: float
    dropped_height: float
    label: str
    says: str


def worth_of_judging(judged: Sequence[Judged]) -> Worth | None:
    """Judged quality against the true Dice; None where no truth is known."""
    if not judged:
        return None
    quality = np.array([one.quality for one in judged])
    truth = np.array([one.true_dice for one in judged])
    kept = np.array([one.kept for one in judged], bool)
    dots = tuple(
        (*_place(one.quality, one.true_dice), one.site, one.kept, _said(one)) for one in judged
    )
    curve = ""
    if len(judged) >= FEW:
        groups = np.array_split(np.argsort(quality, kind="stable"), BINS)
        means = [_place(float(quality[g].mean()), float(truth[g].mean())) for g in groups]
        curve = " ".join(f"{x},{y}" for x, y in means)
    varied = len(judged) > 2 and np.ptp(quality) > 0 and np.ptp(truth) > 0
    return Worth(
        dots=dots,
        curve=curve,
        count=len(judged),
        quality=float(quality.mean()),
        true_dice=float(truth.mean()),
        error=float(np.abs(quality - truth).mean()),
        rank=float(spearmanr(quality, truth).statistic) if varied else None,
        kept=float(truth[kept].mean()) if kept.any() else None,
        dropped=float(truth[~kept].mean()) if not kept.all() else None,
        ticks=tuple((*_place(v, v), f"{v:g}") for v in (0, 0.2, 0.4, 0.6, 0.8, 1)),
    )


def mined_bars(
    rounds: Sequence[tuple[int, int, int]], *, width: float = 400, height: float = 96
) -> tuple[Bar, ...]:
    """Kept and dropped of each round: (round, kept, dropped) to columns over `width`."""
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
                says=f"round {number}: {kept} kept, {dropped} dropped",
            )
        )
    return tuple(bars)


def course(values: Sequence[float], *, width: float = 200, height: float = 44) -> str:
    """Values in [0, 1] as SVG points over `width`; a single one is a level line."""
    points = [values[0], *values] if len(values) == 1 else list(values)
    step = width / max(len(points) - 1, 1)
    return " ".join(f"{i * step:.1f},{(1 - v) * height:.1f}" for i, v in enumerate(points))


def _place(quality: float, true_dice: float) -> tuple[float, float]:
    """Both in [0, 1], to the plot's frame; more is to the right and up."""
    wide, high = SIDE - 10 - MARGIN, SIDE - FOOT - 10
    return round(MARGIN + quality * wide, 1), round(10 + (1 - true_dice) * high, 1)


def _said(one: Judged) -> str:
    done = "kept" if one.kept else "dropped"
    what = f"judged {one.quality:.2f}, true Dice {one.true_dice:.2f}"
    return f"{one.site}, round {one.round}: {what}, {done}"
