"""Read an image or a mask as the person who made it saw it, or say what is wrong with the file.

Frames: the original frame is the image as shown, (H, W) after EXIF rotation; the model frame is
the image warped to a square of `px` pixels.

Files come from outside: the header's size is checked before a pixel is decoded, few decoders
are tried, and whatever they trip over becomes a `DataError`.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.data import dicom
from knowmine.shared.errors import DataError

IMAGE_SUFFIXES = dicom.SUFFIXES | {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
"""What an image or mask file may end in, lower case; DICOM may also have no suffix at all."""

MAX_IMAGE_PX = 100_000_000
"""Pixels above which a file is taken for a decompression bomb rather than an image."""

# JPEG stands for MPO too, the JPEG of some telephones; its first picture is taken.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_ORIENTATION = 0x0112  # the EXIF tag

# A lossy or antialiased two-valued mask: how far from black or white, as a share of the
# brightest value, still counts as either, and how many pixels may lie between.
_NEAR = 0.25
_MAX_BETWEEN = 0.02
# More than two values, and the brightest no higher than any class number: a label map.
_MAX_CLASS = 32


def is_image_file(path: Path) -> bool:
    """Whether the name, or for unknown suffixes the DICOM mark inside, says image."""
    return path.suffix.lower() in IMAGE_SUFFIXES or dicom.is_dicom(path)


def stem_of(path: Path) -> str:
    """The name that pairs an image with its mask: without a known suffix, else whole.

    >>> stem_of(Path("polyp.01.PNG")), stem_of(Path("1.2.840.1"))
    ('polyp.01', '1.2.840.1')
    """
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def image_size(path: Path, *, max_image_px: int = MAX_IMAGE_PX) -> tuple[int, int]:
    """(H, W) of the image as shown, from the header alone.

    Raises `DataError`: no image, or more pixels than `max_image_px`.
    """
    with _explained(path):
        if dicom.is_dicom(path):
            size = dicom.image_size(path)
            refuse_huge(size, max_image_px)
            return size
        with _opened(path, max_image_px) as image:
            width, height = image.size
            return (width, height) if _orientation(image) >= 5 else (height, width)


def read_image(path: Path, *, max_image_px: int = MAX_IMAGE_PX) -> NDArray[np.uint8]:
    """The image as shown: (H, W, 3) uint8, original frame.

    Grey becomes three equal channels, alpha is dropped, deeper than 8 bits is scaled to 8 by the
    image's own range (DICOM: by its window). Raises `DataError`: unreadable, truncated, huge.
    """
    with _explained(path):
        if dicom.is_dicom(path):
            refuse_huge(dicom.image_size(path), max_image_px)
            return dicom.read_image(path)
        with _opened(path, max_image_px) as image:
            return np.ascontiguousarray(_upright(_rgb(image), _orientation(image)))


def read_mask(path: Path, classes: int, *, max_image_px: int = MAX_IMAGE_PX) -> NDArray[np.uint8]:
    """The mask as shown: (H, W) uint8 in 0..classes, original frame; 0 is background.

    One class: any two-valued mask will do (0/1, 0/255, 0/128), lossy or antialiased ones are cut
    at half of their brightest value. More classes: each value is a class. Raises `DataError`:
    unreadable, truncated, huge, or values that mean nothing.
    """
    with _explained(path):
        if dicom.is_dicom(path):
            refuse_huge(dicom.image_size(path), max_image_px)
            values = dicom.read_stored(path)
        else:
            with _opened(path, max_image_px) as image:
                values = _upright(_stored(image, classes), _orientation(image))
        mask = _two_valued(values) if classes == 1 else _label_map(values, classes)
    return np.ascontiguousarray(mask)


def resize_image(image: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Warp (H, W, 3) uint8 to (px, px, 3), antialiased: original frame to model frame."""
    return np.array(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Warp (H, W) uint8 to (px, px), nearest, so that no value appears that was not there."""
    return np.array(Image.fromarray(mask).resize((px, px), Image.Resampling.NEAREST))


def digest_of_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises `DataError` where it cannot be read."""
    with _explained(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong inside into a `DataError` that begins with the path."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: is larger than can be read ({error}); scale it down") from None
    # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more on bad
    # bytes, and new releases add to the list; one bad file must not end a run of a thousand.
    except Exception as error:
        reason = str(error).replace(str(path), path.name).replace("\n", " ")
        raise DataError(
            f"{path}: cannot be read ({reason or type(error).__name__}); it is damaged, cut short "
            "or not PNG, JPEG, TIFF, BMP or DICOM: export it again"
        ) from error


@contextmanager
def _opened(path: Path, max_image_px: int) -> Iterator[Image.Image]:
    with Image.open(path, formats=_FORMATS) as image:
        refuse_huge(image.size, max_image_px)
        if image.format == "TIFF" and (frames := getattr(image, "n_frames", 1)) > 1:
            raise DataError(f"has {frames} pages, expected one; export each page as a file")
        yield image


def refuse_huge(size: tuple[int, int], max_image_px: int) -> None:
    """Raise `DataError` for an image (H, W) of no pixel or of more than `max_image_px`."""
    if min(size) < 1:
        raise DataError(f"is {size[1]}x{size[0]} pixels, which is no image; export it again")
    if size[0] * size[1] > max_image_px:
        raise DataError(
            f"has {size[0] * size[1]} pixels, expected at most {max_image_px}; scale it down, or "
            "raise max_image_px if the file is to be trusted"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8, from the header."""
    # Pillow turns TIFFs by itself, size and pixels.
    if image.format == "TIFF":
        return 1
    # Image's getexif, because PngImageFile's decodes all pixels in search of a late chunk.
    value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn (H, W, ...) by the EXIF orientation (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode[0] in "IF":  # I, I;16, I;16B, F
        grey = dicom.to_8_bit(np.asarray(image))
        # TIFF's PhotometricInterpretation 0 is white-is-zero; Pillow heeds it up to 8 bits only.
        if image.format == "TIFF" and image.mode != "F" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]  # TiffImageFile has it
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    # To convert what is RGB already copies it, which takes as long as to decode a JPEG.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _stored(image: Image.Image, classes: int) -> NDArray[Any]:
    """The numbers that a mask file stores: (H, W), alpha dropped."""
    if image.mode == "P":
        # A palette of colours names classes, so the index counts. A grey one under a two-valued
        # mask is how PNG optimisers store 0/255, and they may give white the index 0.
        shown = np.asarray(image.convert("RGB"))
        grey = classes == 1 and not np.ptp(shown, axis=2).any()
        return shown[..., 0] if grey else np.asarray(image)
    if image.mode == "1" or image.mode[0] in "IF":
        return np.asarray(image) * 1  # bool to number
    if image.mode in ("LA", "RGBA"):
        *colour_ranges, alpha_range = (np.ptp(np.asarray(channel)) for channel in image.split())
        if alpha_range and not any(colour_ranges):
            raise DataError("has its shapes in the alpha channel; save it as 8-bit grey without")
    if image.mode == "L":
        return np.asarray(image)
    colours = np.asarray(image.convert("RGB"))
    brightest: NDArray[Any] = colours.max(axis=2)
    if classes > 1 and np.ptp(colours, axis=2).any():
        raise DataError(
            "is a colour picture, expected one channel of class numbers; save it as 8-bit grey"
        )
    return brightest


def _two_valued(values: NDArray[Any]) -> NDArray[np.uint8]:
    found = _distinct(values)
    low, high = float(found[0]), float(found[-1])
    if not np.isfinite([low, high]).all() or low < 0:
        raise DataError(f"holds {_listed(found)}, expected a mask of 0 and one positive value")
    if found.size == 1 or (found.size == 2 and low == 0):
        return (values > 0).astype(np.uint8)

    if high <= _MAX_CLASS:
        raise DataError(
            f"holds {_listed(found)}, expected 0 and one positive value; if these are classes, "
            f"set model.classes to {high:g} or more"
        )
    near = _NEAR * high
    between = float(((values > near) & (values < high - near)).mean())
    if between > _MAX_BETWEEN:
        raise DataError(
            f"holds {_listed(found)}, {between:.0%} of its pixels half-way, expected 0 and one "
            "positive value; threshold it, and see that it is the mask and not the image"
        )
    return (values > high / 2).astype(np.uint8)


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """As np.unique, and ten times as fast for the two values that a mask has as a rule."""
    ends = np.array([values.min(), values.max()])
    if ((values == ends[0]) | (values == ends[1])).all():
        return np.unique(ends)
    return np.unique(values)


def _label_map(values: NDArray[Any], classes: int) -> NDArray[np.uint8]:
    found = np.unique(values)
    wrong = found[~np.isin(found, np.arange(classes + 1))]
    if wrong.size:
        raise DataError(
            f"holds {_listed(wrong)}, expected 0 to {classes}; renumber the mask or set "
            "model.classes"
        )
    return values.astype(np.uint8)


def _listed(values: NDArray[Any]) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:5])
    return f"{values.size} values ({shown}, ...)" if values.size > 5 else f"the values {shown}"
