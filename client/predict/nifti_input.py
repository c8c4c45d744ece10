"""Open a NIfTI file as slices, the way a viewer shows axial ones, with one slice in memory."""

import gzip
import math
import tempfile
from pathlib import Path
from typing import IO, Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from knowmine.client.data.dicom import stretch
from knowmine.client.data.images import refuse_huge
from knowmine.client.predict.inputs import Opened
from knowmine.shared.errors import DataError

MAX_VOXELS = 1_000_000_000
_BLOCK = 1 << 20  # voxels, or bytes, that are looked at together
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


def open_nifti(path: Path, max_image_px: int) -> Opened:
    """Slices along the third axis of the volume in RAS+ order, patient's right on the left.

    Values deeper than 8 bits are scaled by the range of the whole volume, so that slices compare.
    A compressed file is unpacked into a temporary file without a name, which ends with us.
    """
    # 1. It is a volume of numbers.
    image: Any = nibabel.load(path)
    shape = _shape_of(image)
    stored = image.dataobj
    if stored.dtype.kind not in "iuf":
        raise DataError(
            f"is a NIfTI of {stored.dtype}, expected one real number a voxel; export it as PNG"
        )
    if not 0 < math.prod(shape) <= MAX_VOXELS or min(shape) < 1:
        raise DataError(f"has {shape} voxels, expected at most {MAX_VOXELS} in all")
    # 2. Its slices, as they will be turned, have a size that can be shown.
    turn = _turn_of(image)
    width, height, depth = _turned_shape(shape, turn)
    refuse_huge((height, width), max_image_px)
    # 3. It holds as many voxels as it declares.
    numbers = _mapped(path, stored, math.prod(shape))

    slope, intercept = float(stored.slope), float(stored.inter)
    plain = numbers.dtype == np.uint8 and (slope, intercept) == (1, 0)
    first, last = (0.0, 255.0) if plain else _range_of(numbers)
    darkest, brightest = (first, last) if slope >= 0 else (last, first)
    turned: NDArray[Any] = apply_orientation(  # type: ignore[no-untyped-call]  # nibabel types few
        numbers.reshape(shape, order="F"), turn
    )

    def read(index: int) -> NDArray[np.uint8]:
        # RAS+: x grows to the patient's right, y to the front; a viewer mirrors both.
        values: NDArray[Any] = turned[::-1, ::-1, index].T
        if not plain:
            values = np.where(np.isfinite(values), values, darkest) * slope + intercept
            values = stretch(values, darkest * slope + intercept, brightest * slope + intercept)
        return np.repeat(np.ascontiguousarray(values)[..., None], 3, axis=2)

    affine = image.affine @ inv_ornt_aff(turn, shape)  # type: ignore[no-untyped-call]  # as above
    sizes = voxel_sizes(affine)  # type: ignore[no-untyped-call]  # as above
    unit = _MM.get(image.header.get_xyzt_units()[0], 1.0)
    return Opened(depth, read, (float(sizes[1]) * unit, float(sizes[0]) * unit), ())


def count_slices(path: Path) -> int:
    """From the header alone."""
    image: Any = nibabel.load(path)
    return _turned_shape(_shape_of(image), _turn_of(image))[2]


def _shape_of(image: Any) -> tuple[int, int, int]:
    """(X, Y, Z) as stored; raises `DataError` for what is no single volume."""
    shape = [int(n) for n in image.shape]
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise DataError(
            f"is a NIfTI of shape {tuple(shape)}, expected two or three dimensions: split a time "
            "series into volumes"
        )
    x, y, z = (*shape, 1)[:3]
    return x, y, z


def _turn_of(image: Any) -> NDArray[Any]:
    """For each stored axis, which one of RAS+ it is and in which sense."""
    turn: NDArray[Any] = io_orientation(image.affine)  # type: ignore[no-untyped-call]  # as above
    if np.isnan(turn).any():
        raise DataError("is a NIfTI whose axes do not span space: its affine is wrong; mend it")
    return turn


def _turned_shape(shape: tuple[int, int, int], turn: NDArray[Any]) -> tuple[int, int, int]:
    x, y, z = (shape[stored] for stored in np.argsort(turn[:, 0]))
    return x, y, z


def _mapped(path: Path, stored: Any, count: int) -> NDArray[Any]:
    """All voxels in the file's order, on disk until they are looked at."""
    needed = int(stored.offset) + count * stored.dtype.itemsize
    packed = path.suffix.lower() == ".gz"
    with tempfile.TemporaryFile() if packed else path.open("rb") as file:
        if packed:
            _unpack(path, file, needed)
        size = file.seek(0, 2)
        if size < needed:
            raise DataError(
                f"declares {count} voxels, which are {needed} bytes, and holds {size}: it is "
                "damaged, cut short or its header is wrong; export it again"
            )
        return np.memmap(file, stored.dtype, "r", int(stored.offset), (count,))


def _unpack(path: Path, file: IO[bytes], needed: int) -> None:
    """No more of it than the header declares: a bomb goes on for ever."""
    left = needed
    with gzip.open(path) as packed:
        while left > 0 and (block := packed.read(min(left, _BLOCK))):
            try:
                file.write(block)
                file.flush()
            except OSError as error:
                raise DataError(
                    f"needs {needed} bytes in {tempfile.gettempdir()} to be unpacked "
                    f"({error.strerror}): make room, or set TMPDIR to another folder"
                ) from None
            left -= len(block)


def _range_of(numbers: NDArray[Any]) -> tuple[float, float]:
    """The lowest and highest finite one."""
    low, high = math.inf, -math.inf
    for start in range(0, len(numbers), _BLOCK):
        block = numbers[start : start + _BLOCK]
        if block.dtype.kind == "f":
            block = block[np.isfinite(block)]
        if block.size:
            low, high = min(low, float(block.min())), max(high, float(block.max()))
    if low > high:
        raise DataError("holds no finite voxel; export it again")
    return low, high
