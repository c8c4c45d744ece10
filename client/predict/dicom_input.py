"""Open a DICOM file of one or many frames as a viewer shows them.

client/data/dicom.py reads the single images that training uses. Predicting also needs what is
here: the window of each frame, the size of a pixel, and which files are not images. No tag that
could name a person is read, and no such value reaches a message.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from knowmine.client.data.dicom import frames_of, read_dataset, show
from knowmine.client.data.images import refuse_huge
from knowmine.client.predict.types import Opened, Spacing
from knowmine.shared.errors import DataError

# DICOM objects of these modalities are plans, reports or masks, even if they have pixels.
_NOT_IMAGES = frozenset(
    [
        "SEG",
        "RTSTRUCT",
        "RTPLAN",
        "RTDOSE",
        "RTRECORD",
        "SR",
        "PR",
        "KO",
        "REG",
        "DOC",
        "PLAN",
        "FID",
        "ECG",
        "HD",
        "AU",
        "STAIN",
    ]
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_CENTIMETRES = 3  # PS3.3, C.8.5.5.1.15
_FRAME_GROUPS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
)


def open_dicom(path: Path, modalities: Sequence[str]) -> Opened:
    """Open a file after the numbered checks below. Raises `DataError`.

    modalities: those that the model is meant for; empty for any.
    """
    # 1. It is an image, of a modality that the model is meant for.
    header = read_dataset(path, header_only=True)
    modality = str(header.get("Modality", ""))[:16]
    if modality in _NOT_IMAGES or "Rows" not in header or "Columns" not in header:
        raise DataError(
            f"is a DICOM file of modality {modality or 'unknown'} without an image to segment; "
            "remove it"
        )
    if modalities and modality not in modalities:
        raise DataError(
            f"has modality {modality or 'unknown'}, expected {' or '.join(modalities)}: the model "
            "is not meant for it"
        )
    # 2. It can be decoded in memory, and the file is as long as its header says.
    refuse_huge((int(header.Rows), int(header.Columns)))
    frames = frames_of(header)
    _refuse_short(header, frames, path.stat().st_size)
    # 3. A decoder for its compression is installed.
    _refuse_undecodable(header)

    def read(index: int) -> Any:
        # Reading by path keeps only one frame of a long recording in memory.
        return show(pixel_array(path, index=index), _values_of_frame(header, index))

    spacing, how = spacing_mm(_values_of_frame(header, 0))
    notes = [how] if how else []
    if str(header.get("SOPClassUID", "")).startswith(_SECONDARY_CAPTURE):
        notes.append("secondary capture: a screenshot or scan, check what it shows")
    if header.get("BurnedInAnnotation") == "YES":
        notes.append("burned-in text: the overlay may name the patient")
    return Opened(frames, read, spacing, tuple(notes), header=header)


def spacing_mm(header: Dataset) -> tuple[Spacing | None, str]:
    """Height and width of a pixel in mm, and a note on their meaning; None if not known."""
    for keyword, note in (
        ("PixelSpacing", ""),
        ("ImagerPixelSpacing", "mm at the detector, larger than in the body"),
        ("NominalScannedPixelSpacing", "mm of the scanned film"),
    ):
        try:
            height, width = (float(value) for value in header.get(keyword) or ())
        except (TypeError, ValueError):
            continue
        if height > 0 and width > 0:
            return (height, width), note
    regions = header.get("SequenceOfUltrasoundRegions") or []
    deltas = {
        (abs(float(r.PhysicalDeltaY)) * 10, abs(float(r.PhysicalDeltaX)) * 10)
        for r in regions
        if r.get("PhysicalUnitsXDirection") == r.get("PhysicalUnitsYDirection") == _CENTIMETRES
    }
    if len(deltas) == 1 == len(regions) and min(*deltas) > (0, 0):
        return deltas.pop(), ""
    return None, ""


def count_frames(path: Path) -> int:
    """The number of frames, from the header."""
    return frames_of(read_dataset(path, header_only=True, tags=("NumberOfFrames",)))


def _refuse_short(header: Dataset, frames: int, file_bytes: int) -> None:
    """Raise `DataError` if uncompressed pixels need more bytes than the file has."""
    if header.file_meta.TransferSyntaxUID.is_compressed:
        return
    values = frames * int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel)
    if values * int(header.BitsAllocated) // 8 > file_bytes:
        raise DataError(
            f"declares {frames} frames of {header.Columns}x{header.Rows} pixels, more than its "
            f"{file_bytes} bytes can hold: it is damaged, cut short or its header is wrong; copy or "
            "export it again"
        )


def _refuse_undecodable(header: Dataset) -> None:
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise DataError(
            f"is compressed as {syntax.name}, which no installed decoder can read: install pylibjpeg "
            "with its plugins or python-gdcm, or export it uncompressed (Explicit VR Little Endian)"
        )


def _values_of_frame(dataset: Dataset, index: int) -> Dataset:
    """The header with the values that a multi-frame object has for this frame (PS3.3, C.7.6.16)."""
    groups = [
        *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1],
    ]
    if not groups:
        return dataset
    values = Dataset()
    for element in dataset.group_dataset(0x0028):
        values[element.tag] = element
    for group in groups:
        for name in _FRAME_GROUPS:
            for element in (group.get(name) or [Dataset()])[0]:
                values[element.tag] = element
    return values
