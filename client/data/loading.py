"""Decode a site's images once into the model frame, and name those that cannot be read."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from knowmine.client.data.folder import Case
from knowmine.client.data.images import (
    MAX_IMAGE_PX,
    digest_of_file,
    image_size,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from knowmine.shared.errors import DataError

T = TypeVar("T")

# Each thread holds one image in its original size.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Loaded:
    """The images that could be read; rows in the order of `cases`.

    images: (N, px, px, 3) uint8, model frame. masks: (N, px, px) uint8, model frame, or None.
    digests: SHA-256 of each image file. sizes: (N, 2) int64, H and W of the original frame.
    left_out: "case id: reason" of each case that is missing. warnings: about the set as a whole.
    """

    cases: tuple[Case, ...]
    images: NDArray[np.uint8]
    masks: NDArray[np.uint8] | None
    digests: tuple[str, ...]
    sizes: NDArray[np.int64]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def load_images(
    cases: Sequence[Case],
    px: int,
    max_image_px: int = MAX_IMAGE_PX,
    *,
    classes: int | None = None,
) -> Loaded:
    """Decode the images of `cases`; leave out those that cannot be read.

    With `classes`, the masks are read too, and a case is kept only if both can be read. Each thread
    holds one original at a time, so the memory needed is little more than the result.
    """
    images = np.empty((len(cases), px, px, 3), np.uint8)
    masks = np.empty((len(cases) if classes else 0, px, px), np.uint8)
    sizes = np.zeros((len(cases), 2), np.int64)
    digests = [""] * len(cases)
    foreground = np.zeros(len(cases), bool)

    def load(row: int) -> str | None:
        case = cases[row]
        try:
            image = read_image(case.image, max_image_px=max_image_px)
            images[row], sizes[row] = resize_image(image, px), image.shape[:2]
            digests[row] = digest_of_file(case.image)
            if classes:
                mask = _mask_of(case, classes, image.shape[:2], max_image_px)
                masks[row], foreground[row] = resize_mask(mask, px), mask.any()
        except DataError as error:
            return reason_of(case, error)
        return None

    problems = _in_threads(load, len(cases))
    kept = [row for row, problem in enumerate(problems) if problem is None]
    warnings = []
    if classes and kept and not foreground[kept].any():
        warnings.append(
            f"all {len(kept)} masks are empty: only background can be learned from them"
        )
    complete = len(kept) == len(cases)
    return Loaded(
        cases=tuple(cases[row] for row in kept),
        images=images if complete else images[kept],
        masks=None if not classes else masks if complete else masks[kept],
        digests=tuple(digests[row] for row in kept),
        sizes=sizes[kept],
        left_out=tuple(problem for problem in problems if problem is not None),
        warnings=tuple(warnings),
    )


def header_problem(case: Case, max_image_px: int = MAX_IMAGE_PX) -> str | None:
    """Why the headers show that a case cannot be used, as "case id: reason"; None if they do not.

    Fast: no pixel is decoded. A hidden mask is not opened, because its path is not in the case.
    """
    try:
        size = image_size(case.image, max_image_px=max_image_px)
        if case.mask is not None:
            _refuse_other_size(case.mask, image_size(case.mask, max_image_px=max_image_px), size)
    except DataError as error:
        return reason_of(case, error)
    return None


def refuse_many_bad(
    site: str, left_out: Sequence[str], images: int, max_bad_fraction: float
) -> None:
    """Raise `DataError` if more than the fraction `max_bad_fraction` of `images` is left out."""
    if len(left_out) > max_bad_fraction * images:
        raise DataError(
            f"site '{site}': {len(left_out)} of {images} images ({len(left_out) / images:.0%}) "
            f"cannot be used, expected at most {max_bad_fraction:.0%} (max_bad_fraction):\n  "
            + "\n  ".join(left_out[:3])
            + ("\n  ..." if len(left_out) > 3 else "")
        )


def reason_of(case: Case, error: DataError) -> str:
    """The error as "case id: reason", without the path at its beginning."""
    text = str(error)
    for path, what in ((case.image, ""), (case.mask, "its mask ")):
        text = text.replace(f"{path}: ", what, 1) if text.startswith(f"{path}: ") else text
    return f"{case.case_id}: {text}"


def _mask_of(
    case: Case, classes: int, size: tuple[int, ...], max_image_px: int
) -> NDArray[np.uint8]:
    if case.mask is None:
        raise ValueError(f"case {case.case_id} has no mask to load; pass only labelled cases")
    mask = read_mask(case.mask, classes, max_image_px=max_image_px)
    _refuse_other_size(case.mask, mask.shape, size)
    return mask


def _refuse_other_size(path: Path, mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    if mask != image:
        raise DataError(
            f"{path}: is {mask[1]}x{mask[0]} pixels and its image {image[1]}x{image[0]} as shown; "
            "expected equal sizes, so export the mask again"
        )


def _in_threads(load: Callable[[int], T], count: int) -> list[T]:
    """`load` of 0..count-1, in order. An error or Ctrl-C cancels those that have not started."""
    pool = ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1))
    try:
        return list(pool.map(load, range(count)))
    finally:
        pool.shutdown(cancel_futures=True)
