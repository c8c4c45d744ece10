"""A round at a site trains on what it may see, reports counts, and repeats itself exactly."""

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from knowmine.client.data.dataset import open_site
from knowmine.client.mining import quality
from knowmine.client.site.round import evaluate, improve, load
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.errors import Refused
from knowmine.shared.protocol import Calibration, EvaluateTask, Mined
from knowmine.shared.settings import ModelSettings
from knowmine.shared.weights import digest_of
from tests.client.data.test_scoring import opened_files
from tests.client.small_site import (
    FakeSam,
    few_images_suffice,
    plan,
    seeing_weights,
    small_site,
    task,
)

# Of ten images two are test images, two calibration images, two labelled and four unlabelled.
SPLIT: dict[str, Any] = {"labelled": 4, "calibration_fraction": 0.5, "test_fraction": 0.2}
LOCAL = {"batch_norm": "local"}


@pytest.fixture(autouse=True)
def constants_for_few_images(monkeypatch):
    few_images_suffice(monkeypatch)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    """A data folder of ten phantom images."""
    folder = tmp_path_factory.mktemp("phantoms")
    make_folder(folder, 10)
    return folder


@pytest.fixture(scope="module")
def lyon(phantoms, tmp_path_factory):
    """A site with images for every purpose, and a fake SAM."""
    return small_site(phantoms, tmp_path_factory.mktemp("lyon"), sam=FakeSam(), **SPLIT)


@pytest.fixture(scope="module")
def weights(lyon):
    """A global model that predicts foreground in every image."""
    return seeing_weights(lyon.images.unlabelled.images)


@pytest.fixture
def open_lyon(phantoms, tmp_path):
    """Opens another such site with nothing kept from earlier rounds, or another split."""
    return lambda sam=None, **split: small_site(phantoms, tmp_path, sam=sam, **{**SPLIT, **split})


# --------------------------------------------------------------------- the four methods


def test_supervised_trains_on_labels_alone(open_lyon, weights):
    """The calibration set measures nothing, so it is trained on; SAM is never loaded."""
    update = improve(open_lyon(), task(weights, plan("supervised")))
    assert (update.labelled, update.pseudo_labelled, update.mined) == (4, 0, Mined())


def test_self_training_needs_no_sam(open_lyon, weights):
    """All four unlabelled images count, SAM is never loaded."""
    update = improve(open_lyon(), task(weights, plan("self-training")))
    assert (update.labelled, update.pseudo_labelled, update.mined.gate) == (4, 4, "unused")


def test_knowmine_trains_on_both(open_lyon, weights):
    """On four labelled images, the calibration set among them, and four mined ones."""
    update = improve(open_lyon(FakeSam()), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled, update.mined.gate) == (4, 4, "on")
    assert 0 < update.mined.mean_agreement < 1 and 0 < update.mined.mean_quality < 1


def test_a_plan_may_do_without_sam(open_lyon, weights):
    """From the sums of the calibration set to the update SAM is never loaded."""
    site, alone = open_lyon(), plan(sam="never")
    assert evaluate(site, EvaluateTask(1, 4, alone, weights)).calibration.images == 2
    update = improve(site, task(weights, alone))
    assert (update.pseudo_labelled, update.mined.fuse_weight) == (4, 1.0)


def test_a_round_without_good_pseudo_labels_trains_on_labels(open_lyon, weights, monkeypatch):
    """All are dropped, and the report says so."""
    monkeypatch.setattr(quality, "MIN_QUALITY", 1.0)
    update = improve(open_lyon(FakeSam()), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled, update.mined.dropped) == (4, 0, 4)


# ------------------------------------------------------------------- who has which data


def test_a_site_without_labels_mines(open_lyon, weights):
    """All eight images outside the test set."""
    update = improve(open_lyon(FakeSam(), labelled=0), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled) == (0, 8)
    assert digest_of(update.weights) != digest_of(weights)


def test_a_site_without_unlabelled_images_trains(open_lyon, weights):
    """SAM is never loaded."""
    update = improve(open_lyon(labelled=None, calibration_fraction=0.25), task(weights, plan()))
    assert (update.labelled, update.pseudo_labelled, update.mined) == (8, 0, Mined())


def test_a_site_with_nothing_to_train_on_returns_the_weights(open_lyon, weights):
    """It has no labels and the round mines nothing, so it counts for nothing."""
    update = improve(open_lyon(labelled=0), task(weights, plan(warmup_rounds=1), round_=1))
    assert (update.labelled, update.pseudo_labelled, update.loss) == (0, 0, 0.0)
    assert digest_of(update.weights) == digest_of(weights)


def test_warm_up_rounds_mine_nothing(open_lyon, weights):
    """The second of two."""
    update = improve(open_lyon(), task(weights, plan(warmup_rounds=2), round_=2))
    assert (update.labelled, update.pseudo_labelled, update.mined) == (4, 0, Mined())


@pytest.mark.parametrize(("round_", "labelled"), [(1, 2), (2, 4)])
def test_the_calibration_set_is_trained_on_after_it_has_measured(lyon, weights, round_, labelled):
    """The first round leaves it out."""
    update = improve(lyon, task(weights, plan(), round_, rounds=4))
    assert update.labelled == labelled


def test_another_model_is_refused(lyon, weights):
    """The server's model settings and the site's must be equal."""
    other = plan().model_copy(update={"model": ModelSettings(classes=2)})
    with pytest.raises(Refused, match="this site was set up for"):
        improve(lyon, task(weights, other))


# ------------------------------------------------------------------------ the same again


def test_the_same_task_gives_the_same_update(open_lyon, lyon, weights):
    """To the last bit, on a fresh site and on one that has worked since."""
    same = task(weights, plan(training={"steps": 2}))
    first = improve(open_lyon(FakeSam()), same)
    improve(lyon, task(weights, plan(seed=9), round_=3))
    again = improve(lyon, same)
    assert digest_of(first.weights) == digest_of(again.weights)
    assert (first.loss, first.mined) == (again.loss, again.mined)


def test_another_seed_gives_another_update(lyon, weights):
    """Batches and augmentation depend on the seed."""
    one, other = (improve(lyon, task(weights, plan(seed=seed))) for seed in (1, 2))
    assert digest_of(one.weights) != digest_of(other.weights)


def test_the_task_is_left_alone(lyon, weights):
    """The server's weights are not trained in place."""
    before = digest_of(weights)
    improve(lyon, task(weights, plan()))
    assert digest_of(weights) == before


def test_global_seeds_change_nothing(lyon, weights):
    """Neither torch's nor NumPy's global seed is a source of randomness."""
    torch.manual_seed(1)
    one = improve(lyon, task(weights, plan()))
    torch.manual_seed(2)
    np.random.seed(2)
    other = improve(lyon, task(weights, plan()))
    assert digest_of(one.weights) == digest_of(other.weights)


def test_global_generators_are_left_as_they_were(lyon, weights):
    """A draw after the round is the one that would have come without it."""
    before = torch.get_rng_state()
    improve(lyon, task(weights, plan()))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_second_round_never_runs_the_encoder(open_lyon, weights):
    """Four unlabelled images and two calibration images are embedded once."""
    site = open_lyon(FakeSam())
    for round_ in (1, 2):
        improve(site, task(weights, plan(), round_))
        evaluate(site, EvaluateTask(round_, 9, plan(), weights))
        sam = site.models.sam
        assert (sam.encoded, len(sam.model.embedded)) == (6, 6)


# -------------------------------------------------------------------- batch norm at home


def split_by_batch_norm(site, weights):
    """The batch-norm layers of these weights, and all other layers."""
    own = site.models.batch_norm(weights)
    return own, {name: array for name, array in weights.items() if name not in own}


def test_local_batch_norm_survives_a_reopened_site(open_lyon, weights):
    """The next round takes them, and all other layers from the global model."""
    site = open_lyon()
    update = improve(site, task(weights, plan("supervised", training=LOCAL), round_=1))
    again = open_lyon()
    load(again, task(weights, plan(training=LOCAL), round_=2))
    own, rest = split_by_batch_norm(site, again.models.weights())
    assert digest_of(own) == digest_of(split_by_batch_norm(site, update.weights)[0])
    assert digest_of(rest) == digest_of(split_by_batch_norm(site, weights)[1])


def test_averaged_batch_norm_keeps_nothing(open_lyon, weights):
    """The next round starts from the global model, all of it."""
    site = open_lyon()
    improve(site, task(weights, plan("supervised"), round_=1))
    load(site, task(weights, plan("supervised"), round_=2))
    assert digest_of(site.models.weights()) == digest_of(weights)
    assert not list(site.state.folder.glob("batch-norm-*"))


def test_a_round_done_again_starts_from_the_same_own_layers(open_lyon, weights):
    """A run that is resumed in round 2 gives what an unbroken one gives."""
    site, its = open_lyon(), plan("supervised", training=LOCAL)
    improve(site, task(weights, its, round_=1))
    once, again = (improve(site, task(weights, its, round_=2)) for _ in range(2))
    assert digest_of(once.weights) == digest_of(again.weights)


# -------------------------------------------------------------------------- evaluation


def test_scores_are_sums_over_test_images(lyon, weights):
    """Two images: no sum passes two."""
    scores = evaluate(lyon, EvaluateTask(1, 9, plan("supervised"), weights))
    assert (scores.round, scores.test_images) == (1, 2)
    assert 0 <= scores.iou <= scores.dice <= 2 and scores.hd95 > 0
    assert scores.calibration == Calibration()


def test_the_calibration_set_measures_the_first_rounds_model(lyon, weights):
    """Also if the warm-up is long and the first pseudo-label comes much later."""
    scores = evaluate(lyon, EvaluateTask(1, 9, plan(warmup_rounds=5), weights))
    assert scores.calibration.images == 2


def test_images_that_were_trained_on_measure_nothing(lyon, weights):
    """Once the calibration set is trained on, no sums are sent."""
    scores = evaluate(lyon, EvaluateTask(5, 9, plan(), weights))
    assert scores.calibration == Calibration()


def test_a_site_without_test_images_has_no_scores(open_lyon, weights):
    """There is no error either, and its calibration set measures all the same."""
    site = open_lyon(FakeSam(), test_fraction=0.0)
    scores = evaluate(site, EvaluateTask(1, 9, plan(), weights))
    assert (scores.test_images, scores.dice, scores.calibration.images) == (0, 0.0, 2)


# ------------------------------------------------------------- nothing sees hidden masks


def as_noise(file):
    """Any mask but the true one."""
    rng = np.random.default_rng(0)
    with Image.open(file) as image:
        shape = image.size[::-1]
    Image.fromarray(rng.choice(np.array([0, 255], np.uint8), shape)).save(file)


def as_garbage(file):
    """No mask at all."""
    file.write_bytes(b"garbage")


@pytest.mark.parametrize("spoil", [as_noise, as_garbage])
def test_hidden_and_test_masks_leave_no_trace_in_an_update(phantoms, tmp_path, weights, spoil):
    """Spoilt, they give the same calibration and, to the last bit, the same update."""
    spoilt = shutil.copytree(phantoms, tmp_path / "spoilt")
    _, hidden = open_site("lyon", spoilt, **SPLIT)
    assert len(hidden.paths) == 6  # four unlabelled, two tested
    for file in hidden.paths.values():
        spoil(file)

    def a_round(folder, home):
        site = small_site(folder, home, sam=FakeSam(), **SPLIT)
        sums = evaluate(site, EvaluateTask(1, 9, plan(), weights)).calibration
        chosen = plan(training={"steps": 2})
        update = improve(site, task(weights, chosen, 2, calibration=sums))
        return sums, digest_of(update.weights), update.loss, update.mined

    assert a_round(phantoms, tmp_path / "a") == a_round(spoilt, tmp_path / "b")


@pytest.mark.parametrize("method", ["supervised", "self-training", "paper", "knowmine"])
def test_no_hidden_mask_is_opened_by_a_round(open_lyon, phantoms, weights, method):
    """Every file that Python opens is watched; SAM reads the unlabelled images."""
    site = open_lyon(FakeSam())
    _, hidden = open_site("lyon", phantoms, **SPLIT)
    with opened_files() as opened:
        improve(site, task(weights, plan(method)))
    assert not opened & {str(path) for path in hidden.paths.values()}
    if method in ("paper", "knowmine"):
        assert {str(case.image) for case in site.images.unlabelled.cases} <= opened


def test_evaluation_opens_test_masks_and_no_others(open_lyon, phantoms, weights):
    """Masks of unlabelled images stay closed."""
    site = open_lyon(FakeSam())
    _, hidden = open_site("lyon", phantoms, **SPLIT)
    with opened_files() as opened:
        evaluate(site, EvaluateTask(1, 9, plan(), weights))
    tested = {str(hidden.paths[case.case_id]) for case in site.images.test.cases}
    assert opened & {str(path) for path in hidden.paths.values()} == tested
