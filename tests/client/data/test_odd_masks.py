"""Whole rounds with odd masks: specks, borders, empty masks, and a class that the site lacks."""

import numpy as np
import pytest
from PIL import Image

from knowmine.client.site.round import evaluate, improve
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.protocol import FUSE_WEIGHTS, EvaluateTask
from knowmine.shared.unetplusplus import build_model, weights_of
from knowmine.shared.weights import digest_of
from tests.client.small_site import (
    MODEL,
    FakeSam,
    few_images_suffice,
    plan,
    seeing_weights,
    small_site,
    task,
)

IMAGES = 12
SPLIT = {"labelled": 8, "calibration_fraction": 0.5, "test_fraction": 0.2}
TWO_CLASSES = MODEL.model_copy(update={"classes": 2})


@pytest.fixture
def sam():
    """The site's SAM."""
    return FakeSam()


@pytest.fixture
def with_masks(tmp_path, sam, monkeypatch):
    """Opens a site whose every mask holds one value in one region, as (rows, columns)."""
    few_images_suffice(monkeypatch)

    def opened(region, value=255, model=MODEL):
        make_folder(tmp_path / "data", IMAGES)
        for file in sorted((tmp_path / "data" / "masks").iterdir()):
            mask = np.zeros_like(np.asarray(Image.open(file)))
            mask[region] = value
            Image.fromarray(mask).save(file)
        return small_site(tmp_path / "data", tmp_path, sam=sam, model=model, **SPLIT)

    return opened


def a_round(site, weights, its):
    """The sums of the calibration set, and the update of the mining round that follows."""
    scores = evaluate(site, EvaluateTask(1, 4, its, weights))
    assert 0 <= scores.dice <= scores.test_images
    return scores.calibration, improve(site, task(weights, its, 2, calibration=scores.calibration))


@pytest.mark.parametrize(
    "region",
    [np.s_[:40, :40], np.s_[:, -60:], np.s_[:, :], np.s_[100:105, 100:104], np.s_[:0]],
    ids=["in a corner", "along a side", "everywhere", "20 pixels", "nowhere"],
)
def test_a_round_takes_such_masks(with_masks, region):
    """It calibrates, mines and trains; no score leaves its range and no weight becomes NaN."""
    site = with_masks(region)
    weights = seeing_weights(site.images.unlabelled.images)
    sums, update = a_round(site, weights, plan())
    assert sums.images == len(site.images.calibration) and all(
        0 <= d <= sums.images for d in sums.fused
    )
    assert (update.labelled, update.pseudo_labelled) == (8, 2) and update.mined.gate in (
        "on",
        "off",
    )
    assert np.isfinite(update.loss) and digest_of(update.weights) != digest_of(weights)
    assert all(np.isfinite(value).all() for value in update.weights.values())


def test_where_no_mask_shows_anything_nothing_is_right(with_masks, sam):
    """A model that predicts nothing is right there, and SAM gets no prompt."""
    site = with_masks(np.s_[:0])
    blind = seeing_weights(site.images.unlabelled.images, fraction=0)
    sums, update = a_round(site, blind, plan())
    assert sums.fused == (float(sums.images),) * len(FUSE_WEIGHTS)
    assert sums.empty == sums.empty_predicted == sums.empty_right == sums.images
    assert update.mined.empty == update.mined.kept and update.mined.mean_quality > 0.7
    assert not sam.prompts


def test_a_class_that_a_site_has_never_seen(with_masks):
    """Its masks have the first of two classes; training lowers the probability of the second."""
    site = with_masks(np.s_[50:150, 50:150], value=1, model=TWO_CLASSES)
    assert site.images.labelled.truth[:, 0].any() and not site.images.labelled.truth[:, 1].any()
    weights = weights_of(build_model(TWO_CLASSES, seed=0))
    its = plan(training={"steps": 8}).model_copy(update={"model": TWO_CLASSES})
    sums, update = a_round(site, weights, its)
    assert (
        sums.images == len(site.images.calibration)
        and update.pseudo_labelled == update.mined.kept > 0
    )
    assert all(np.isfinite(value).all() for value in update.weights.values())
    bias = "segmentation_head.0.bias"
    moved = update.weights[bias] - weights[bias]
    assert moved[1] < moved[0], "the absent class becomes less probable than the present one"
