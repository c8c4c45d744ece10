"""Each method makes its pseudo-labels, and SAM counts only as far as the plan and the gate let it."""

from typing import Any

import numpy as np
import pytest

from knowmine.client.mining import quality
from knowmine.client.mining.miner import measure, mine, predict_both
from knowmine.client.mining.prompts import prompts_for
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Decoded
from knowmine.client.training.inference import VARIED, predict
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.log import Silent
from knowmine.shared.protocol import Calibration
from tests.client.small_site import (
    CPU,
    MODEL,
    SAM_HARMS,
    SAM_HELPS,
    FakeSam,
    few_images_suffice,
    plan,
    seeing_weights,
    small_site,
)

# Of ten images two are test images, two calibration images, two labelled and four unlabelled.
SPLIT: dict[str, Any] = {"labelled": 4, "calibration_fraction": 0.5, "test_fraction": 0.2}


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
def weights(phantoms, tmp_path_factory):
    """A global model that predicts foreground in every image."""
    site = small_site(phantoms, tmp_path_factory.mktemp("site"), **SPLIT)
    return seeing_weights(site.images.unlabelled.images)


@pytest.fixture
def open_lyon(phantoms, tmp_path, weights):
    """Opens a site with this SAM and these global weights."""

    def opened(sam=None, weights=weights):
        site = small_site(phantoms, tmp_path, sam=sam, **SPLIT)
        site.models.load(weights, {})
        return site

    return opened


@pytest.fixture
def lyon(open_lyon):
    return open_lyon(FakeSam())


def mined_by(site, plan, sums=SAM_HELPS, own_images=2):
    """Pseudo-labels of the unlabelled images."""
    return mine(site.images.unlabelled, site.models, plan, sums, own_images, Silent())


def seen_by(site, plan):
    """Both models' masks of the unlabelled images."""
    return predict_both(site.images.unlabelled, site.models, plan, Silent())


def predicted_by(site, **views):
    return predict(site.models.network, site.images.unlabelled.images, CPU, **views)


# --------------------------------------------------------------------- the methods


def test_self_training_takes_the_soft_masks(open_lyon):
    """The U-Net++'s own, all of them, each counting fully; SAM is never loaded."""
    site = open_lyon()
    found = mined_by(site, plan("self-training"))
    assert np.array_equal(found.masks, predicted_by(site))
    assert found.selection.weights.tolist() == [1.0] * 4
    report = found.report()
    assert (report.kept, report.dropped, report.gate) == (4, 0, "unused")


def test_the_paper_takes_sams_hard_masks(lyon, monkeypatch):
    """Unfiltered, each counting fully."""
    monkeypatch.setattr(quality, "MIN_QUALITY", 1.0)
    found = mined_by(lyon, plan("paper"))
    assert set(np.unique(found.masks)) == {0, 1}
    assert found.selection.weights.tolist() == [1.0] * 4
    report = found.report()
    assert (report.kept, report.dropped, report.fuse_weight) == (4, 0, 0.0)


@pytest.mark.parametrize(("method", "dense"), [("paper", False), ("knowmine", True)])
def test_knowmine_alone_prompts_with_masks(lyon, method, dense):
    """Four images in one call; the paper's recipe prompts with boxes and points."""
    mined_by(lyon, plan(method))
    (prompts,) = lyon.models.sam.model.prompts
    assert (prompts.masks is not None) == dense


def test_knowmine_weighs_by_quality(lyon):
    """The masks are fused as the calibration sums say."""
    found = mined_by(lyon, plan())
    report = found.report()
    assert (report.gate, report.fuse_weight) == ("on", 0.5)
    assert np.allclose(found.masks, (found.predictions.unet + found.predictions.sam) / 2)
    assert np.allclose(found.selection.weights, ((found.quality - 0.4) / 0.5).clip(0, 1))
    assert 0 < report.mean_agreement < 1 and report.mean_quality == found.quality.mean()


def test_poor_pseudo_labels_are_dropped(lyon, monkeypatch):
    """Of four, those above the two lowest estimates are kept; examples are those."""
    monkeypatch.setattr(quality, "MIN_QUALITY", sorted(mined_by(lyon, plan()).quality)[2])
    found = mined_by(lyon, plan())
    examples, kept = found.examples(), found.selection.kept
    assert (found.report().kept, found.report().dropped, len(examples)) == (2, 2, 2)
    targets = examples.targets.numpy() / 255
    assert np.abs(targets - found.masks[kept]).max() < 0.003
    assert np.array_equal(examples.images, found.images.images[np.flatnonzero(kept)])
    assert examples.weights.tolist() == found.selection.weights[kept].tolist()


# ------------------------------------------------------------------------------ gate


@pytest.mark.parametrize("sums", [SAM_HARMS, Calibration()])
def test_a_plan_may_use_sam_always(lyon, sums):
    """In an even mean, even if the calibration set is against it or too small."""
    report = mined_by(lyon, plan(sam="always"), sums).report()
    assert (report.gate, report.fuse_weight) == ("unused", 0.5)


def test_a_plan_may_do_without_sam(open_lyon):
    """It is never loaded, whatever the sums say."""
    site = open_lyon()
    found = mined_by(site, plan(sam="never"))
    assert (found.gate.word, found.gate.fuse_weight) == ("unused", 1.0)
    assert np.array_equal(found.masks, predicted_by(site, views=VARIED["upright"]))


@pytest.mark.parametrize(("sums", "gate"), [(SAM_HARMS, "off"), (Calibration(), "uncalibrated")])
def test_without_proof_sam_stays_out_of_the_masks(lyon, sums, gate):
    """They are the U-Net++'s own."""
    found = mined_by(lyon, plan(), sums)
    assert (found.gate.word, found.gate.fuse_weight) == (gate, 1.0)
    assert np.array_equal(found.masks, predicted_by(lyon, views=VARIED["upright"]))


@pytest.mark.parametrize(
    ("sums", "gate", "weight"),
    [(SAM_HELPS, "pooled", 0.5), (SAM_HARMS, "pooled", 1.0), (Calibration(1), "uncalibrated", 1.0)],
)
def test_a_site_with_few_calibration_images_uses_the_federations_sums(lyon, sums, gate, weight):
    """It has one, and two are needed; the report says that the sums are pooled."""
    report = mined_by(lyon, plan(), sums, own_images=1).report()
    assert (report.gate, report.fuse_weight) == (gate, weight)


# ------------------------------------------------------------- where SAM has no mask

ALL: Any = np.s_[:]
"""Every prompt has a valid mask."""


def uncovered(site, seen):
    """(N, C, S, S) bool: foreground of the U-Net++ that no prompt covers."""
    sizes = site.images.unlabelled.sizes
    frames = [Frames(height, width, MODEL.image_px) for height, width in sizes]
    pairs = zip(seen.unet, frames, strict=True)
    return np.stack([prompts_for(unet, f).uncovered(unet, ALL) for unet, f in pairs])


@pytest.mark.parametrize(("method", "unet_stays"), [("knowmine", True), ("paper", False)])
def test_where_sam_was_not_prompted_the_unets_mask_stays(lyon, method, unet_stays):
    """In knowmine an unprompted speck is not background; the paper's recipe loses it."""
    seen = seen_by(lyon, plan(method))
    left = uncovered(lyon, seen)
    assert left.any() and np.array_equal(seen.sam[left], seen.unet[left]) == unet_stays


class BrokenSam(FakeSam):
    """Its arithmetic fails."""

    def decode(self, embeddings, prompts):
        decoded = super().decode(embeddings, prompts)
        return Decoded(decoded.logits * np.nan, decoded.iou)


def test_where_sams_arithmetic_fails_the_unets_mask_stays(open_lyon):
    """The round goes on, and the image does not become an empty mask."""
    seen = seen_by(open_lyon(BrokenSam()), plan())
    foreground = seen.unet > 0.5
    assert seen.prompted.all() and np.array_equal(seen.sam[foreground], seen.unet[foreground])
    assert not seen.sam_iou.any()


def test_an_image_without_foreground_is_never_prompted(open_lyon, lyon):
    """SAM gets no prompt; the empty mask is as good as empty masks were on the calibration set."""
    sums = Calibration(9, (5.0,) * 5, empty=4, empty_predicted=2, empty_right=2)
    blind = seeing_weights(lyon.images.unlabelled.images, fraction=0)
    site = open_lyon(FakeSam(), blind)
    report = mined_by(site, plan(), sums).report()
    assert not site.models.sam.model.prompts and report.empty == 4
    assert report.mean_quality == pytest.approx(0.71)


# --------------------------------------------------------------------------- measure


def test_pseudo_labels_are_measured_on_the_calibration_set(lyon):
    """Its two images, fused in five ways."""
    sums = measure(lyon.images.calibration, lyon.models, plan(), Silent())
    assert sums.images == 2 and len(sums.fused) == 5
    assert all(0 <= dice <= 2 for dice in sums.fused)


def test_without_sam_all_weights_measure_the_same(open_lyon):
    """The U-Net++'s masks stand in for SAM's."""
    site = open_lyon()
    sums = measure(site.images.calibration, site.models, plan(sam="never"), Silent())
    assert sums.images == 2 and len(set(sums.fused)) == 1


def test_no_calibration_images_give_no_sums(open_lyon):
    """And SAM is not loaded."""
    site = open_lyon()
    nothing = site.images.calibration.at([])
    assert measure(nothing, site.models, plan(), Silent()) == Calibration()
