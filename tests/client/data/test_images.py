"""Images and masks are read as shown, and bad files are refused by name and reason."""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from knowmine.client.data.images import (
    case_id_of,
    digest_of_file,
    image_size,
    is_image_file,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)
from knowmine.shared.errors import DataError

GRADIENT = np.arange(6 * 10, dtype=np.uint8).reshape(6, 10) * 4
COLOURS = np.stack([GRADIENT, GRADIENT[::-1], 255 - GRADIENT], axis=2)
LESION = np.zeros((6, 10), np.uint8)
LESION[1:4, 2:5] = 1


def saved(folder: Path, pixels: np.ndarray, name: str = "x.png", **options) -> Path:
    path = folder / name
    Image.fromarray(pixels).save(path, **options)
    return path


def saved_dicom(folder: Path, pixels: np.ndarray, name: str = "x.dcm", **tags: Any) -> Path:
    """A secondary capture image with `pixels` (H, W) or (H, W, 3) as they are."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = tags.pop("syntax", ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    path = folder / name
    dataset.save_as(path, enforce_file_format=True)
    return path


def png_of_size(folder: Path, width: int, height: int) -> Path:
    """A PNG whose header promises a size, and that holds no pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    )
    path = folder / "huge.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    )
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "PNG"])
def test_lossless_colour_comes_back_as_it_was(tmp_path, suffix):
    """What was saved is what is read."""
    assert (read_image(saved(tmp_path, COLOURS, f"x.{suffix}")) == COLOURS).all()


def test_jpeg_comes_back_nearly(tmp_path):
    """A flat colour survives JPEG within two grey levels."""
    flat = np.full((16, 24, 3), (200, 90, 60), np.uint8)
    read = read_image(saved(tmp_path, flat, "x.jpg")).astype(int)
    assert abs(read - flat).max() <= 2


def test_grey_becomes_three_equal_channels(tmp_path):
    """As a colour network wants it."""
    assert (read_image(saved(tmp_path, GRADIENT)) == GRADIENT[..., None]).all()


def test_alpha_is_dropped(tmp_path):
    """Transparent pixels keep their colour."""
    alpha = np.dstack([COLOURS, np.zeros_like(GRADIENT)])
    assert (read_image(saved(tmp_path, alpha)) == COLOURS).all()


def test_a_palette_shows_its_colours(tmp_path):
    """A paletted image is read by colour, not by index."""
    picture = Image.fromarray(LESION).convert("P")
    picture.putpalette([0, 0, 0, 250, 10, 20])
    picture.save(tmp_path / "x.png")
    assert tuple(read_image(tmp_path / "x.png")[2, 3]) == (250, 10, 20)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_by_their_range(tmp_path, suffix):
    """A 12-bit picture in a 16-bit file is not black."""
    deep = np.array([[100, 2100, 4100]], np.uint16)
    read = read_image(saved(tmp_path, deep, f"x.{suffix}"))
    assert read[0, :, 0].tolist() == [0, 128, 255]


def test_floats_are_scaled_and_holes_are_black(tmp_path):
    """NaN is no number to scale by."""
    floats = np.array([[np.nan, -1.0, 0.0, 1.0]], np.float32)
    assert read_image(saved(tmp_path, floats, "x.tif"))[0, :, 0].tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_rotation_is_applied(tmp_path, orientation, suffix):
    """All eight orientations, as Pillow's own transposition shows them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, COLOURS, f"x.{suffix}", exif=exif.tobytes())
    with Image.open(path) as image:
        shown = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_image(path), shown)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_the_headers_size_is_that_of_the_image_as_shown(tmp_path, orientation, suffix):
    """Turned by a quarter, height and width change places in both."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, COLOURS, f"x.{suffix}", exif=exif.tobytes())
    assert image_size(path) == read_image(path).shape[:2]


def test_exif_turns_a_mask_too(tmp_path):
    """Orientation 6 is a quarter to the right."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, LESION * 255, exif=exif.tobytes())
    assert (read_mask(path, 1) == np.rot90(LESION, -1)).all()


def test_dicom_shows_its_window(tmp_path):
    """Rescaled by slope and intercept, then cut to centre 40, width 101 (PS3.3, C.11.2.1.2.1)."""
    stored = np.array([[0, 1014, 1064, 1114, 2000]], np.int16)
    tags: Any = {
        "RescaleIntercept": -1024,
        "RescaleSlope": 1,
        "WindowCenter": 40,
        "WindowWidth": 101,
    }
    read = read_image(saved_dicom(tmp_path, stored, **tags))
    assert read[0, :, 0].tolist() == [0, 1, 129, 255, 255]


def test_an_empty_window_is_none(tmp_path):
    """Some scanners write the tags and leave them empty: the image's range is shown."""
    read = read_image(saved_dicom(tmp_path, GRADIENT, WindowCenter=None, WindowWidth=""))
    assert (read.min(), read.max()) == (0, 255)


def test_dicom_monochrome1_is_inverted(tmp_path):
    """There, low numbers are white."""
    path = saved_dicom(tmp_path, GRADIENT, PhotometricInterpretation="MONOCHROME1")
    read = read_image(path)[..., 0]
    assert (read[0, 0], read[-1, -1]) == (255, 0)


def test_dicom_colour_comes_back_as_it_was(tmp_path):
    """Eight-bit RGB needs no window."""
    assert (read_image(saved_dicom(tmp_path, COLOURS)) == COLOURS).all()


def test_a_dicom_mask_keeps_its_numbers(tmp_path):
    """Neither window nor inversion touches class numbers."""
    classes = np.array([[0, 1], [2, 2]], np.uint8)
    path = saved_dicom(tmp_path, classes, WindowCenter=1, WindowWidth=1)
    assert (read_mask(path, 2) == classes).all()


def test_dicom_is_known_without_a_suffix(tmp_path):
    """Archives name files by UID; the mark at byte 128 tells."""
    path = saved_dicom(tmp_path, GRADIENT, "1.2.840.77")
    assert is_image_file(path) and case_id_of(path) == "1.2.840.77"


@pytest.mark.parametrize(("name", "case_id"), [("scan.IMA", "scan"), ("MR.head.x", "MR.head.x")])
def test_dicom_is_known_by_a_makers_name(tmp_path, name, case_id):
    """`.IMA` is a suffix, so a mask scan.png pairs with it; others are known by the mark inside."""
    path = saved_dicom(tmp_path, GRADIENT, name)
    assert is_image_file(path) and case_id_of(path) == case_id
    assert read_image(path).shape[:2] == GRADIENT.shape[:2]


@pytest.mark.parametrize("name", ["DICOMDIR", "table.csv"])
def test_not_all_that_bears_the_mark_is_an_image(tmp_path, name):
    """A medium's table of contents does, and names that say otherwise are not even opened."""
    assert not is_image_file(saved_dicom(tmp_path, GRADIENT, name))


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"NumberOfFrames": -1}, "declares -1 frames, expected 1 to 10000"),
        ({"NumberOfFrames": 2}, "2 frames, expected one"),
        ({"syntax": DeflatedExplicitVRLittleEndian}, "deflated"),
        ({"Rows": 60_000, "Columns": 60_000}, "3600000000 pixels, expected at most"),
        ({"PixelData": b"12"}, "cannot be read"),
        ({"Rows": 0}, "10x0 pixels, which is not an image"),
    ],
)
def test_dicom_that_cannot_be_read_says_why(tmp_path, tags, says):
    """Several frames, hidden size, huge, cut short."""
    with pytest.raises(DataError, match=says):
        read_image(saved_dicom(tmp_path, GRADIENT, **tags))


@pytest.mark.parametrize(
    "read", [read_image, image_size, lambda path, **px: read_mask(path, 1, **px)]
)
def test_a_bomb_is_refused_by_its_header(tmp_path, read):
    """3.6 billion pixels are refused before memory is asked for them."""
    with pytest.raises(DataError, match=r"3600000000 pixels.*scale it down"):
        read(png_of_size(tmp_path, 60_000, 60_000))


def test_the_pixel_limit_can_be_set(tmp_path):
    """60 pixels are too many where 59 are allowed."""
    with pytest.raises(DataError, match="60 pixels, expected at most 59"):
        read_image(saved(tmp_path, COLOURS), max_image_px=59)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.9])
def test_a_truncated_image_is_refused(tmp_path, suffix, kept):
    """Whatever part is missing, nobody gets half an image."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    path = saved(tmp_path, noise, f"x.{suffix}")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(DataError, match=r"cannot be read .*export it again"):
        read_image(path)


@pytest.mark.parametrize("name", ["x.png", "x.dcm"])
def test_garbage_is_refused_with_its_path(tmp_path, name):
    """The message begins with the file that it is about."""
    (tmp_path / name).write_bytes(b"no image at all")
    with pytest.raises(DataError, match=rf"^{tmp_path / name}: .*cannot be read"):
        read_image(tmp_path / name)


def test_formats_off_the_list_are_refused(tmp_path):
    """A GIF stays closed even when it calls itself PNG."""
    Image.fromarray(GRADIENT).save(tmp_path / "x.png", format="GIF")
    with pytest.raises(DataError, match="not PNG, JPEG"):
        read_image(tmp_path / "x.png")


def test_a_missing_file_is_called_missing(tmp_path):
    """Not damaged."""
    with pytest.raises(DataError, match="there is no such file"):
        read_image(tmp_path / "x.png")


def test_a_tiff_of_several_pages_is_refused(tmp_path):
    """Which page would it be?"""
    pages = [Image.fromarray(GRADIENT)] * 3
    pages[0].save(tmp_path / "x.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match="3 pages, expected one"):
        read_image(tmp_path / "x.tif")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(place=st.integers(0, 400), value=st.integers(0, 255), suffix=st.sampled_from(["png", "tif"]))
def test_a_changed_byte_never_surprises(tmp_path, place, value, suffix):
    """A damaged file is an image of the same kind or a DataError, never another exception."""
    content = bytearray(saved(tmp_path, COLOURS, f"x.{suffix}").read_bytes())
    content[place % len(content)] = value
    (tmp_path / f"y.{suffix}").write_bytes(content)
    try:
        image = read_image(tmp_path / f"y.{suffix}", max_image_px=10_000)
    except DataError:
        return
    assert image.dtype == np.uint8 and image.ndim == 3


@pytest.mark.parametrize(
    "pixels",
    [LESION, LESION * 255, LESION * 128, LESION.astype(bool), LESION.astype(np.uint16) * 65535],
    ids=["0/1", "0/255", "0/128", "1-bit", "16-bit"],
)
def test_any_two_valued_mask_is_zeros_and_ones(tmp_path, pixels):
    """The positive value does not matter."""
    assert (read_mask(saved(tmp_path, pixels), 1) == LESION).all()


@pytest.mark.parametrize(
    "pixels",
    [np.repeat(LESION[..., None] * 255, 3, 2), LESION[..., None] * np.array([255, 0, 0], np.uint8)],
    ids=["three equal channels", "red on black"],
)
def test_a_mask_in_colour_counts_where_it_is_not_black(tmp_path, pixels):
    """One class may be drawn in any colour."""
    assert (read_mask(saved(tmp_path, pixels), 1) == LESION).all()


def test_a_jpeg_mask_is_thresholded(tmp_path):
    """Ringing around a lesion is neither a class nor an error."""
    lesion = np.zeros((64, 64), np.uint8)
    lesion[16:48, 16:48] = 1
    assert (read_mask(saved(tmp_path, lesion * 255, "x.jpg", quality=60), 1) == lesion).all()


def test_an_inverted_palette_is_read_by_its_greys(tmp_path):
    """PNG optimisers may store white as index 0."""
    picture = Image.fromarray(1 - LESION).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(tmp_path / "x.png")
    assert (read_mask(tmp_path / "x.png", 1) == LESION).all()


@pytest.mark.parametrize("fill", [0, 255])
def test_a_mask_of_one_value_is_all_or_nothing(tmp_path, fill):
    """All empty and all full masks are legal."""
    path = saved(tmp_path, np.full((4, 5), fill, np.uint8))
    assert (read_mask(path, 1) == (fill > 0)).all()


@pytest.mark.parametrize("channels", [2, 4])
def test_a_mask_drawn_in_alpha_is_refused(tmp_path, channels):
    """With alpha dropped it would pass for an image without a lesion."""
    pixels = np.zeros((6, 10, channels), np.uint8)
    pixels[..., -1] = LESION * 255
    with pytest.raises(DataError, match="in the alpha channel"):
        read_mask(saved(tmp_path, pixels), 1)


def test_alpha_around_a_mask_does_not_matter(tmp_path):
    """Shapes drawn in colour are read whatever their alpha."""
    alpha = np.arange(60, dtype=np.uint8).reshape(6, 10)
    assert (read_mask(saved(tmp_path, np.dstack([LESION * 255, alpha])), 1) == LESION).all()


def test_a_picture_is_no_mask(tmp_path):
    """More than 2 % of the pixels lie between black and white."""
    with pytest.raises(DataError, match=r"60 values .*expected 0 and one positive value"):
        read_mask(saved(tmp_path, GRADIENT), 1)


def test_a_label_map_is_no_mask_of_one_class(tmp_path):
    """Even where the classes are small, 1 and 2 are not cut at their half."""
    labels = np.zeros((40, 40), np.uint8)
    labels[0, :3] = 1, 2, 2
    with pytest.raises(DataError, match=r"the values 0, 1, 2, .*set model.classes"):
        read_mask(saved(tmp_path, labels), 1)


@given(labels=arrays(np.uint8, (4, 5), elements=st.integers(0, 3)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
def test_classes_are_read_by_value(tmp_path, labels):
    """Each value stays what it is."""
    assert (read_mask(saved(tmp_path, labels), 3) == labels).all()


def test_palette_indices_are_classes(tmp_path):
    """The colours of a label map are for the eye."""
    picture = Image.fromarray(LESION * 2).convert("P")
    picture.putpalette([0, 0, 0, 9, 9, 9, 200, 0, 0])
    picture.save(tmp_path / "x.png")
    assert (read_mask(tmp_path / "x.png", 2) == LESION * 2).all()


def test_an_unknown_class_is_named(tmp_path):
    """7 is not among two classes."""
    with pytest.raises(DataError, match="the values 7, expected 0 to 2"):
        read_mask(saved(tmp_path, LESION * 7), 2)


def test_colours_are_no_classes(tmp_path):
    """Which colour would be class 1?"""
    with pytest.raises(DataError, match="colour picture, expected one channel"):
        read_mask(saved(tmp_path, COLOURS), 2)


def test_resizing_an_image_averages(tmp_path):
    """A fine chequerboard becomes grey, not noise."""
    board = np.indices((64, 96)).sum(0) % 2 * np.uint8(255)
    small = resize_image(np.repeat(board[..., None], 3, 2).astype(np.uint8), 8)
    assert small.shape == (8, 8, 3) and abs(small.astype(int) - 127).max() < 12


@given(arrays(np.uint8, (5, 9), elements=st.sampled_from([0, 1, 7])), st.integers(1, 20))
def test_resizing_a_mask_invents_no_value(mask, px):
    """Nearest: nothing appears between two classes."""
    assert set(np.unique(resize_mask(mask, px))) <= set(np.unique(mask))


def test_the_digest_is_of_the_files_bytes(tmp_path):
    """So that other tools can check it."""
    path = saved(tmp_path, COLOURS)
    assert digest_of_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
