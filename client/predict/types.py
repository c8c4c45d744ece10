"""What predict reads: a file to segment, and its frames once it is opened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

Spacing: TypeAlias = tuple[float, float]
"""Height and width of a pixel in mm."""


@dataclass(frozen=True)
class Input:
    """One file to segment.

    name: of the results written for it: a relative path without suffix, unique in the run.
    """

    path: Path
    name: str


@dataclass(frozen=True)
class Opened:
    """The frames of a file.

    read: gives frame 0..frames-1 as (H, W, 3) uint8, original frame.
    spacing_mm: None if the file does not give it. notes: what a person should know about the file.
    header: of a DICOM file, without pixels.
    """

    frames: int
    read: Callable[[int], NDArray[np.uint8]]
    spacing_mm: Spacing | None
    notes: tuple[str, ...]
    header: Dataset | None = None
