"""The harness gives every method the same images, and shows none of them a hidden mask."""

import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

import knowmine.client.site.round as round_of_a_site
from benchmarks.quality import once
from benchmarks.quality.experiment import Experiment, pooled, site_data
from benchmarks.quality.make_splits import draw
from benchmarks.quality.run import folders_of, oracle, run_method
from benchmarks.quality.tables import interval, refuse_unlike, stages, table
from knowmine.client.site.round import improve, todays
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.errors import DataError, UsageError
from knowmine.shared.protocol import TrainTask
from knowmine.shared.weights import digest_of, load_weights
from tests.client.small_site import MODEL, small_site

FIELDS = {
    *("experiment", "method", "encoder", "pretrained", "labels", "seed", "steps", "sites"),
    *("test_dice", "site_of"),
}


def experiment(setting="federated", sites=2, **mining):
    """Two rounds of one step, two sites of eight phantoms each."""
    return Experiment.model_validate(
        {
            "divisions": [{"data": "phantoms", "sites": sites, "labelled": 0.5, "probe": 0.5}],
            "setting": setting,
            "labels": 0.5,
            "methods": ["supervised"],
            "variants": {
                "no-tuning": {"tune_steps": 0},
                "no-sharpening": {"sharpen": False},
                "no-false-alarms": {"false_alarms": 0},
            },
            "plan": {
                "model": MODEL,
                "training": {"steps": 1, "batch": 2},
                "mining": {
                    "warmup_rounds": 1,
                    "images": 2,
                    "tune_steps": 1,
                    "min_probe_images": 1,
                    **mining,
                },
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
    """As make_splits draws it."""
    return draw(experiment(), {"phantoms": phantoms}, seed=0)


def run(split, folder, home, method="supervised", setting="federated", **mining):
    its = experiment(setting, **mining)
    return run_method("small", its, split, {"phantoms": folder}, method, 0, home)


def comparable(result):
    """All of a result but how long it took."""
    rounds = [{k: v for k, v in r.items() if k != "seconds"} for r in result["per_round"]]
    return {**result, "seconds": 0, "per_round": rounds}


@pytest.mark.parametrize("method", ["supervised", "self-training", "paper", "knowmine"])
def test_hidden_masks_leave_no_trace_in_a_model(phantoms, split, tmp_path, method):
    """Replaced by noise, those of test and unlabelled images give the same model bit for bit."""
    spoilt = tmp_path / "spoilt"
    make_folder(spoilt, 16)
    rng = np.random.default_rng(0)
    hidden = {
        stem for site in split.values() for kind in ("unlabelled", "test") for stem in site[kind]
    }
    for stem in sorted(hidden):
        file = spoilt / "masks" / f"{stem}.png"
        with Image.open(file) as mask:
            shape = mask.size[::-1]
        Image.fromarray(rng.choice(np.array([0, 255], np.uint8), shape)).save(file)
    one = {"site-1": split["site-1"]}
    for name, folder in (("sound", phantoms), ("noise", spoilt)):
        result = run(one, folder, tmp_path / name, method)
        assert result["per_round"][-1]["mined"]["gate"] != "unjudged"
    sound, noise = (
        load_weights(tmp_path / name / "model.safetensors") for name in ("sound", "noise")
    )
    assert digest_of(sound) == digest_of(noise)


def test_a_result_says_what_was_run(phantoms, split, tmp_path):
    """Its fields are those that other tools read; each test image has a score and a site."""
    result = run(split, phantoms, tmp_path)
    tested = {stem for site in split.values() for stem in site["test"]}
    assert result.keys() >= FIELDS
    assert result["test_dice"].keys() == result["site_of"].keys() == tested


def test_a_finished_run_is_not_run_again(phantoms, split, tmp_path):
    """Started again, it gives the same from what is on disk."""
    first = run(split, phantoms, tmp_path)
    model = (tmp_path / "checkpoints").stat().st_mtime_ns
    assert comparable(run(split, phantoms, tmp_path)) == comparable(first)
    assert (tmp_path / "checkpoints").stat().st_mtime_ns == model


def test_a_run_of_other_settings_is_not_gone_on_with(phantoms, split, tmp_path):
    """Half of it would be of another experiment."""
    run(split, phantoms, tmp_path)
    with pytest.raises(UsageError, match="begun with other settings"):
        run(split, phantoms, tmp_path, images=3)


@pytest.mark.parametrize("setting", ["pooled", "local"])
def test_the_same_images_are_tested_in_every_setting(phantoms, split, tmp_path, setting):
    """All data in one place, or each site alone."""
    result = run(split, phantoms, tmp_path, setting=setting)
    assert result["test_dice"].keys() == {s for site in split.values() for s in site["test"]}


def test_full_supervision_has_the_masks_that_others_lack(phantoms, split):
    """The same images, all of them labelled; the test set stays hidden."""
    data, hidden = site_data("site-1", split["site-1"], {"phantoms": phantoms}, "supervised-all")
    assert all(case.mask for case in data.labelled) and not data.unlabelled
    assert set(hidden.paths) == set(split["site-1"]["test"])


def test_the_oracle_is_taught_the_truth(phantoms, tmp_path):
    """Its pseudo-labels are the masks that were hidden."""
    site = small_site(phantoms, tmp_path, labelled=4, probe_fraction=0.0)
    plan = experiment().plan
    examples, _ = oracle(site, TrainTask(2, 2, plan, {}))
    kind = todays(site.unlabelled, plan, 2, 2)
    truth = np.stack([site.scorer.truth(case.stem, MODEL.image_px) for case in kind.cases])
    assert np.array_equal(examples.targets[:, 0].numpy(), truth * 255)


def test_pooled_sites_keep_what_is_for_what(split):
    """A label stays a label, a test image a test image."""
    (one,) = pooled(split).values()
    assert one["test"] == sorted(stem for site in split.values() for stem in site["test"])


def test_an_experiment_may_share_sams_decoder(phantoms, split, tmp_path):
    """What one site has tuned passes egress and the server, and is in the checkpoint."""
    poor = split["site-2"]
    unlabelled = [*poor["unlabelled"], *poor["labelled"], *poor["probe"]]
    sites = {**split, "site-2": {**poor, "labelled": [], "probe": [], "unlabelled": unlabelled}}
    run(sites, phantoms, tmp_path, "knowmine", share_decoder=True)
    assert list(tmp_path.glob("checkpoints/*decoder*"))


def test_other_data_than_the_splits_is_refused(split, tmp_path):
    """The split's images must be there."""
    make_folder(tmp_path, 1)
    with pytest.raises(DataError, match="it is not the data that the split was drawn from"):
        site_data("site-1", split["site-1"], {"phantoms": tmp_path}, "supervised")


def test_data_is_given_by_name():
    """Anything else is refused with what is expected."""
    with pytest.raises(UsageError, match="expected NAME=FOLDER"):
        folders_of(["kvasir-seg"])


# -------------------------------------------------------------------------------- tables


def test_a_gain_that_is_the_same_everywhere_has_no_spread():
    """Every image gains .1."""
    base = {(0, str(i)): i / 10 for i in range(8)}
    assert interval({k: v + 0.1 for k, v in base.items()}, base) == pytest.approx((0.1,) * 3)


def test_only_images_that_both_have_are_compared():
    """One gains .2, the other is not in the second."""
    assert interval({(0, "a"): 0.7, (0, "b"): 0.1}, {(0, "a"): 0.5}) == pytest.approx((0.2,) * 3)


def test_second_stages_stand_beside_labels_alone(tmp_path):
    """A column for each set of images, a row for each recipe, and what else was said of it."""
    (tmp_path / "softness").mkdir()
    for name, gain in (("eyes", 0.1), ("lungs", -0.1)):
        recipes = {"mix": {"a": 0.5 + gain, "b": 0.7 + gain}, "labels": {"a": 0.5, "b": 0.7}}
        recipes |= {"all alike": {"a": 1.0, "b": 1.0}} if name == "lungs" else {}
        told = {"name": name, "recipes": recipes, "dice_of_mix": 0.75}
        (tmp_path / "softness" / f"{name}.json").write_text(json.dumps(told))
    begun = {"name": "skin", "recipes": {"mix": {"a": 0.5}}, "dice_of_mix": 0.75}
    (tmp_path / "softness" / "skin.json").write_text(json.dumps(begun))
    assert stages("softness", ["dice_of_mix"], tmp_path).splitlines() == [
        "| recipe | eyes, labels alone 0.600 | lungs, labels alone 0.600 |",
        "|---|---|---|",
        "| mix | 0.700, +0.100 (+0.100 to +0.100) | 0.500, -0.100 (-0.100 to -0.100) |",
        "| all alike | - | 1.000, +0.400 (+0.300 to +0.500) |",
        "| *dice of mix* | 0.750 | 0.750 |",
    ]


@pytest.mark.parametrize("method", ["self-training", "knowmine", "no-tuning"])
def test_rounds_that_methods_have_in_common_are_done_once(
    phantoms, split, tmp_path, monkeypatch, method
):
    """And change nothing: a round on labels alone, and SAM tuned on the same labels."""
    alone = run(split, phantoms, tmp_path / "alone" / "run", method)
    first = {"self-training": "supervised", "no-tuning": "knowmine"}.get(method, "no-sharpening")
    run(split, phantoms, tmp_path / "both" / "first", first)
    trained = []

    def watched(site, task, miner):
        trained.append(task.round)
        return improve(site, task, miner)

    monkeypatch.setattr(once, "improve", watched)
    monkeypatch.setattr(round_of_a_site, "tune", None)
    again = run(split, phantoms, tmp_path / "both" / "run", method)
    assert comparable(again) == comparable(alone)
    assert trained == [2, 2]


def test_a_sam_that_is_taught_otherwise_is_tuned_anew(phantoms, split, tmp_path):
    """What was kept of another method's tuning is not taken for it."""
    its = {"false_alarms": 1.0}
    alone = run(split, phantoms, tmp_path / "alone" / "run", "no-false-alarms", **its)
    run(split, phantoms, tmp_path / "both" / "first", "knowmine", **its)
    again = run(split, phantoms, tmp_path / "both" / "run", "no-false-alarms", **its)
    tuned = [next((tmp_path / name / "run").rglob("sam-decoder-*")) for name in ("alone", "both")]
    assert tuned[0].read_bytes() == tuned[1].read_bytes()
    assert comparable(again) == comparable(alone)


def test_an_experiment_of_unknown_methods_is_refused():
    """A name with a mistake in it, or a setting that mining does not have."""
    fields = experiment().model_dump()
    with pytest.raises(ValidationError, match="knowmime"):
        Experiment.model_validate({**fields, "methods": ["knowmime"]})
    with pytest.raises(ValidationError, match="tuning"):
        Experiment.model_validate({**fields, "variants": {"no-tuning": {"tuning": 0}}})


def test_a_table_of_unlike_runs_is_refused(phantoms, split, tmp_path):
    """Two methods of one experiment, one of which took other images to mine."""
    one = run(split, phantoms, tmp_path / "one")
    other = run(split, phantoms, tmp_path / "other", "self-training", images=3)
    refuse_unlike("ablation-10", [one, one])
    with pytest.raises(SystemExit, match="run with other settings"):
        refuse_unlike("ablation-10", [one, other])


def test_seeds_that_were_run_unlike_are_refused(phantoms, split, tmp_path):
    """A mean over two recipes is none of either; what older results do not name stood for off."""
    new, old = (
        run(split, phantoms, tmp_path / f"{chance}", "knowmine", false_alarms=chance)
        for chance in (1.0, 0.0)
    )
    del old["plan"]["mining"]["false_alarms"]
    refuse_unlike("ablation-10", [old, old | {"seed": 1}])
    refuse_unlike(
        "ablation-10",
        [
            old,
            {
                **new,
                "plan": {**new["plan"], "mining": {**new["plan"]["mining"], "false_alarms": 0.0}},
            },
        ],
    )
    with pytest.raises(SystemExit, match="seeds of knowmine"):
        refuse_unlike("ablation-10", [new, old])


def test_a_table_shows_the_worst_site(phantoms, split, tmp_path):
    """Beside the mean over all test images."""
    result = json.loads(json.dumps(run(split, phantoms, tmp_path)))
    of = {site: [result["test_dice"][s] for s in split[site]["test"]] for site in split}
    assert f"| {min(np.mean(values) for values in of.values()):.3f} |" in table(
        "small", [result], "set=SET"
    )
