"""Give each site the calibration sums that its next round uses: its own, or the federation's."""

from collections.abc import Iterable, Mapping
from typing import Any

from knowmine.shared.protocol import MIN_CALIBRATION_IMAGES, Calibration, calibration_of


def calibrations_for(
    roster: Iterable[str], calibrations: Mapping[str, Calibration]
) -> dict[str, Calibration]:
    """The sums for each site of the roster.

    A site uses its own sums if its calibration set has at least `MIN_CALIBRATION_IMAGES` images,
    and the sums of the whole federation otherwise.
    """
    # Floats add up differently in another order, and a run must repeat bit for bit.
    pooled = sum((calibrations[name] for name in sorted(calibrations)), start=Calibration())
    own = {name: calibrations.get(name, Calibration()) for name in roster}
    return {
        name: sums if sums.images >= MIN_CALIBRATION_IMAGES else pooled
        for name, sums in own.items()
    }


def calibrations_in(record: Mapping[str, Any]) -> dict[str, Calibration]:
    """The sums that a committed round left for the next, by site."""
    found = record.get("calibration", {})
    return {name: calibration_of(values) for name, values in found.items()}
