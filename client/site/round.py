"""One round at a site. START HERE: load, mine, train, send back; then score.

```
the global U-Net++ arrives
 1 load      its weights into this site's U-Net++                 site/models.py
 2 choose    the labelled images, and those to mine this round    site/schedule.py, review/decisions.py
 3 mine      pseudo-labels from the U-Net++ and SAM together      mining/miner.py
 4 keep      pseudo-labels for the report and for a review        site/state.py
 5 train     on labels and pseudo-labels                          training/loop.py
 6 return    weights, counts and means; egress/release.py checks them before they leave
the new global U-Net++ arrives
 7 score     it on the test images                                data/scoring.py
 8 measure   pseudo-labels on the calibration set, in round 1     mining/miner.py
```
Paths are below `client/`.
"""

import time

import torch

from knowmine.client.data.image_set import ImageSet
from knowmine.client.device import memory_for, seeded
from knowmine.client.mining.miner import Miner, measure, mine
from knowmine.client.review.decisions import after_review
from knowmine.client.site.schedule import (
    images_of_round,
    is_mining_round,
    measures,
    part_of_run,
    seed_for,
)
from knowmine.client.site.site import Site
from knowmine.client.training.inference import predict
from knowmine.client.training.loop import Examples, train
from knowmine.shared.protocol import Calibration, EvaluateTask, Mined, Scores, TrainTask, Update


def improve(site: Site, task: TrainTask, miner: Miner = mine) -> Update:
    """Train the global model on this site's labels and on what it mines here.

    miner: makes the pseudo-labels; an experiment may give its own.
    A site with nothing to train on returns the weights that it was sent, with weight 0 in the mean.
    """
    started = time.monotonic()
    load(site, task)  # 1
    to_mine, reviewed = after_review(site.images.unlabelled, site.state.folder)  # 2
    sets = labelled_sets(site, task, reviewed)
    labelled = as_examples(sets)
    to_mine = images_to_mine(to_mine, task)
    pseudo_labelled, mined = mine_images(site, task, to_mine, miner)  # 3, 4
    loss = 0.0
    weights = task.weights
    if len(labelled) or len(pseudo_labelled):
        loss = train_network(site, task, labelled, pseudo_labelled)  # 5
        for images in sets:
            site.state.note(task.round, "trained", images)
        weights = site.models.weights()
        if task.plan.training.batch_norm == "local":
            site.state.keep_own_layers(task.round, site.models.batch_norm(weights))
    return Update(  # 6
        round=task.round,
        weights=weights,
        labelled=len(labelled),
        pseudo_labelled=len(pseudo_labelled),
        loss=loss,
        seconds=time.monotonic() - started,
        mined=mined,
    )


def evaluate(site: Site, task: EvaluateTask) -> Scores:
    """Score the global model on this site's test images, and pseudo-labels on its calibration set."""
    load(site, task, own_layers_before=task.round + 1)
    test = site.images.test
    site.progress.start("scoring", len(test))  # 7
    masks = predict(site.models.network, test.images, site.models.compute, site.progress.advance)
    by_case_id = {case.case_id: mask for case, mask in zip(test.cases, masks, strict=True)}
    scores = site.scorer.score_test(test.cases, lambda case: by_case_id[case.case_id])
    site.progress.done()
    site.state.keep_scores(task.round, scores)
    site.state.note(task.round, "scored", test)
    calibration = Calibration()  # 8
    if measures(task.plan, task.round, task.rounds):
        calibration = measure(site.images.calibration, site.models, task.plan, site.progress)

    def total(key: str) -> float:
        return float(sum(score[key] for score in scores.values()))

    return Scores(
        round=task.round,
        test_images=len(scores),
        dice=total("dice"),
        iou=total("iou"),
        hd95=total("hd95"),
        calibration=calibration,
    )


def load(
    site: Site, task: TrainTask | EvaluateTask, *, own_layers_before: int | None = None
) -> None:
    """Step 1: drop withdrawn cases and load the global weights.

    own_layers_before: with local batch norm, the site's own layers of the newest round before this
    one replace the global ones; by default those before the task's round.
    Raises `Refused` for another model than the installed one.
    """
    site.images.leave_out_withdrawn()
    site.models.check(task.plan.model)
    local = task.plan.training.batch_norm == "local"
    before = task.round if own_layers_before is None else own_layers_before
    own_layers = site.state.own_layers(before) if local else {}
    site.models.load(task.weights, own_layers)


def labelled_sets(site: Site, task: TrainTask, reviewed: ImageSet | None) -> list[ImageSet]:
    """Step 2: the labelled images to train on: the site's own, those that a review at the site
    made, and the calibration set in rounds that do not measure on it.
    """
    measures_on_it = measures(task.plan, task.round, task.rounds)
    calibration = None if measures_on_it else site.images.calibration
    sets = [site.images.labelled, reviewed, calibration]
    return [images for images in sets if images is not None]


def images_to_mine(unlabelled: ImageSet, task: TrainTask) -> ImageSet:
    """Step 2: this round's images to mine; none in rounds that do not mine."""
    if not len(unlabelled) or not is_mining_round(task.plan, task.round, task.rounds):
        return unlabelled.at([])
    return images_of_round(unlabelled, task.plan, task.round, task.rounds)


def mine_images(
    site: Site, task: TrainTask, images: ImageSet, miner: Miner
) -> tuple[Examples, Mined]:
    """Steps 3 and 4: pseudo-labels for `images`, kept at the site, and the counts that may leave."""
    model = site.models.settings
    if not len(images):
        return Examples.none(model.classes, model.image_px), Mined()
    calibration_images = site.images.count("calibration")
    with memory_for("mining", "choose smaller sam.weights or model.image_px"):
        found = miner(
            images, site.models, task.plan, task.calibration, calibration_images, site.progress
        )
    site.state.note(task.round, "mined", images)
    site.state.keep_pseudo_labels(task.round, found)
    return found.examples(), found.report()


def as_examples(sets: list[ImageSet]) -> Examples:
    """Labelled images as examples that count fully."""
    images = torch.cat([one.images for one in sets])
    truth = torch.cat([one.truth for one in sets])
    return Examples(images, truth.to(torch.uint8) * 255, torch.ones(len(images)))


def train_network(
    site: Site, task: TrainTask, labelled: Examples, pseudo_labelled: Examples
) -> float:
    """Step 5: train the loaded U-Net++ and return its mean loss."""
    plan = task.plan
    seed = seed_for(plan.seed, "train", site.name, task.round)
    batch = f"batches of {plan.training.batch} images of {plan.model.image_px} px"
    with (
        # Some encoders drop layers at random by torch's own generator: seeded, and put back.
        seeded(seed, site.models.compute.device),
        memory_for(batch, "ask for a smaller training.batch"),
    ):
        return train(
            site.models.network,
            labelled,
            pseudo_labelled,
            plan.training,
            plan.mining,
            part=part_of_run(task.round, task.rounds),
            generator=torch.Generator().manual_seed(seed),
            compute=site.models.compute,
            progress=site.progress,
        )
