"""What a report shows of the pseudo-labels that a site kept: the worst, the best, and a sample."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from knowmine.client.at_rest import Seal
from knowmine.client.mined import (
    Pixels,
    PseudoLabel,
    list_mined,
    masks_of,
    mined_files,
    pixels_of,
)

WORST, BEST = 4, 2
"""How many of a round's worst and best judged are shown."""
SAMPLE = 60
"""Of how many of a round, evenly from worst to best, the mask is looked at: what judging is worth."""


def load_gallery(
    folder: Path, rounds: int, *, seal: Seal | None = None
) -> list[tuple[PseudoLabel, Pixels]]:
    """The worst and the best judged of a site's last `rounds` mining rounds, oldest first."""
    found = []
    for file in mined_files(folder, seal)[-rounds:]:
        labels = list_mined(file, seal)
        order = _from_worst(labels)
        for row in sorted({*order[:WORST], *order[-BEST:]}):
            if pixels := pixels_of(labels[row], seal):
                found.append((labels[row], pixels))
    return found


def load_sample(
    folder: Path, rounds: int, *, seal: Seal | None = None
) -> list[tuple[PseudoLabel, NDArray[np.bool_]]]:
    """Masks (S, S) of a site's last `rounds` mining rounds, evenly from worst judged to best."""
    found = list[tuple[PseudoLabel, NDArray[np.bool_]]]()
    for file in mined_files(folder, seal)[-rounds:]:
        labels = list_mined(file, seal)
        places = np.linspace(0, len(labels) - 1, min(len(labels), SAMPLE)).round().astype(int)
        rows = [_from_worst(labels)[place] for place in places]
        found += zip([labels[row] for row in rows], masks_of(file, rows, seal), strict=False)
    return found


def _from_worst(labels: list[PseudoLabel]) -> list[int]:
    return sorted(range(len(labels)), key=lambda row: labels[row].quality)
