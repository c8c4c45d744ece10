"""Open a NIfTI file as slices, as a viewer shows axial ones; one slice is in memory at a time."""

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
from knowmine.client.predict.types import Opened
from knowmine.shared.errors import DataError

MAX_VOXELS = 1_000_000_000
_BLOCK = 1 << 20  # voxels or bytes that are read at once
_MM = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}


def open_nifti(path: Path) -> Opened:
    """Slices along the third axis of the volume in RAS+ order; the patient's right is on the left.

    Values of more than 8 bits are scaled by the range of the whole volume, so that slices can be
    compared. A compressed file is unpacked into an unnamed temporary file, which the system deletes
    when the program ends. Raises `DataError`.
    """
    # 1. It is a volume of numbers.
    image: Any = nibabel.load(path)
    shape = _shape_of(image)
    stored = image.dataobj
    if stored.dtype.kind not in "iuf":
        raise DataError(
            f"is a NIfTI of {stored.dtype}, expected one real number per voxel; export it as PNG"
        )
    if not 0 < math.prod(shape) <= MAX_VOXELS or min(shape) < 1:
        raise DataError(f"has {shape} voxels, expected at most {MAX_VOXELS} in all")
    # 2. Its slices, in RAS+ order, are not too large.
    turn = _turn_of(image)
    width, height, depth = _turned_shape(shape, turn)
    refuse_huge((height, width))
    # 3. It holds as many voxels as its header declares.
    numbers = _mapped(path, stored, math.prod(shape))

    slope, intercept = float(stored.slope), float(stored.inter)
    plain = numbers.dtype == np.uint8 and (slope, intercept) == (1, 0)
    first, last = (0.0, 255.0) if plain else _range_of(numbers)
    darkest, brightest = (first, last) if slope >= 0 else (last, first)
    turned: NDArray[Any] = apply_orientation(  # type: ignore[no-untyped-call]  # nibabel types few
        numbers.reshape(shape, order="F"), turn
    )

    def read(index: int) -> NDArray[np.uint8]:
        # In RAS+, x grows to the patient's right and y to the front; a viewer mirrors both.
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
    """The number of slices, from the header."""
    image: Any = nibabel.load(path)
    return _turned_shape(_shape_of(image), _turn_of(image))[2]


def _shape_of(image: Any) -> tuple[int, int, int]:
    """(X, Y, Z) as stored. Raises `DataError` if it is not a single volume."""
    shape = [int(n) for n in image.shape]
    if len(shape) < 2 or any(n != 1 for n in shape[3:]):
        raise DataError(
            f"is a NIfTI of shape {tuple(shape)}, expected two or three dimensions: split a time "
            "series into volumes"
        )
    x, y, z = (*shape, 1)[:3]
    return x, y, z


def _turn_of(image: Any) -> NDArray[Any]:
    """For each stored axis, the axis of RAS+ that it is, and its direction."""
    turn: NDArray[Any] = io_orientation(image.affine)  # type: ignore[no-untyped-call]  # as above
    if np.isnan(turn).any():
        raise DataError("is a NIfTI whose axes do not span space: its affine is wrong; correct it")
    return turn


def _turned_shape(shape: tuple[int, int, int], turn: NDArray[Any]) -> tuple[int, int, int]:
    x, y, z = (shape[stored] for stored in np.argsort(turn[:, 0]))
    return x, y, z


def _mapped(path: Path, stored: Any, count: int) -> NDArray[Any]:
    """All voxels in the order of the file, memory-mapped."""
    needed = int(stored.offset) + count * stored.dtype.itemsize
    packed = path.suffix.lower() == ".gz"
    with tempfile.TemporaryFile() if packed else path.open("rb") as file:
        if packed:
            _unpack(path, file, needed)
        size = file.seek(0, 2)
        if size < needed:
            raise DataError(
                f"declares {count} voxels, which need {needed} bytes, and has {size}: it is "
                "damaged, cut short or its header is wrong; export it again"
            )
        return np.memmap(file, stored.dtype, "r", int(stored.offset), (count,))


def _unpack(path: Path, file: IO[bytes], needed: int) -> None:
    """Unpack only as much as the header declares, because the file may be a bomb."""
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
    """The lowest and highest finite value."""
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
