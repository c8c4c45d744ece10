"""What a person gives to predict: files and folders, opened one by one, or what is wrong."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset

from knowmine.client.data.dicom import is_dicom
from knowmine.client.data.images import is_image_file, read_image, stem_of
from knowmine.shared.errors import DataError

Spacing: TypeAlias = tuple[float, float]
NIFTI_SUFFIXES = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Input:
    """One file to segment. name: of what is written for it, relative, unique, without a suffix."""

    path: Path
    name: str


@dataclass(frozen=True)
class Opened:
    """A file's frames. read: frame 0..frames-1 as (H, W, 3) uint8, original frame.

    spacing_mm: height and width of a pixel, None where the file does not say.
    header: of a DICOM file, without pixels.
    """

    frames: int
    read: Callable[[int], NDArray[np.uint8]]
    spacing_mm: Spacing | None
    notes: tuple[str, ...]
    header: Dataset | None = None


def find_inputs(places: Sequence[Path], out: Path) -> list[Input]:
    """The files that were named, and all images in the folders that were named, in their order.

    Files and folders that begin with a dot, other kinds of files in folders, and `out` are passed
    over. Raises `DataError` where there is nothing at all.
    """
    found: list[Input] = []
    taken: set[str] = set()
    for place in places:
        for path, name in _in_folder(place, out) if place.is_dir() else [(place, _stem(place))]:
            unique, number = name, 1
            # Names that differ in case alone are one file on Windows and macOS.
            while unique.lower() in taken:
                number += 1
                unique = f"{name}-{number}"
            taken.add(unique.lower())
            found.append(Input(path, unique))
    if not found:
        raise DataError(
            f"no image in {', '.join(map(str, places)) or 'no place'}: name PNG, JPEG, TIFF, BMP, "
            "DICOM or NIfTI files, or folders of them"
        )
    return found


def open_input(path: Path, modalities: Sequence[str], max_image_px: int) -> Opened:
    """Open one file; raises `DataError` that begins with the path."""
    with explained(path):
        if path.stat().st_size == 0:
            raise DataError("is empty (0 bytes): copy or export it again")
        if is_dicom(path):
            from knowmine.client.predict.dicom_input import open_dicom

            return open_dicom(path, modalities, max_image_px)
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            from knowmine.client.predict.nifti_input import open_nifti

            return open_nifti(path, max_image_px)
        image = read_image(path, max_image_px=max_image_px)
        return Opened(1, lambda index: image, None, ())


def count_frames(path: Path) -> int:
    """How many pictures a file holds, by its header; 1 for one that cannot be read.

    What is wrong with it is said when it is opened.
    """
    with suppress(DataError), explained(path):
        if is_dicom(path):
            from knowmine.client.predict import dicom_input

            return dicom_input.count_frames(path)
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            from knowmine.client.predict import nifti_input

            return nifti_input.count_slices(path)
    return 1


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside into a `DataError` that begins with the path.

    Warnings are kept quiet: pydicom's and nibabel's quote the values that they stumble over.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(f"{path}: ") else f"{path}: {text}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except MemoryError:
        raise DataError(
            f"{path}: needs more memory than this machine has; split it, or scale it down"
        ) from None
    # As in client/data/images.py: decoders raise all kinds of errors on bad bytes. Their words are left
    # out, because they may quote a tag that names the patient.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read ({type(error).__name__}); it is damaged, cut short or not "
            "PNG, JPEG, TIFF, BMP, DICOM or NIfTI: export it again"
        ) from error


def _in_folder(folder: Path, out: Path) -> list[tuple[Path, str]]:
    files = []
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inner.parts)
        if hidden or not path.is_file() or path.is_relative_to(out):
            continue
        if is_image_file(path) or path.name.lower().endswith(NIFTI_SUFFIXES):
            files.append((path, (inner.parent / _stem(path)).as_posix()))
    return files


def _stem(path: Path) -> str:
    for suffix in reversed(NIFTI_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return stem_of(path)
