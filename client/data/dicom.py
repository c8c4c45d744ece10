"""Read one DICOM image as a viewer shows it.

`images.py` reads the other formats.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from knowmine.shared.errors import DataError

SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""Suffixes of DICOM files, lower case; Siemens scanners write `.ima`."""

MAX_FRAMES = 10_000
"""A header that declares more frames counts as damaged (this is 5 minutes at 30 frames a second)."""

_OTHERS = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".nii", ".gz", ".csv", ".txt", ".json"}
)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by its suffix, else by the "DICM" mark at byte 128 (PS3.10, 7.1).

    Files from hospital archives often have no suffix; what looks like one is then the last part of
    a UID or a vendor's own word. A DICOMDIR has the mark too, but it lists files and is not an
    image.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix in _OTHERS or path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def image_size(path: Path) -> tuple[int, int]:
    """(H, W), from the header."""
    header = read_dataset(path, header_only=True)
    frames = frames_of(header)
    if frames > 1:
        raise DataError(f"has {frames} frames, expected one; export each frame as a file")
    if "Rows" not in header or "Columns" not in header:
        raise DataError("is a DICOM file without an image (no Rows and Columns); remove it")
    return int(header.Rows), int(header.Columns)


def frames_of(header: Dataset) -> int:
    """The number of frames in a header, 1 if not given. Raises `DataError` for an impossible one."""
    try:
        value = header.get("NumberOfFrames")
        frames = 1 if value in (None, "") else int(value)
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            "has a NumberOfFrames that is not a number: its header is damaged; export it again"
        ) from None
    if not 1 <= frames <= MAX_FRAMES:
        raise DataError(
            f"declares {frames} frames, expected 1 to {MAX_FRAMES}: its header is damaged, or the "
            "recording must be split; export it again"
        )
    return frames


def read_image(path: Path) -> NDArray[np.uint8]:
    """The image, (H, W, 3) uint8: rescaled, windowed, and inverted if it is MONOCHROME1."""
    dataset = read_dataset(path)
    return show(pixel_array(dataset), dataset)


def show(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Stored pixels of one frame as (H, W, 3) uint8, windowed by the values in `dataset`."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    if pixels.ndim == 3:
        return pixels if pixels.dtype == np.uint8 else to_8_bit(pixels)
    grey = _windowed(apply_modality_lut(pixels, dataset), dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def read_stored(path: Path) -> NDArray[Any]:
    """Stored pixels (H, W) without window or inversion: in a mask the numbers are the classes."""
    values = pixel_array(read_dataset(path))
    if values.ndim != 2:
        raise DataError(f"is a colour picture {values.shape}, expected one channel of numbers")
    return values


def read_dataset(
    path: Path, *, header_only: bool = False, tags: Sequence[str] | None = None
) -> Dataset:
    """The file, or only its header. Raises `DataError`, and whatever pydicom raises.

    tags: keywords to read; None reads all.
    """
    # A deflated file is inflated completely before its size is known, so it may be a bomb.
    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise DataError(
            "is a deflated DICOM file, which cannot be read here; export it uncompressed"
        )
    return dcmread(
        path, stop_before_pixels=header_only, specific_tags=None if tags is None else list(tags)
    )


def to_8_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale the finite range of `pixels` to 0..255. A constant image becomes 0."""
    finite = np.isfinite(pixels)
    if not finite.any():
        raise DataError("holds no finite pixel; export it again")
    low, high = float(pixels[finite].min()), float(pixels[finite].max())
    return stretch(np.where(finite, pixels, low), low, high)


def stretch(pixels: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Scale `low`..`high` linearly to 0..255 and clip."""
    if high <= low:
        # A window of width 1 is a threshold. A constant image becomes 0.
        return np.where(pixels > high, 255, 0).astype(np.uint8)
    scaled: NDArray[np.float32] = (pixels.astype(np.float32) - low) * (255 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _windowed(pixels: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """Apply the VOI window (PS3.3, C.11.2.1.2), else the VOI table, else scale the full range."""
    # Some scanners write empty tags; that is not a window.
    empty = (None, "")
    if dataset.get("WindowCenter") not in empty and dataset.get("WindowWidth") not in empty:
        centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
        function = dataset.get("VOILUTFunction", "LINEAR")
        if function == "SIGMOID" and width > 0:
            return stretch(1 / (1 + np.exp(-4 * (pixels - centre) / width)), 0.0, 1.0)
        if function == "LINEAR":
            centre, width = centre - 0.5, width - 1
        return stretch(pixels, centre - width / 2, centre + width / 2)
    return to_8_bit(apply_voi(pixels, dataset) if "VOILUTSequence" in dataset else pixels)


def _first(value: Any) -> float:
    return float(value if isinstance(value, str | int | float) else value[0])
