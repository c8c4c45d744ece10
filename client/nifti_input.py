"""Open a NIfTI file as slices, the way a viewer shows axial ones."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import FileBasedImage
from numpy.typing import NDArray

from knowmine.client.inputs import Opened
from knowmine.shared.dicom import to_8_bit
from knowmine.shared.errors import DataError
from knowmine.shared.images import refuse_huge

MAX_VOXELS = 1_000_000_000
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


def open_nifti(path: Path, max_image_px: int) -> Opened:
    """Slices along the third axis of the volume in RAS+ order, patient's right on the left.

    Values deeper than 8 bits are scaled by the range of the whole volume, so that slices compare.
    """
    image: Any = nibabel.load(path)
    shape = [int(n) for n in image.shape]
    if (len(shape) > 3 and max(shape[3:]) > 1) or not 2 <= len(shape) <= 4:
        raise DataError(
            f"is a NIfTI of shape {tuple(shape)}, expected two or three dimensions: split a time "
            "series into volumes"
        )
    if image.get_data_dtype().fields:
        raise DataError("is a NIfTI of colours, expected one number a voxel; export it as PNG")
    while len(shape) < 3:
        shape.append(1)
    refuse_huge((shape[0], shape[1]), max_image_px)
    if not 0 < np.prod(shape[:3], dtype=np.int64) <= MAX_VOXELS:
        raise DataError(f"has {tuple(shape)} voxels, expected at most {MAX_VOXELS} in all")

    volume, spacing = _canonical(image, shape[:3])

    def read(index: int) -> NDArray[np.uint8]:
        # RAS+: x grows to the patient's right, y to the front; a viewer mirrors both.
        return np.repeat(np.ascontiguousarray(volume[::-1, ::-1, index].T)[..., None], 3, axis=2)

    return Opened(volume.shape[2], read, spacing, ())


def _canonical(
    image: FileBasedImage, shape: list[int]
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The volume in RAS+ order as (X, Y, Z) uint8, and a slice pixel's height and width in mm."""
    data: NDArray[Any] = np.asanyarray(image.dataobj).reshape(shape)  # type: ignore[attr-defined]  # of every spatial image
    volume: Any = nibabel.Nifti1Image(  # type: ignore[no-untyped-call]  # nibabel types few
        data if data.dtype == np.uint8 else to_8_bit(data),
        image.affine,  # type: ignore[attr-defined]  # of every spatial image
    )
    turned: Any = nibabel.as_closest_canonical(volume)  # type: ignore[no-untyped-call]  # as above
    unit = _MM.get(image.header.get_xyzt_units()[0], 1.0)  # type: ignore[attr-defined]  # NIfTI's
    width, height = (float(zoom) * unit for zoom in turned.header.get_zooms()[:2])
    return np.asarray(turned.dataobj, np.uint8), (height, width)
