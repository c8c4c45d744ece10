"""Read an image or a mask as a viewer shows it, or say what is wrong with the file.

Frames: the original frame is the image as shown, (H, W) after EXIF rotation. The model frame is
the image resized to a square of `px` pixels.

Files come from outside. The size in the header is checked before a pixel is decoded, only a few
decoders are tried, and any error that they raise becomes a `DataError`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.data import dicom
from knowmine.shared.errors import DataError
from knowmine.shared.files import sha256_of

IMAGE_SUFFIXES = dicom.SUFFIXES | {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
"""Suffixes of image and mask files, lower case; a DICOM file may also have none."""

MAX_IMAGE_PX = 100_000_000
"""A file with more pixels counts as a decompression bomb."""

# JPEG includes MPO, which some telephones write; its first picture is used.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_ORIENTATION = 0x0112  # the EXIF tag

# A lossy or antialiased two-valued mask: values this close to black or white, as a fraction of the
# brightest value, count as black or white; at most this fraction of the pixels may lie between.
_NEAR = 0.25
_MAX_BETWEEN = 0.02
# More than two values, none above this: the mask is a label map of several classes.
_MAX_CLASS = 32


def is_image_file(path: Path) -> bool:
    """Whether a file is an image, by its suffix or by the DICOM mark inside."""
    return path.suffix.lower() in IMAGE_SUFFIXES or dicom.is_dicom(path)


def case_id_of(path: Path) -> str:
    """The case id, which pairs an image with its mask: the file name without a known suffix.

    >>> case_id_of(Path("polyp.01.PNG")), case_id_of(Path("1.2.840.1"))
    ('polyp.01', '1.2.840.1')
    """
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def image_size(path: Path, *, max_image_px: int = MAX_IMAGE_PX) -> tuple[int, int]:
    """(H, W) of the image as shown, from the header.

    Raises `DataError` if it is not an image or has more than `max_image_px` pixels.
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

    Grey becomes three equal channels. Alpha is dropped. More than 8 bits are scaled to 8 by the
    image's own range (DICOM: by its window). Raises `DataError` if the file is unreadable,
    truncated or too large.
    """
    with _explained(path):
        if dicom.is_dicom(path):
            refuse_huge(dicom.image_size(path), max_image_px)
            return dicom.read_image(path)
        with _opened(path, max_image_px) as image:
            return np.ascontiguousarray(_upright(_rgb(image), _orientation(image)))


def read_mask(path: Path, classes: int, *, max_image_px: int = MAX_IMAGE_PX) -> NDArray[np.uint8]:
    """The mask as shown: (H, W) uint8 in 0..classes, original frame; 0 is background.

    One class: any two-valued mask is accepted (0/1, 0/255, 0/128); a lossy or antialiased one is
    cut at half of its brightest value. Several classes: each value is a class. Raises `DataError`
    if the file is unreadable, truncated or too large, or if its values are not classes.
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
    """Resize (H, W, 3) uint8, original frame, to (px, px, 3), model frame; antialiased."""
    return np.array(Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """Resize (H, W) uint8, original frame, to (px, px), model frame; nearest, so no new values."""
    return np.array(Image.fromarray(mask).resize((px, px), Image.Resampling.NEAREST))


def digest_of_file(path: Path) -> str:
    """SHA-256 of the file's bytes, in hexadecimal. Raises `DataError` if it cannot be read."""
    with _explained(path):
        return sha256_of(path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any error inside into a `DataError` that begins with the path."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: is too large to be read ({error}); scale it down") from None
    # On bad bytes, decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and
    # more, and new releases add others. One bad file must not end a run of a thousand.
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


def refuse_huge(size: tuple[int, int], max_image_px: int = MAX_IMAGE_PX) -> None:
    """Raise `DataError` for an image (H, W) with no pixels or with more than `max_image_px`."""
    if min(size) < 1:
        raise DataError(f"is {size[1]}x{size[0]} pixels, which is not an image; export it again")
    if size[0] * size[1] > max_image_px:
        raise DataError(
            f"has {size[0] * size[1]} pixels, expected at most {max_image_px}; scale it down, or "
            "raise max_image_px if you trust the file"
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8, from the header."""
    # Pillow rotates TIFFs itself, size and pixels.
    if image.format == "TIFF":
        return 1
    # Image.getexif, because PngImageFile.getexif decodes all pixels to find a late chunk.
    value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rotate and mirror (H, W, ...) by the EXIF orientation (EXIF 2.32, tag 0x0112)."""
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
        # TIFF's PhotometricInterpretation 0 is white-is-zero; Pillow applies it only up to 8 bits.
        if image.format == "TIFF" and image.mode != "F" and image.tag_v2.get(262) == 0:  # type: ignore[attr-defined]  # TiffImageFile has it
            grey = 255 - grey
        return np.repeat(grey[..., None], 3, axis=2)
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")
    # Converting RGB to RGB makes a copy, which takes as long as decoding a JPEG.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _stored(image: Image.Image, classes: int) -> NDArray[Any]:
    """The numbers stored in a mask file: (H, W), alpha dropped."""
    if image.mode == "P":
        # The index into a palette of colours is the class. PNG optimisers store a two-valued mask
        # 0/255 with a grey palette, in which white may have index 0, so there the grey value counts.
        shown = np.asarray(image.convert("RGB"))
        grey = classes == 1 and not np.ptp(shown, axis=2).any()
        return shown[..., 0] if grey else np.asarray(image)
    if image.mode == "1" or image.mode[0] in "IF":
        return np.asarray(image) * 1  # bool to number
    if image.mode in ("LA", "RGBA"):
        *colour_ranges, alpha_range = (np.ptp(np.asarray(channel)) for channel in image.split())
        if alpha_range and not any(colour_ranges):
            raise DataError(
                "has its shapes in the alpha channel; save it as 8-bit grey without alpha"
            )
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
            f"holds {_listed(found)}, {between:.0%} of its pixels in between, expected 0 and one "
            "positive value; threshold it, and check that it is the mask and not the image"
        )
    return (values > high / 2).astype(np.uint8)


def _distinct(values: NDArray[Any]) -> NDArray[Any]:
    """np.unique, ten times as fast for the usual mask with two values."""
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
