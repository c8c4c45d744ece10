"""Refuse site updates that cannot be averaged.

Everything that a site sends is hostile until it passes these checks, in this order. A refusal
names the site, what it sent and what was expected. The round continues with the other sites.

An update (`admit`):
 1. it is an update of this round
 2. its tensors are exactly the model's, by name
 3. each has the model's shape
 4. each has the model's dtype
 5. floats are finite
 6. whole numbers and variances are not negative
 7. no number exceeds 1e6 either way (counters: 1e12)
 8. image counts are whole numbers from 0 to `max_images`
 9. loss and seconds are finite and not negative
10. mined counts, means and the gate are in their ranges

Scores (`admit_scores`):
11. they are scores of this round
12. Dice and IoU sums lie between 0 and the number of test images; distances are not negative
13. calibration sums lie between 0 and the number of calibration images and have their lengths;
    the sums over features are products over a whole number of these images: X^T X of some X

An introduction (`admit_hello`):
14. its name is short and plain
15. it speaks this protocol and starts from this model
16. its image counts are sane
"""

from typing import Any

import numpy as np

from knowmine.shared.checks import MAX_IMAGES, Door, shown
from knowmine.shared.errors import UpdateRefused
from knowmine.shared.protocol import (
    FUSE_WEIGHTS,
    GATES,
    Calibration,
    Hello,
    Mined,
    Scores,
    Update,
)
from knowmine.shared.weights import Array, Manifest

MAX_LOSS = 1e6
MAX_SECONDS = 1e7
"""Four months; a round cannot take longer."""
MAX_DISTANCE_PX = 1e6
MAX_FEATURE = 10.0
"""The features of the quality estimate are fractions and ratios, about 1 at most."""
ROUNDING = 1e-4
"""Sums are rounded to 6 decimals before they leave, so X^T X may be wrong by this much."""
SITE_NAME = r"[a-z0-9-]{1,40}"


def admit(
    update: Update,
    *,
    site: str,
    round: int,
    manifest: Manifest,
    max_images: int = MAX_IMAGES,
) -> Update:
    """Return `update` with plain numbers if it can be averaged; else raise `UpdateRefused`.

    manifest: of the global model that the site was sent.
    """
    door = Door(f"site {site!r} sent", UpdateRefused)
    door.kind(update, Update)
    _same_round(door, update.round, round)  # 1
    return Update(
        round=round,
        weights=_tensors(door, update.weights, manifest),
        labelled=door.count("labelled", update.labelled, high=max_images),  # 8
        pseudo_labelled=door.count("pseudo_labelled", update.pseudo_labelled, high=max_images),
        loss=door.number("loss", update.loss, low=0, high=MAX_LOSS),  # 9
        seconds=door.number("seconds", update.seconds, low=0, high=MAX_SECONDS),
        mined=_mined(door, update.mined, max_images),  # 10
    )


def admit_scores(
    scores: Scores, *, site: str, round: int, features: int, max_images: int = MAX_IMAGES
) -> Scores:
    """Return `scores` with plain numbers if they can be pooled; else raise `UpdateRefused`.

    features: how many features the quality estimate has.
    """
    door = Door(f"site {site!r} sent", UpdateRefused)
    door.kind(scores, Scores)
    _same_round(door, scores.round, round)  # 11
    images = door.count("test_images", scores.test_images, high=max_images)  # 12
    return Scores(
        round=round,
        test_images=images,
        dice=door.number("dice", scores.dice, low=0, high=images),
        iou=door.number("iou", scores.iou, low=0, high=images),
        hd95=door.number("hd95", scores.hd95, low=0, high=images * MAX_DISTANCE_PX),
        calibration=_calibration(door, scores.calibration, features, max_images),  # 13
    )


def admit_hello(
    hello: Hello, *, protocol: int, model_digest: str, max_images: int = MAX_IMAGES
) -> Hello:
    """Return `hello` if the site may take part; else raise `UpdateRefused`."""
    door = Door("a site sent", UpdateRefused)
    door.kind(hello, Hello)
    repair = "use lower-case letters, digits and hyphens, at most 40"
    site = door.text("its name", hello.site, SITE_NAME, repair)  # 14
    door = Door(f"site {site!r} sent", UpdateRefused)
    if door.count("protocol", hello.protocol) != protocol:  # 15
        repair = "install the same version of knowmine on both ends"
        raise door.refuse("protocol", shown(hello.protocol), str(protocol), repair)
    if type(hello.model_digest) is not str or hello.model_digest != model_digest:
        repair = "give it the federation's model settings and seed, and the same package versions"
        raise door.refuse("model_digest", shown(hello.model_digest), model_digest, repair)
    counts = {  # 16
        name: door.count(name, getattr(hello, name), high=max_images)
        for name in ("labelled", "unlabelled", "calibration", "test")
    }
    return Hello(site=site, protocol=protocol, model_digest=model_digest, **counts)


def _same_round(door: Door, seen: Any, expected: int) -> None:
    if door.count("round", seen) != expected:
        repair = "it answers late or twice; it can take part in the next round"
        raise door.refuse("round", shown(seen), f"round {expected}", repair)


def _tensors(door: Door, tensors: Any, manifest: Manifest) -> dict[str, Array]:
    door.names(tensors, manifest)  # 2
    for name, spec in manifest.items():
        array = tensors[name]
        door.shape(name, array, spec)  # 3
        door.dtype(name, array, spec)  # 4
        door.finite(name, array)  # 5
        door.counters(name, array)  # 6
        door.bounded(name, array)  # 7
    return {name: tensors[name] for name in manifest}


def _mined(door: Door, mined: Mined, max_images: int) -> Mined:
    door.kind(mined, Mined)
    return Mined(
        kept=door.count("mined.kept", mined.kept, high=max_images),
        dropped=door.count("mined.dropped", mined.dropped, high=max_images),
        empty=door.count("mined.empty", mined.empty, high=max_images),
        gate=door.one_of("mined.gate", mined.gate, GATES),
        fuse_weight=door.number("mined.fuse_weight", mined.fuse_weight, low=0, high=1),
        mean_agreement=door.number("mined.mean_agreement", mined.mean_agreement, low=0, high=1),
        mean_quality=door.number("mined.mean_quality", mined.mean_quality, low=0, high=1),
    )


def _calibration(door: Door, sums: Calibration, features: int, max_images: int) -> Calibration:
    door.kind(sums, Calibration)
    images = door.count("calibration.images", sums.images, high=max_images)
    if not images:
        # Whatever the sums say, they are sums over no images.
        return Calibration()
    gram = _gram(door, sums.gram, features, images)
    most = gram[0] * MAX_FEATURE
    empty = door.count("calibration.empty", sums.empty, high=images)
    predicted = door.count("calibration.empty_predicted", sums.empty_predicted, high=images)
    both = min(empty, predicted)
    return Calibration(
        images=images,
        fused=door.numbers("calibration.fused", sums.fused, len(FUSE_WEIGHTS), low=0, high=images),
        gram=gram,
        target=door.numbers(
            "calibration.target", sums.target, features * len(FUSE_WEIGHTS), low=-most, high=most
        ),
        empty=empty,
        empty_predicted=predicted,
        empty_right=door.count("calibration.empty_right", sums.empty_right, high=both),
    )


def _gram(door: Door, sums: Any, features: int, images: int) -> tuple[float, ...]:
    """The features' X^T X (features, features), row by row, over images with a prompt.

    The first feature is always 1, so the first sum is the number of these images. If the sums were
    not X^T X of any X, every site that uses the federation's calibration would divide by almost
    nothing, or rate wrong pseudo-labels highly.
    """
    most = images * MAX_FEATURE**2
    gram = door.numbers("calibration.gram", sums, features**2, low=-most, high=most)
    repair = "send what was summed, by the same version of knowmine"
    if not (0 <= gram[0] <= images and gram[0].is_integer()):
        expected = f"a whole number from 0 to {images}, its calibration images"
        raise door.refuse("calibration.gram[0]", shown(gram[0]), expected, repair)
    if max(map(abs, gram)) > gram[0] * MAX_FEATURE**2:
        expected = f"at most {MAX_FEATURE**2:g} for each of {gram[0]:g} images"
        raise door.refuse("calibration.gram", f"{max(map(abs, gram)):g} in it", expected, repair)
    square = np.array(gram).reshape(features, features)
    if np.abs(square - square.T).max() > ROUNDING:
        raise door.refuse("calibration.gram", "sums that differ by order", "symmetric sums", repair)
    if square.diagonal().min() < 0 or np.linalg.eigvalsh(square)[0] < -ROUNDING:
        raise door.refuse(
            "calibration.gram", "negative squares", "sums of squares, 0 or more", repair
        )
    return gram
