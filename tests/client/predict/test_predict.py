"""A person's images become masks, areas and DICOM SEG; a bad file or model is said, not guessed."""

import csv
import gzip
import json
import shutil
import subprocess
import sys
import tracemalloc
from typing import Any

import highdicom
import nibabel
import numpy as np
import onnx
import pydicom
import pytest
from PIL import Image
from pydicom.uid import HTJ2KLossless

from knowmine.client.data.metrics import dice
from knowmine.client.predict.dicom_seg import refusal
from knowmine.client.predict.inputs import open_input
from knowmine.client.predict.predict import predict_files
from knowmine.server.release.release import export
from knowmine.shared.errors import DataError, PackageRefused, UsageError, WeightsError
from knowmine.shared.package import fingerprint_of, open_package, read_public_key, write_package
from tests.client.small_dicom import (
    ENHANCED_CT,
    PATIENT,
    US_MULTI_FRAME,
    disc,
    hounsfield,
    write_dicom,
)
from tests.conftest import make_key
from tests.deploy.small_runs import draw_data


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six PNGs of one disc each that the model has not seen more of than others."""
    return draw_data(tmp_path_factory.mktemp("pictures"), 6)


def rows_of(out):
    with (out / "areas.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def mask_of(out, name):
    return np.asarray(Image.open(out / "masks" / f"{name}.png")) > 0


def test_a_folder_becomes_masks_overlays_and_areas(onnx_export, pictures, tmp_path):
    """One of each a picture, at its own size, and the area is the mask's."""
    outcome = predict_files(onnx_export, [pictures / "images"], tmp_path / "out")

    assert outcome.images == 6 and outcome.exit_code == 0
    for row in rows_of(tmp_path / "out"):
        mask = mask_of(tmp_path / "out", row["mask"][len("masks/") : -len(".png")])
        assert mask.shape == (40, 48) and int(row["area_px"]) == mask.sum()
        assert row["class"] == "disc" and row["area_mm2"] == ""
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 6


def test_the_model_finds_what_it_learned(onnx_export, pictures, tmp_path):
    """The fixture is worth its claims: discs are found."""
    predict_files(onnx_export, [pictures / "images"], tmp_path / "out")
    scores = [
        dice(mask_of(tmp_path / "out", file.stem), np.asarray(Image.open(file)) > 0)
        for file in (pictures / "masks").iterdir()
    ]
    assert np.mean(scores) > 0.8


def test_pytorch_and_onnx_runtime_give_one_mask(onnx_export, finished_run, pictures, tmp_path):
    """Whichever format a site was given."""
    export(finished_run, "safetensors", tmp_path / "model")
    for model, out in ((tmp_path / "model", "a"), (onnx_export, "b")):
        predict_files(model, [pictures / "images"], tmp_path / out, unsigned=True)
    case_ids = [file.stem for file in (pictures / "images").iterdir()]
    ours, theirs = ([mask_of(tmp_path / out, case_id) for case_id in case_ids] for out in "ab")
    assert dice(np.stack(ours), np.stack(theirs)) > 0.999


# ── DICOM ──────────────────────────────────────────────────────────────────────────────────────


def predicted(model, file, tmp_path):
    outcome = predict_files(model, [file], tmp_path / "out")
    assert not outcome.failed
    return rows_of(tmp_path / "out")


def test_a_signed_ct_is_windowed_and_measured_in_mm2(onnx_export, tmp_path):
    """-500 to 100 HU by its window; each pixel is 0.5 x 0.4 mm."""
    file = write_dicom(
        tmp_path / "slice.dcm",
        hounsfield(),
        RescaleSlope=1,
        RescaleIntercept=0,
        WindowCenter=-200,
        WindowWidth=900,
        PixelSpacing=[0.5, 0.4],
    )
    (row,) = predicted(onnx_export, file, tmp_path)
    assert dice(mask_of(tmp_path / "out", "slice"), disc()) > 0.7
    assert float(row["area_mm2"]) == pytest.approx(int(row["area_px"]) * 0.2)


def test_monochrome1_is_the_same_picture(onnx_export, tmp_path):
    """White-is-zero with inverted numbers gives the very mask."""
    grey = np.where(disc(), 200, 60).astype(np.uint8)
    window: dict[str, Any] = {"WindowCenter": 128, "WindowWidth": 256}
    plain = write_dicom(tmp_path / "plain.dcm", grey, **window)
    inverted = write_dicom(
        tmp_path / "inverted.dcm", 255 - grey, PhotometricInterpretation="MONOCHROME1", **window
    )
    predict_files(onnx_export, [plain, inverted], tmp_path / "out")
    assert mask_of(tmp_path / "out", "plain").any()
    assert np.array_equal(mask_of(tmp_path / "out", "plain"), mask_of(tmp_path / "out", "inverted"))


def test_each_frame_of_a_loop_gets_its_mask(onnx_export, tmp_path):
    """Frames are numbered from 1; their line says that a loop in no space has no SEG."""
    frames = np.stack([np.where(disc(15, 15 + 8 * i), 200, 60) for i in range(3)]).astype(np.uint8)
    file = write_dicom(tmp_path / "loop.dcm", frames, US_MULTI_FRAME, "US")
    rows = predicted(onnx_export, file, tmp_path)
    assert all("lacks positions in space" in row["note"] for row in rows)
    assert [row["mask"] for row in rows] == [f"masks/loop-000{n}.png" for n in (1, 2, 3)]
    for index in range(3):
        assert (
            dice(mask_of(tmp_path / "out", f"loop-000{index + 1}"), disc(15, 15 + 8 * index)) > 0.6
        )


def test_the_dicom_seg_holds_the_mask_and_points_to_its_source(onnx_export, tmp_path):
    """Read back by highdicom: same pixels, same study, the class's name, made automatically."""
    file = write_dicom(tmp_path / "a.dcm", hounsfield(), PixelSpacing=[1, 1])
    predicted(onnx_export, file, tmp_path)
    source, seg = pydicom.dcmread(file), highdicom.seg.segread(tmp_path / "out/seg/a.dcm")

    (pixels,) = seg.get_pixels_by_source_instance([source.SOPInstanceUID])
    assert np.array_equal(pixels[..., 0] > 0, mask_of(tmp_path / "out", "a"))
    assert seg.StudyInstanceUID == source.StudyInstanceUID
    assert seg.get_segment_description(1).SegmentLabel == "disc"
    assert seg.get_segment_description(1).SegmentAlgorithmType == "AUTOMATIC"


def test_a_header_may_lack_what_may_be_empty(onnx_export, tmp_path):
    """An anonymised image without a birth date gets its SEG, with an empty one."""
    file = write_dicom(tmp_path / "a.dcm", hounsfield(), PixelSpacing=[1, 1])
    dataset = pydicom.dcmread(file)
    del dataset.PatientBirthDate, dataset.AccessionNumber
    dataset.save_as(file)
    predicted(onnx_export, file, tmp_path)
    assert pydicom.dcmread(tmp_path / "out/seg/a.dcm").PatientBirthDate == ""


def test_frames_in_space_share_one_seg(onnx_export, tmp_path):
    """A multi-frame CT of three positions: each frame's mask at its own frame."""
    item = pydicom.Dataset
    shared, frames = item(), []
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [item()], [item()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.4]
    shared.PixelMeasuresSequence[0].SliceThickness = 2
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for z in range(3):
        frame = item()
        frame.PlanePositionSequence = [item()]
        frame.PlanePositionSequence[0].ImagePositionPatient = [0, 0, 2 * z]
        frames.append(frame)
    pixels = np.stack([hounsfield()] * 3)
    file = write_dicom(
        tmp_path / "a.dcm",
        pixels,
        ENHANCED_CT,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=frames,
    )
    rows = predicted(onnx_export, file, tmp_path)
    seg = highdicom.seg.segread(tmp_path / "out/seg/a.dcm")
    source = pydicom.dcmread(file).SOPInstanceUID
    held = seg.get_pixels_by_source_frame(source, [1, 2, 3])
    assert [int(n) for n in held.sum((1, 2, 3))] == [int(row["area_px"]) for row in rows]
    assert float(rows[0]["area_mm2"]) == pytest.approx(int(rows[0]["area_px"]) * 0.2)


def test_an_empty_mask_still_has_a_seg(onnx_export, tmp_path):
    """Nothing found is an answer too."""
    file = write_dicom(tmp_path / "empty.dcm", np.zeros((40, 48), np.uint8), PixelSpacing=[1, 1])
    (row,) = predicted(onnx_export, file, tmp_path)
    assert row["area_px"] == "0" and (tmp_path / "out/seg/empty.dcm").is_file()


def test_no_tag_leaves_the_seg(onnx_export, tmp_path, capsys):
    """Names, numbers and dates of the patient are in no other file, no file name, no message."""
    write_dicom(tmp_path / "1.dcm", hounsfield(), PixelSpacing=[1, 1])
    bad = write_dicom(tmp_path / "2.dcm", hounsfield(), WindowCenter=1, WindowWidth=2)
    bad.write_bytes(bad.read_bytes()[:-500])
    outcome = predict_files(onnx_export, [tmp_path / "1.dcm", bad], tmp_path / "out")

    written = [path for path in (tmp_path / "out").rglob("*") if path.parent.name != "seg"]
    said = json.dumps(outcome.failed) + "".join(map(str, written)) + "".join(capsys.readouterr())
    content = b"".join(path.read_bytes() for path in written if path.is_file())
    for secret in ("Unmistakable", "4711", "19700101"):
        assert secret not in said and secret.encode() not in content
    assert pydicom.dcmread(tmp_path / "out/seg/1.dcm").PatientName == PATIENT


def enhanced(file):
    """Two frames that keep windows of their own, as Enhanced CT does."""
    item = pydicom.Dataset
    frames = []
    for centre in (0, 1000):
        frame, window = item(), item()
        window.WindowCenter, window.WindowWidth = centre, 100
        frame.FrameVOILUTSequence = [window]
        frames.append(frame)
    pixels = np.full((2, 40, 48), 500, np.int16)
    return write_dicom(file, pixels, PerFrameFunctionalGroupsSequence=frames)


def test_frames_keep_their_own_windows(tmp_path):
    """500 is above the first frame's window and below the second's."""
    opened = open_input(enhanced(tmp_path / "e.dcm"), ())
    assert (opened.read(0) == 255).all() and (opened.read(1) == 0).all()


def test_a_secondary_capture_is_noted(onnx_export, tmp_path):
    """It is segmented, and its line says what it is."""
    file = write_dicom(
        tmp_path / "c.dcm",
        np.where(disc(), 200, 60).astype(np.uint8),
        "1.2.840.10008.5.1.4.1.1.7",
        "OT",
    )
    (row,) = predict_rows_of_any(onnx_export, file, tmp_path)
    assert "secondary capture" in row["note"]


def predict_rows_of_any(model, file, tmp_path):
    predict_files(model, [file], tmp_path / "out")
    return [row for row in rows_of(tmp_path / "out") if not row["error"]]


def test_a_long_recording_is_read_frame_by_frame(tmp_path):
    """Two hundred frames of a quarter of a megabyte: never more than a few of them in memory."""
    frames = np.zeros((200, 512, 512), np.uint8)
    file = write_dicom(tmp_path / "loop.dcm", frames, US_MULTI_FRAME, "US")
    del frames
    tracemalloc.start()
    opened = open_input(file, ())
    assert all(opened.read(index).shape == (512, 512, 3) for index in range(opened.frames))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 10_000_000


def test_more_pixels_than_one_seg_holds_are_said(tmp_path):
    """A thousand frames in space, of 512 x 512."""
    header = pydicom.Dataset()
    header.Rows = header.Columns = 512
    frame = pydicom.Dataset()
    frame.PlanePositionSequence = [pydicom.Dataset()]
    header.PerFrameFunctionalGroupsSequence = [frame]
    assert "262144000 pixels in total, expected at most 200000000" in refusal(header, 1000, 1)


def test_progress_counts_pictures_and_not_files(onnx_export, pictures, tmp_path):
    """Three frames, two slices, one picture, one file that is none: seven, and all are passed."""
    (tmp_path / "in").mkdir()
    loop = np.zeros((3, 40, 48), np.uint8)
    write_dicom(tmp_path / "in" / "loop.dcm", loop, US_MULTI_FRAME, "US")
    volume = nibabel.Nifti1Image(np.zeros((8, 8, 2), np.uint8), np.eye(4))
    nibabel.save(volume, tmp_path / "in" / "volume.nii.gz")
    shutil.copy(pictures / "images" / "case-00.png", tmp_path / "in")
    (tmp_path / "in" / "none.png").write_text("none")
    counter = Counter()
    outcome = predict_files(onnx_export, [tmp_path / "in"], tmp_path / "out", progress=counter)
    assert (outcome.images, counter.total, counter.passed) == (6, 7, 7)


class Counter:
    """A progress display that counts."""

    total = passed = 0

    def start(self, step, total):
        self.total = total

    def advance(self, n=1):
        self.passed += n

    def done(self):
        pass


@pytest.mark.parametrize("name", ["scan.IMA", "scan.ima", "IM000001", "1.2.840.77", "MR.head.x"])
def test_dicom_is_known_by_what_it_is(onnx_export, tmp_path, name):
    """In a folder, whatever its name; a table of contents and a table of areas are passed over."""
    (tmp_path / "in").mkdir()
    write_dicom(tmp_path / "in" / name, hounsfield(), WindowCenter=0, WindowWidth=900)
    shutil.copy(tmp_path / "in" / name, tmp_path / "in" / "DICOMDIR")
    (tmp_path / "in" / "list.csv").write_text("stem")
    (tmp_path / "in" / "notes").write_text("no image")
    outcome = predict_files(onnx_export, [tmp_path / "in"], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["file"].endswith(name) and not outcome.failed


# ── NIfTI ──────────────────────────────────────────────────────────────────────────────────────


def test_nifti_slices_are_shown_as_a_viewer_shows_them(tmp_path):
    """RAS+: the patient's right front corner is at the top left."""
    volume = np.zeros((48, 40, 2), np.uint8)
    volume[47, 39, 1] = 200
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([0.4, 0.5, 3, 1])), tmp_path / "v.nii.gz")
    opened = open_input(tmp_path / "v.nii.gz", ())

    assert opened.frames == 2 and opened.spacing_mm == pytest.approx((0.5, 0.4))
    assert opened.read(1).shape == (40, 48, 3) and opened.read(1)[0, 0, 0] == 200


def test_a_turned_volume_is_turned_back(tmp_path):
    """The same volume stored left-to-right gives the same pictures."""
    volume = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    plain = nibabel.Nifti1Image(volume, np.eye(4))
    turned = nibabel.Nifti1Image(volume[::-1].copy(), np.diag([-1, 1, 1, 1]))
    for name, image in (("p", plain), ("t", turned)):
        nibabel.save(image, tmp_path / f"{name}.nii")
    p, t = (open_input(tmp_path / f"{name}.nii", ()) for name in "pt")
    assert all(np.array_equal(p.read(i), t.read(i)) for i in range(4))


def lying(file, shape, dtype=np.int16, affine=None):
    """A NIfTI header of `shape` with next to nothing behind it, gzipped by its name."""
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1), dtype), affine).header
    header.set_data_shape(shape)
    header.set_sform(np.eye(4) if affine is None else affine, 1)
    header["vox_offset"] = 352
    content = header.binaryblock + b"\0" * 100
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


@pytest.mark.parametrize("name", ["lie.nii", "lie.nii.gz"])
def test_a_volume_that_holds_less_than_it_declares(tmp_path, name):
    """Two gigabytes that are not there are asked of nobody."""
    file = lying(tmp_path / name, (1000, 1000, 1000))
    tracemalloc.start()
    with pytest.raises(DataError, match="declares 1000000000 voxels, which need 2000000352 bytes"):
        open_input(file, ())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20_000_000


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((32000, 32000, 32000), "expected at most 1000000000 in all"),
        ((8, 8, 0), "expected at most|no image"),
        ((-8, -8, 8), "expected at most|cannot be read"),
        ((8, 8, 8, 5), "split a time series"),
    ],
)
def test_a_volume_of_impossible_size(tmp_path, shape, words):
    """Too many, none, fewer than none, or several in one."""
    with pytest.raises(DataError, match=words):
        open_input(lying(tmp_path / "a.nii", shape), ())


def test_the_size_counts_as_the_slices_are_turned(tmp_path):
    """Stored as a thin stack of 2 x 11000, shown as slices of 11000 x 11000."""
    turned = np.eye(4)[[0, 2, 1, 3]]
    file = lying(tmp_path / "a.nii", (11000, 2, 11000), np.uint8, turned)
    with pytest.raises(DataError, match="has 121000000 pixels, expected at most 100000000"):
        open_input(file, ())


def test_a_gigavoxel_takes_no_more_memory_than_its_slices(tmp_path):
    """A sparse file of 1000 x 1000 x 1000; its slices across the stored order too."""
    file = lying(tmp_path / "a.nii", (1000, 1000, 1000), np.uint8)
    with file.open("r+b") as grown:
        grown.truncate(352 + 10**9)
    tracemalloc.start()
    opened = open_input(file, ())
    assert opened.frames == 1000 and not opened.read(999).any()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50_000_000


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
@pytest.mark.parametrize("slope", [2.0, -2.0])
def test_deep_values_are_scaled_by_the_whole_volume(tmp_path, suffix, slope):
    """-100 to 100, by slope and intercept; what is no number is as dark as the darkest."""
    stored = np.array([-50, 0, 50, np.nan], np.float32).reshape(1, 1, 4) / (slope / 2)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(slope, 10)
    nibabel.save(image, tmp_path / f"v.{suffix}")
    opened = open_input(tmp_path / f"v.{suffix}", ())
    assert [int(opened.read(index)[0, 0, 0]) for index in range(4)] == [0, 128, 255, 0]


# ── bad files ──────────────────────────────────────────────────────────────────────────────────


def undecodable(file):
    write_dicom(file, hounsfield())
    dataset = pydicom.dcmread(file)
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f" * 10])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file, enforce_file_format=True)


def truncated(file):
    write_dicom(file, hounsfield())
    file.write_bytes(file.read_bytes()[:-500])


def without_image(file):
    write_dicom(file, hounsfield(), modality="RTSTRUCT")


def of_no_size(file):
    write_dicom(file, np.zeros((0, 48), np.int16))


def of_frames(count):
    """A loop of two frames whose header says otherwise."""

    def write(file):
        loop = np.zeros((2, 40, 48), np.uint8)
        write_dicom(file, loop, US_MULTI_FRAME, "US", NumberOfFrames=1)
        text = str(count).encode()
        # In place, as damage does it: pydicom itself writes numbers alone. IS, two bytes.
        whole = file.read_bytes()
        tag = b"\x28\x00\x08\x00IS"
        before, _, after = whole.partition(tag)
        padded = text + b" " * (len(text) % 2)
        file.write_bytes(before + tag + len(padded).to_bytes(2, "little") + padded + after[4:])

    return write


def with_windows_of_no_kind(file):
    """Per-frame values that are no sequence."""
    write_dicom(file, np.zeros((2, 40, 48), np.uint8), US_MULTI_FRAME, "US")
    whole = pydicom.dcmread(file)
    whole.add_new(0x52009230, "LO", "frames")
    whole.save_as(file)


BAD = {
    "endless.dcm": (of_frames(2**31), "declares 2147483648 frames, expected 1 to 10000"),
    "minus.dcm": (of_frames(-1), "declares -1 frames, expected 1 to 10000"),
    "none.dcm": (of_frames(0), "declares 0 frames, expected 1 to 10000"),
    "words.dcm": (of_frames("many"), "a NumberOfFrames that is not a number"),
    "more.dcm": (of_frames(900), "declares 900 frames of 48x40 pixels, more than its"),
    "odd.dcm": (with_windows_of_no_kind, "cannot be read"),
    "syntax.dcm": (undecodable, "compressed as High-Throughput JPEG 2000.*no installed decoder"),
    "cut.dcm": (truncated, "damaged, cut short"),
    "plan.dcm": (without_image, "modality RTSTRUCT without an image"),
    "zero.dcm": (of_no_size, "is 48x0 pixels, which is not an image"),
    "empty.png": (lambda file: file.write_bytes(b""), "is empty"),
    "text.png": (lambda file: file.write_text("hello"), "damaged, cut short or not PNG"),
    "cut.nii": (lambda file: file.write_bytes(b"\0" * 100), "damaged, cut short"),
    "gone.png": (lambda file: None, "there is no such file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_costs_itself(onnx_export, pictures, tmp_path, name):
    """It is named with the reason; the good one after it has its mask; the exit code is 3."""
    make, words = BAD[name]
    make(tmp_path / name)
    good = pictures / "images" / "case-00.png"
    outcome = predict_files(onnx_export, [tmp_path / name, good], tmp_path / "out")

    bad, fine = rows_of(tmp_path / "out")
    assert outcome.exit_code == 3 and outcome.images == 1 and fine["mask"]
    with pytest.raises(DataError, match=words):
        raise DataError(bad["error"])


def test_a_modality_the_model_is_not_meant_for_is_refused(finished_run, tmp_path):
    """An ultrasound model does not segment CT."""
    export(finished_run, "safetensors", tmp_path / "model", modalities=["us"])
    file = write_dicom(tmp_path / "a.dcm", hounsfield())
    outcome = predict_files(tmp_path / "model", [file], tmp_path / "out", unsigned=True)
    assert "has modality CT, expected US" in outcome.failed[str(file)]


def test_equal_names_keep_results_apart(onnx_export, pictures, tmp_path):
    """Two files of one case id get two masks."""
    file = pictures / "images" / "case-00.png"
    Image.open(file).save(tmp_path / "CASE-00.bmp")
    predict_files(onnx_export, [file, tmp_path / "CASE-00.bmp"], tmp_path / "out")
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 2


def test_results_never_overwrite_others(onnx_export, pictures, tmp_path):
    """A folder with something in it is left alone."""
    (tmp_path / "areas.csv").write_text("mine")
    with pytest.raises(UsageError, match="is not empty: name a new folder"):
        predict_files(onnx_export, [pictures], tmp_path)


# ── bad models ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def model(onnx_export, tmp_path):
    """A copy of the signed model to spoil."""
    return shutil.copytree(onnx_export, tmp_path / "model")


def refused(model, pictures, tmp_path, **options):
    with pytest.raises((PackageRefused, WeightsError)) as caught:
        predict_files(model, [pictures], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_card_edited_after_signing_is_refused(model, pictures, tmp_path):
    """Even by a single figure, even without a key."""
    card = model / "model_card.json"
    card.write_text(card.read_text().replace('"rounds": 2', '"rounds": 9', 1))
    assert "model_card.json was changed after the export" in refused(model, pictures, tmp_path)


def test_a_card_edited_together_with_the_list_is_refused(model, pictures, tmp_path):
    """Digests can be made anew, the signature cannot."""
    signature = (model / "manifest.json.sig").read_bytes()
    card = open_package(model).card.model_copy(update={"rounds": 9})
    for name in ("manifest.json", "manifest.json.sig", "model_card.json"):
        (model / name).unlink()
    write_package(model, card, None)
    (model / "manifest.json.sig").write_bytes(signature)
    assert "was not signed by the enclosed key" in refused(model, pictures, tmp_path)


def test_another_key_is_refused(model, pictures, tmp_path):
    """The site asked for the coordinator's, and this is not it."""
    key = make_key(tmp_path / "other.pem").with_suffix(".pub")
    words = refused(model, pictures, tmp_path, public_key=key)
    assert "was not signed by the key" in words


def test_an_unsigned_model_is_refused_where_a_key_is_given(model, signing_key, pictures, tmp_path):
    """A stripped signature does not pass for none."""
    for name in ("manifest.json.sig", "signing_key.pub"):
        (model / name).unlink()
    words = refused(model, pictures, tmp_path, public_key=signing_key.with_suffix(".pub"))
    assert "is not signed" in words


@pytest.fixture
def unsigned(model):
    """The same model without its signature and key."""
    for name in ("manifest.json.sig", "signing_key.pub"):
        (model / name).unlink()
    return model


def command(*words):
    """`knowmine-client` as a person types it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from knowmine.client.cli import main; main()", *words],
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_unsigned_model_is_refused(unsigned, pictures, tmp_path):
    """Exit code 4, and what to do, where nobody said that it will do."""
    done = command("predict", unsigned, pictures / "images", "--out", tmp_path / "out")
    assert done.returncode == 4 and "or give --unsigned" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unsigned_model_will_do_where_a_person_says_so(unsigned, pictures, tmp_path):
    """With a warning."""
    words = ("predict", unsigned, pictures / "images", "--out", tmp_path / "out", "--unsigned")
    done = command(*words)
    assert done.returncode == 0 and "its origin is unknown" in done.stdout


def test_without_a_key_it_is_said_whose_signature_it_is(
    onnx_export, signing_key, pictures, tmp_path
):
    """The fingerprint that the coordinator can read out, and which file to pin."""
    done = command("predict", onnx_export, pictures / "images", "--out", tmp_path / "out")
    assert done.returncode == 0
    assert fingerprint_of(read_public_key(signing_key.with_suffix(".pub"))) in done.stdout
    assert "signing_key.pub elsewhere, and give it as --key" in done.stdout


def test_an_onnx_file_of_another_model_is_refused(model, pictures, tmp_path):
    """Right digests, wrong network: it takes and gives other shapes than the card says."""
    shape: list[str | int | None] = ["n", 1, 8, 8]
    port = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "other",
        [port("x", onnx.TensorProto.FLOAT, shape)],
        [port("y", onnx.TensorProto.FLOAT, shape)],
    )
    other = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10
    )
    card = open_package(model).card
    for name in ("manifest.json", "manifest.json.sig", "signing_key.pub"):
        (model / name).unlink()
    onnx.save(other, model / "model.onnx")
    write_package(model, card, None)
    words = refused(model, pictures, tmp_path, unsigned=True)
    assert "is not the model that its card describes: it takes x (N, 1, 8, 8)" in words


def test_a_list_cannot_reach_outside_its_folder(model, pictures, tmp_path):
    """Names in the list are the folder's own files."""
    content = json.loads((model / "manifest.json").read_text())
    content["files"]["../secret"] = "0" * 64
    (model / "manifest.json").write_text(json.dumps(content))
    for name in ("manifest.json.sig", "signing_key.pub"):
        (model / name).unlink()
    assert "lies outside the folder" in refused(model, pictures, tmp_path, unsigned=True)


def test_what_is_no_export_is_said(pictures, tmp_path):
    """A folder of pictures is no model."""
    assert "is not an exported model" in refused(pictures, pictures, tmp_path)


# ── the command ────────────────────────────────────────────────────────────────────────────────


def test_the_command_says_what_scripts_need(onnx_export, signing_key, pictures, tmp_path):
    """`--format json`, with the signature checked, and exit code 3 for a file that failed."""
    (tmp_path / "bad.png").write_bytes(b"")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from knowmine.client.cli import main; main()", "predict"),
            *(onnx_export, pictures / "images", tmp_path / "bad.png", "--out", tmp_path / "out"),
            *("--format", "json", "--key", signing_key.with_suffix(".pub")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    said = json.loads(done.stdout)
    assert done.returncode == 3 and said["images"] == 6 and said["trusted"]
    assert list(said["failed"]) == [str(tmp_path / "bad.png")]


def test_onnx_needs_no_pytorch(onnx_export, pictures, tmp_path):
    """PyTorch takes seconds to come; a hospital PC need not wait for it."""
    code = (
        "import sys; from pathlib import Path; from knowmine.client.predict.predict import predict_files\n"
        "predict_files(*map(Path, sys.argv[1:2]), [Path(sys.argv[2])], Path(sys.argv[3]))\n"
        "assert 'torch' not in sys.modules"
    )
    file = pictures / "images" / "case-00.png"
    done = subprocess.run(
        [sys.executable, "-c", code, onnx_export, file, tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
