"""Inspect each image of a folder: its size, hash, burned-in text, tags and thumbnail."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom import dcmread

from knowmine.client.data import dicom
from knowmine.client.data.dataset import SiteData
from knowmine.client.data.folder import Case
from knowmine.client.data.images import read_image, read_mask
from knowmine.shared.errors import DataError

INSPECTED = 2000
"""Most images that are decoded; from a larger folder they are chosen evenly."""
COARSE_PX = 512
"""Approximate long side of the copy that thumbnail and hash are made from; all pixels take longer."""
SHEET_COLUMNS, SHEET_ROWS, THUMB_PX = 8, 6, 128
IDENTIFYING = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "InstitutionName")


@dataclass(frozen=True)
class Inspected:
    """What is known of one image.

    hash: 64-bit difference hash; near-duplicates differ in few bits. text: it may have burned-in
    text. identifying: its DICOM tags name a patient. foreground: fraction of the mask; None without
    a mask. thumb: (128, 128, 3).
    """

    case_id: str
    size: tuple[int, int]
    hash: int
    text: bool
    identifying: bool
    foreground: float | None
    thumb: NDArray[np.uint8]


def inspect_images(data: SiteData, classes: int, max_image_px: int) -> list[Inspected]:
    """Decode and inspect the images; of very many, an even choice."""
    cases = [*data.labelled, *data.calibration, *data.unlabelled, *data.test]
    chosen = cases[:: max(1, len(cases) // INSPECTED)]

    def inspected(case: Case) -> Inspected | None:
        try:
            return _inspect(case, classes, max_image_px)
        except DataError:
            return None  # `open_site` reports it as left out

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [found for found in pool.map(inspected, chosen) if found]


def contact_sheet(images: Sequence[Inspected]) -> Image.Image:
    """A grid of thumbnails, chosen evenly; those with possible text come first and have a frame."""
    count = SHEET_COLUMNS * SHEET_ROWS
    chosen = [image for image in images if image.text][: count // 2]
    chosen += [image for image in images[:: max(1, len(images) // count)] if not image.text]
    chosen = chosen[:count]
    rows = max(1, -(-len(chosen) // SHEET_COLUMNS))
    sheet = Image.new("RGB", (SHEET_COLUMNS * THUMB_PX, rows * THUMB_PX), "#202124")
    draw = ImageDraw.Draw(sheet)
    for place, image in enumerate(chosen):
        left, top = place % SHEET_COLUMNS * THUMB_PX, place // SHEET_COLUMNS * THUMB_PX
        sheet.paste(Image.fromarray(image.thumb), (left, top))
        if image.text:
            box = (left, top, left + THUMB_PX - 1, top + THUMB_PX - 1)
            draw.rectangle(box, outline="#f9ab00", width=3)
    return sheet


def has_text(grey: NDArray[np.uint8]) -> bool:
    """Whether a part of an image (H, W) looks like a line of computer text.

    Text has two values and many vertical edges. In a window as high as a line, more than an eighth
    of all neighbouring pixels differ strongly, and nearly all pixels are close to one of two values.
    """
    height, width = 16, 64
    left, right = grey[:, :-1], grey[:, 1:]
    jumps = np.maximum(left, right) - np.minimum(left, right) > 80
    rows, columns = grey.shape[0] // height, (grey.shape[1] - 1) // width
    if not rows or not columns:
        return False
    cut = jumps[: rows * height, : columns * width].view(np.uint8)
    # Summing bytes along the rows first is ten times as fast as a mean of bools over two axes.
    upright = cut.reshape(rows, height, columns * width).sum(1, dtype=np.uint8)
    density = upright.reshape(rows, columns, width).sum(2) / (height * width)
    for row, column in zip(*np.nonzero(density > 0.125), strict=True):
        window = grey[row * height : (row + 1) * height, column * width : (column + 1) * width]
        counts = np.bincount(window.ravel() >> 4, minlength=16)
        dark, bright = counts[:8], counts[8:]
        if dark.max() + bright.max() > 0.8 * counts.sum() and bright.max() > 0.05 * counts.sum():
            return True
    return False


def _inspect(case: Case, classes: int, max_image_px: int) -> Inspected:
    image = read_image(case.image, max_image_px=max_image_px)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    step = max(1, max(grey.shape) // COARSE_PX)
    small = Image.fromarray(image[::step, ::step])
    thumb = small.copy()
    thumb.thumbnail((THUMB_PX, THUMB_PX))
    tile = Image.new("RGB", (THUMB_PX, THUMB_PX))
    tile.paste(thumb, ((THUMB_PX - thumb.width) // 2, (THUMB_PX - thumb.height) // 2))
    tiny = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    bits = np.packbits((tiny[:, 1:] > tiny[:, :-1]).ravel())
    foreground = None
    if case.mask is not None:
        mask = read_mask(case.mask, classes, max_image_px=max_image_px)
        foreground = float((mask > 0).mean())
    return Inspected(
        case_id=case.case_id,
        size=(image.shape[0], image.shape[1]),
        hash=int.from_bytes(bits.tobytes()),
        text=has_text(grey),
        identifying=dicom.is_dicom(case.image) and _identifies(case.image),
        foreground=foreground,
        thumb=np.asarray(tile),
    )


def _identifies(path: Path) -> bool:
    header = dcmread(path, stop_before_pixels=True, specific_tags=list(IDENTIFYING))
    return any(str(header.get(tag) or "").strip() for tag in IDENTIFYING)
