"""DICOM files drawn in a test: a bright disc, a patient who must not leak, and odd encodings."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

PATIENT = "Unmistakable^Name"
CT = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
US_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"


def disc(row: int = 20, column: int = 24) -> np.ndarray:
    """(40, 48) bool: the disc that the small run learned to find."""
    rows, columns = np.mgrid[:40, :48]
    inside: np.ndarray = (rows - row) ** 2 + (columns - column) ** 2 < 80
    return inside


def write_dicom(
    file: Path, pixels: np.ndarray, sop_class: str = CT, modality: str = "CT", **tags: Any
) -> Path:
    """Write (H, W) or (F, H, W) integers as an uncompressed DICOM file with the given tags."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = FileDataset(str(file), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = UID(sop_class)
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
    dataset.FrameOfReferenceUID = generate_uid()
    dataset.PatientName, dataset.PatientID = PATIENT, "4711-SECRET"
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260101", "120000", "1"
    dataset.AccessionNumber, dataset.ReferringPhysicianName = "", ""
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = modality, 1, 1
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    else:
        dataset.ImagePositionPatient = [0, 0, 0]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.SliceThickness = 1
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for keyword, value in tags.items():
        setattr(dataset, keyword, value)
    dataset.save_as(file, enforce_file_format=True)
    return file


def hounsfield() -> np.ndarray:
    """A disc of +100 in -900, as stored by a scanner: signed 16 bit."""
    noise = np.random.default_rng(0).integers(-40, 40, (40, 48))
    return (np.where(disc(), 100, -500) + noise).astype(np.int16)
