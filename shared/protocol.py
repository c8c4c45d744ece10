"""The messages between server and site, independent of any transport.

In a round each site gets two tasks. `TrainTask`: train the global model on your images.
`EvaluateTask`: evaluate the new global model on your test images. Replies hold sums rather than
means, so that the server can pool sites of different sizes exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from knowmine.shared.settings import Plan
from knowmine.shared.weights import Weights

PROTOCOL = 1
"""Version of these messages. Both ends must have the same one."""


@dataclass(frozen=True)
class Calibration:
    """How good pseudo-labels are on the calibration set, whose masks are known, as sums.

    The sums of several sites add up to the sums of their union. A site whose own calibration set
    is too small therefore uses the federation's.

    images: calibration images behind the sums.
    fused: summed Dice of the fused masks, one sum for each weight in `FUSE_WEIGHTS`. The first is
        SAM alone, the last the U-Net++ alone.
    gram, target: the linear model that estimates quality. X^T X, row by row; and X^T y for each
        weight in `FUSE_WEIGHTS`, one after the other. X is the `FEATURES`, y the Dice of the mask
        fused with that weight.
    empty, empty_predicted, empty_right: images without any foreground; images in which the
        U-Net++ predicted none; images in which that was right.
    """

    images: int = 0
    fused: tuple[float, ...] = ()
    gram: tuple[float, ...] = ()
    target: tuple[float, ...] = ()
    empty: int = 0
    empty_predicted: int = 0
    empty_right: int = 0

    def __add__(self, other: "Calibration") -> "Calibration":
        """The pooled sums of both."""
        if not self.images:
            return other
        if not other.images:
            return self

        def added(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Calibration(
            self.images + other.images,
            added(self.fused, other.fused),
            added(self.gram, other.gram),
            added(self.target, other.target),
            self.empty + other.empty,
            self.empty_predicted + other.empty_predicted,
            self.empty_right + other.empty_right,
        )


def calibration_of(values: Mapping[str, Any]) -> Calibration:
    """Sums from lists and numbers, as the wire and a round's record hold them."""
    sums: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return Calibration(**sums)


MIN_CALIBRATION_IMAGES = 8
"""Images needed to calibrate SAM. With fewer the sums scatter by more than SAM's gain
(docs/findings.md), so such a site uses the federation's sums."""

FUSE_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the U-Net++ in the fused mask that the calibration set compares; 1 leaves SAM out."""


FEATURES = ("one", "agreement", "sam_iou", "sam_stability", "area_ratio", "expected_dice")
"""What the quality estimate uses of a pseudo-label, each in [0, 1]. The last is of an even mix."""


@dataclass(frozen=True)
class Hello:
    """A site's introduction: its name, its model and how many images it has of each kind."""

    site: str
    protocol: int
    model_digest: str
    labelled: int
    unlabelled: int
    calibration: int
    test: int


@dataclass(frozen=True)
class TrainTask:
    """Train `weights` on the site's images; this is round `round` of `rounds`, counted from 1."""

    round: int
    rounds: int
    plan: Plan
    weights: Weights
    calibration: Calibration = field(default_factory=Calibration)


GATES = ("unused", "on", "off", "uncalibrated", "pooled")
"""The gate's possible results in a round; one travels as its place in this list."""


@dataclass(frozen=True)
class Mined:
    """What a site mined in a round: counts and means only.

    gate: "on"; "off" (SAM did not help on the calibration set); "uncalibrated" (too few calibration
        images in the whole federation, so SAM stays off); "pooled" (too few here, so the
        federation's calibration was used, and SAM is off if fuse_weight is 1); or "unused" (the
        method or the round mines nothing).
    fuse_weight: weight of the U-Net++ in the fused masks.
    """

    kept: int = 0
    dropped: int = 0
    empty: int = 0
    gate: str = "unused"
    fuse_weight: float = 1.0
    mean_agreement: float = 0.0
    mean_quality: float = 0.0


@dataclass(frozen=True)
class Update:
    """A site's reply to `TrainTask`.

    labelled, pseudo_labelled: images that it trained on. A site that had nothing to train on
    sends 0 for both and the weights that it was sent.
    """

    round: int
    weights: Weights
    labelled: int
    pseudo_labelled: int
    loss: float
    seconds: float
    mined: Mined = field(default_factory=Mined)


@dataclass(frozen=True)
class EvaluateTask:
    """Evaluate `weights`, the global model after round `round` of `rounds`, on the site's test
    set, and measure pseudo-labels on its calibration set.
    """

    round: int
    rounds: int
    plan: Plan
    weights: Weights


@dataclass(frozen=True)
class Scores:
    """A site's reply to `EvaluateTask`: sums over its test set and over its calibration set.

    hd95: 95 % Hausdorff distance in pixels of the original image.
    """

    round: int
    test_images: int
    dice: float
    iou: float
    hd95: float
    calibration: Calibration = field(default_factory=Calibration)


Task: TypeAlias = TrainTask | EvaluateTask
Reply: TypeAlias = Update | Scores
