"""Write masks as a DICOM Segmentation that a PACS takes and shows on its source image.

The standard has a segmentation carry the patient and study of its source, so this file is as
confidential as the image itself; nothing else that predict writes holds a tag's value.
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

# What is segmented is not known here, so the codes are the most general ones of PS3.16,
# CID 7150 and 7161; the class's name stands in the label.
_CATEGORY = CodedConcept("309825002", "SCT", "Spatial and Relational Concept")
_TYPE = CodedConcept("111030", "DCM", "Image Region")

# Type 2 of the patient and study modules (PS3.3, C.7.1.1 and C.7.2.1): there, but maybe empty.
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
"""Pixels over all frames and classes that one Segmentation holds; it is made whole in memory."""


def refusal(source: Dataset, frames: int, classes: int) -> str:
    """Why no Segmentation can be made of a file, by its header alone; "" where one may be."""
    if frames > 1 and not _has_positions(source):
        return "no DICOM SEG: its header lacks positions in space for its frames"
    if (pixels := frames * classes * int(source.Rows) * int(source.Columns)) > MAX_SEG_PX:
        return (
            f"no DICOM SEG: its {frames} frames have {pixels} pixels in all, expected at most "
            f"{MAX_SEG_PX}; split it"
        )
    return ""


def write_seg(
    file: Path, source: Dataset, masks: Sequence[NDArray[np.uint8]], card: ModelCard
) -> None:
    """Write the masks of a file's frames, (H, W) uint8 each, as a binary Segmentation.

    source: header of the DICOM file. Raises `DataError` for a header without what the standard
    requires of a source. Ask `refusal` first.
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
            warnings.simplefilter("ignore")  # they quote the header's values
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
    # highdicom and pydicom raise all kinds of errors for what a header lacks or has wrong, and
    # their words may quote it.
    except Exception as error:
        lacks = getattr(error, "name", None) or "something that the standard requires"
        raise DataError(f"no DICOM SEG: its header lacks {lacks}") from error


def _completed(source: Dataset) -> Dataset:
    """The header with those attributes empty that it lacks and the standard lets be empty."""
    complete = Dataset()
    complete.file_meta = source.file_meta
    complete.update(source)
    for keyword in _MAY_BE_EMPTY:
        if keyword not in complete:
            setattr(complete, keyword, None)
    return complete


def _has_positions(source: Dataset) -> bool:
    """By frame, for all of them, or as tiles of one slide."""
    groups = [
        *(source.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(source.get("PerFrameFunctionalGroupsSequence") or [])[:1],
    ]
    placed = any("PlanePositionSequence" in group for group in groups)
    return placed or "TotalPixelMatrixRows" in source
