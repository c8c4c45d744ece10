"""The harness gives every method the same images, and shows none of them a hidden mask."""

import csv

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from benchmarks.quality.experiment import (
    HERE,
    Cell,
    Experiment,
    draw,
    prepared,
    read_experiment,
    site_data,
    split_of,
)
from benchmarks.quality.run import folders_of, run_cell
from knowmine.client.mining import miner
from knowmine.client.mining.quality import Selection
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.errors import DataError, UsageError
from knowmine.shared.weights import digest_of, load_weights
from tests.client.small_site import MODEL

FIELDS = {
    *("method", "encoder", "pretrained", "labels", "seed", "steps", "sites"),
    *("test_dice", "test_iou", "test_hd95", "site_of", "plan", "per_round"),
}


def experiment(**mining):
    """Two rounds of one step, two sites of eight phantoms each."""
    return Experiment.model_validate(
        {
            "divisions": [{"data": "phantoms", "sites": 2}],
            "labels": [0.5],
            "methods": ["supervised", "no-sam"],
            "variants": {"no-sam": {"sam": "never"}},
            "plan": {
                "model": MODEL,
                "training": {"steps": 1, "batch": 2},
                "mining": {"warmup_rounds": 1, "images": 2, **mining},
            },
            "run": {"rounds": 2},
        }
    )


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A data folder of sixteen phantom images."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_folder(folder, 16)
    return folder


@pytest.fixture(scope="module")
def split(phantoms):
    """Two sites, half of their images with labels."""
    return draw(experiment(), 0.5, 0, {"phantoms": phantoms})


def run(split, folder, home, method="supervised", **mining):
    cell = Cell(0.5, method, 0)
    return run_cell(experiment(**mining), cell, split, {"phantoms": folder}, home)


def comparable(result):
    """All of a result except how long it took."""
    rounds = [{k: v for k, v in r.items() if k != "seconds"} for r in result["per_round"]]
    return {**result, "per_round": rounds}


# ------------------------------------------------------------------------------ experiments


@pytest.mark.parametrize(
    "file", sorted((HERE / "experiments").glob("*.yaml")), ids=lambda f: f.stem
)
def test_every_experiment_file_is_valid(file):
    """Its settings exist, and it has something to run."""
    assert list(read_experiment(file.stem).cells())


def test_an_unknown_experiment_is_refused_with_those_there_are():
    """The message lists the names."""
    with pytest.raises(UsageError, match="there are: ablation"):
        read_experiment("kvasr")


def test_an_unknown_method_is_refused():
    """It is neither built in nor a variant."""
    with pytest.raises(ValidationError, match="neither in"):
        Experiment.model_validate({**experiment().model_dump(), "methods": ["magic"]})


def test_a_variant_changes_settings_that_exist():
    """A misspelt one would compare knowmine with itself."""
    with pytest.raises(ValidationError, match="magic"):
        Experiment.model_validate({**experiment().model_dump(), "variants": {"x": {"magic": 1}}})


def test_data_is_given_by_name():
    """Anything else is refused with what is expected."""
    with pytest.raises(UsageError, match="expected NAME=FOLDER"):
        folders_of(["kvasir-seg"])


def test_missing_data_is_named(tmp_path):
    """The message says which --data to add."""
    with pytest.raises(UsageError, match="--data phantoms=FOLDER"):
        prepared(experiment(), {}, tmp_path)


# ----------------------------------------------------------------------------------- splits


def test_a_split_is_drawn_once(phantoms, tmp_path):
    """All methods read the same file."""
    file = tmp_path / "50-0.json"
    first = split_of(experiment(), 0.5, 0, {"phantoms": phantoms}, file)
    assert split_of(experiment(), 0.1, 7, {}, file) == first


def test_the_split_has_the_fraction_of_labels_that_was_asked_for(phantoms):
    """Half of the images beside the test images, calibration images included."""
    sites = draw(experiment(), 0.5, 0, {"phantoms": phantoms}).values()
    for site in sites:
        labels = len(site["labelled"]) + len(site["calibration"])
        assert abs(labels - len(site["unlabelled"])) <= 1


def test_validation_images_take_the_place_of_test_images(phantoms):
    """They come from the unlabelled images; no test image takes part."""
    before = draw(experiment(), 0.5, 0, {"phantoms": phantoms})
    settings = experiment().model_dump()
    settings["divisions"][0]["validation"] = 2
    after = draw(Experiment.model_validate(settings), 0.5, 0, {"phantoms": phantoms})
    for name, site in after.items():
        assert len(site["test"]) == 2
        assert set(site["test"]) <= set(before[name]["unlabelled"])
        assert not set(site["test"]) & set(site["unlabelled"])


def test_a_division_may_select_images_and_their_masks(phantoms, tmp_path):
    """Only rows with the value in index.csv take part, with the masks of the named folder."""
    data = tmp_path / "data"
    make_folder(data, 4)
    (data / "masks").rename(data / "lesions")
    (data / "masks").mkdir()
    case_ids = sorted(file.stem for file in (data / "images").iterdir())
    with (data / "index.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["stem", "class"], *zip(case_ids, "abab", strict=True)])
    settings = experiment().model_dump()
    settings["divisions"] = [{"data": "phantoms", "masks": "lesions", "where": {"class": "a"}}]
    chosen = Experiment.model_validate(settings)
    links = prepared(chosen, {"phantoms": data}, tmp_path / "links")["phantoms"]
    for name in ("images", "masks"):
        assert sorted(file.stem for file in (links / name).iterdir()) == [case_ids[0], case_ids[2]]


def test_other_data_than_the_splits_is_refused(split, tmp_path):
    """The split's images must be there."""
    make_folder(tmp_path, 1)
    with pytest.raises(DataError, match="drawn from other data"):
        site_data("site-1", split["site-1"], {"phantoms": tmp_path}, "supervised")


def test_full_supervision_has_the_masks_that_others_lack(phantoms, split):
    """The same images, all of them labelled; the test set stays hidden."""
    data, hidden = site_data("site-1", split["site-1"], {"phantoms": phantoms}, "supervised-all")
    assert all(case.mask for case in data.labelled) and not data.unlabelled
    assert set(hidden.paths) == set(split["site-1"]["test"])


# ------------------------------------------------------------------------------------- runs


def everything(quality):
    """All pseudo-labels, each counting fully."""
    return Selection(np.ones(len(quality), bool), np.ones(len(quality), np.float32))


@pytest.mark.parametrize("method", ["supervised", "self-training", "paper", "knowmine"])
def test_hidden_masks_leave_no_trace_in_a_model(phantoms, split, tmp_path, monkeypatch, method):
    """Replaced by noise, those of test and unlabelled images give the same model bit for bit."""
    monkeypatch.setattr(miner, "select", everything)  # an untrained model's masks count as well
    spoilt = tmp_path / "spoilt"
    make_folder(spoilt, 16)
    rng = np.random.default_rng(0)
    hidden = {
        case_id
        for site in split.values()
        for kind in ("unlabelled", "test")
        for case_id in site[kind]
    }
    for case_id in sorted(hidden):
        file = spoilt / "masks" / f"{case_id}.png"
        with Image.open(file) as mask:
            shape = mask.size[::-1]
        Image.fromarray(rng.choice(np.array([0, 255], np.uint8), shape)).save(file)
    one = {"site-1": split["site-1"]}
    for name, folder in (("sound", phantoms), ("noise", spoilt)):
        result = run(one, folder, tmp_path / name, method, sam="always")
        assert bool(result["per_round"][-1]["mined"]["kept"]) == (method != "supervised")
    sound, noise = (
        load_weights(tmp_path / name / "model.safetensors") for name in ("sound", "noise")
    )
    assert digest_of(sound) == digest_of(noise)


def test_a_result_says_what_was_run(phantoms, split, tmp_path):
    """Each test image has a score and a site."""
    result = run(split, phantoms, tmp_path)
    tested = {case_id for site in split.values() for case_id in site["test"]}
    assert result.keys() >= FIELDS
    assert result["test_dice"].keys() == result["site_of"].keys() == tested


def test_a_finished_run_is_not_run_again(phantoms, split, tmp_path):
    """Started again, it gives the same from what is on disk."""
    first = run(split, phantoms, tmp_path)
    model = (tmp_path / "checkpoints").stat().st_mtime_ns
    assert comparable(run(split, phantoms, tmp_path)) == comparable(first)
    assert (tmp_path / "checkpoints").stat().st_mtime_ns == model


def test_a_run_with_other_settings_is_not_resumed(phantoms, split, tmp_path):
    """Half of it would be another experiment."""
    run(split, phantoms, tmp_path)
    with pytest.raises(UsageError, match="begun with other settings"):
        run(split, phantoms, tmp_path, images=3)


def test_sites_alone_are_tested_on_the_same_images(phantoms, split, tmp_path):
    """Each site has a model of its own."""
    result = run(split, phantoms, tmp_path, "alone")
    assert result["test_dice"].keys() == {s for site in split.values() for s in site["test"]}
    assert len(list(tmp_path.glob("*/model.safetensors"))) == len(split)


def test_the_oracle_learns_the_hidden_masks(phantoms, split, tmp_path):
    """With other masks in the place of the hidden ones its model is another."""
    flipped = tmp_path / "flipped"
    make_folder(flipped, 16)
    one = {"site-1": split["site-1"]}
    for case_id in split["site-1"]["unlabelled"]:
        file = flipped / "masks" / f"{case_id}.png"
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
    models = []
    for name, folder in (("true", phantoms), ("false", flipped)):
        assert run(one, folder, tmp_path / name, "oracle")["per_round"][-1]["mined"]["kept"]
        models.append(digest_of(load_weights(tmp_path / name / "model.safetensors")))
    assert models[0] != models[1]


def test_a_variant_is_knowmine_with_its_settings(phantoms, split, tmp_path):
    """Its result holds the plan that was run."""
    plan = run(split, phantoms, tmp_path, "no-sam")["plan"]
    assert plan["method"] == "knowmine" and plan["mining"]["sam"] == "never"
