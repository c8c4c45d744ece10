"""Write masks as a DICOM Segmentation, which a PACS shows on the source image.

The standard requires patient and study of the source in a segmentation, so the file is as
confidential as the image. Nothing else that predict writes contains a tag's value.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.sr.codedict import codes

from knowmine.shared.errors import DataError
from knowmine.shared.model_card import ModelCard

# The meaning of the classes is not known here, so these are the most general codes of PS3.16, CID
# 7150 and 7161. The label has the name of the class.
_CATEGORY = CodedConcept("309825002", "SCT", "Spatial and Relational Concept")
_TYPE = CodedConcept("111030", "DCM", "Image Region")

# Type 2 of the patient and study modules (PS3.3, C.7.1.1 and C.7.2.1): required, may be empty.
_MAY_BE_EMPTY = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


MAX_SEG_PX = 200_000_000
"""Most pixels of one Segmentation over all frames and classes; it is built in memory."""


def refusal(source: Dataset, frames: int, classes: int) -> str:
    """Why a file cannot have a Segmentation, by its header; "" if it may have one."""
    if frames > 1 and not _has_positions(source):
        return "no DICOM SEG: its header lacks positions in space for its frames"
    if (pixels := frames * classes * int(source.Rows) * int(source.Columns)) > MAX_SEG_PX:
        return (
            f"no DICOM SEG: its {frames} frames have {pixels} pixels in total, expected at most "
            f"{MAX_SEG_PX}; split it"
        )
    return ""


def write_seg(
    file: Path, source: Dataset, masks: Sequence[NDArray[np.uint8]], card: ModelCard
) -> None:
    """Write the masks of a file's frames, (H, W) uint8 each, as a binary Segmentation.

    source: header of the DICOM file. Call `refusal` first. Raises `DataError` if the header lacks
    what the standard requires of a source.
    """
    stack = np.stack(masks)
    classes = range(1, card.plan.model.classes + 1)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=card.name, family=codes.DCM.ArtificialIntelligence, version=card.weights_sha256[:16]
    )
    segments = [
        SegmentDescription(
            segment_number=value,
            segment_label=card.class_names[value - 1][:64],
            segmented_property_category=_CATEGORY,
            segmented_property_type=_TYPE,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for value in classes
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings quote the header's values
            segmentation = Segmentation(
                source_images=[_completed(source)],
                pixel_array=np.stack([stack == value for value in classes], axis=-1),
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=highdicom.UID(),
                series_number=900,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="knowmine",
                manufacturer_model_name=card.name[:64],
                software_versions=card.versions.get("knowmine (export)", "unknown"),
                device_serial_number=card.weights_sha256[:16],
                content_label="MASK",
                content_description="Made by a model; not reviewed",
                series_description="knowmine masks",
            )
            segmentation.save_as(file)
    except OSError:  # a full disk is not the header's fault
        raise
    # highdicom and pydicom raise all kinds of errors for a bad header, and their text may quote it.
    except Exception as error:
        lacks = getattr(error, "name", None) or "something that the standard requires"
        raise DataError(f"no DICOM SEG: its header lacks {lacks}") from error


def _completed(source: Dataset) -> Dataset:
    """The header with empty values for missing attributes that may be empty."""
    complete = Dataset()
    complete.file_meta = source.file_meta
    complete.update(source)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in complete:
            setattr(complete, keyword, None)
    return complete


def _has_positions(source: Dataset) -> bool:
    """Whether the frames have positions in space: each its own, a common one, or tiles of a slide."""
    groups = [
        *(source.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(source.get("PerFrameFunctionalGroupsSequence") or [])[:1],
    ]
    placed = any("PlanePositionSequence" in group for group in groups)
    return placed or "TotalPixelMatrixRows" in source
