"""Find the files to segment and open them one by one, or say what is wrong with a file."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from knowmine.client.data.dicom import is_dicom
from knowmine.client.data.images import case_id_of, is_image_file, read_image
from knowmine.client.predict import dicom_input
from knowmine.client.predict.types import Input, Opened
from knowmine.shared.errors import DataError

NIFTI_SUFFIXES = (".nii", ".nii.gz")


def find_inputs(places: Sequence[Path], out: Path) -> list[Input]:
    """The files in `places`, and all images in the folders in `places`, in the given order.

    In folders, hidden files and folders, files that are not images, and `out` are ignored. Raises
    `DataError` if there is no file.
    """
    found: list[Input] = []
    taken: set[str] = set()
    for place in places:
        for path, name in _in_folder(place, out) if place.is_dir() else [(place, _case_id(place))]:
            unique, number = name, 1
            # On Windows and macOS, names that differ only in case are one file.
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


def open_input(path: Path, modalities: Sequence[str]) -> Opened:
    """Open one file. Raises `DataError`, which begins with the path.

    modalities: the DICOM modalities that the model is meant for; empty for any.
    """
    with explained(path):
        if path.stat().st_size == 0:
            raise DataError("is empty (0 bytes): copy or export it again")
        if is_dicom(path):
            return dicom_input.open_dicom(path, modalities)
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            from knowmine.client.predict import nifti_input  # late: nibabel takes half a second

            return nifti_input.open_nifti(path)
        image = read_image(path)
        return Opened(1, lambda index: image, None, ())


def count_frames(path: Path) -> int:
    """The number of frames or slices in the header; 1 if it cannot be read.

    `open_input` reports the error.
    """
    with suppress(DataError), explained(path):
        if is_dicom(path):
            return dicom_input.count_frames(path)
        if path.name.lower().endswith(NIFTI_SUFFIXES):
            from knowmine.client.predict import nifti_input

            return nifti_input.count_slices(path)
    return 1


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn any error inside into a `DataError` that begins with the path.

    Warnings are suppressed, because those of pydicom and nibabel quote values from the file.
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
    # As in client/data/images.py, decoders raise all kinds of errors on bad bytes. Their text is left
    # out, because it may quote a tag that names the patient.
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
            files.append((path, (inner.parent / _case_id(path)).as_posix()))
    return files


def _case_id(path: Path) -> str:
    for suffix in reversed(NIFTI_SUFFIXES):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return case_id_of(path)
