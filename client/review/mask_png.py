"""Masks and images as PNG, as the page sends and receives them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.shared.errors import UsageError


def png_of(pixels: NDArray[Any]) -> bytes:
    """An image (h, w, 3) uint8, or a mask (h, w) bool, as PNG; True becomes 255."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def checked_mask(png: bytes, size: tuple[int, int]) -> bytes:
    """A mask from the page as PNG of 0 and 255.

    Raises `UsageError` if it cannot be read or is not (h, w) = `size`.
    """
    height, width = size
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if image.size != (width, height):
                raise UsageError(
                    f"got a mask of {image.size[0]} x {image.size[1]} pixels for an image of "
                    f"{width} x {height}: load the page again"
                )
            drawn = np.asarray(image.convert("L")) > 127
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"the mask cannot be read ({error}): load the page again") from None
    return png_of(drawn)


def resized_mask(png: bytes, size: tuple[int, int]) -> bytes:
    """A mask's PNG at (h, w) = `size`, nearest."""
    height, width = size
    with Image.open(io.BytesIO(png)) as image:
        if image.size == (width, height):
            return png
        return png_of(np.asarray(image.resize((width, height), Image.Resampling.NEAREST)))
