"""What a server asks and what a site answers: typed messages that know no transport.

A round is two questions to each site. `TrainTask`: here is the global model, improve it on
your images. `EvaluateTask`: here is the new global model, how good is it at your site?
Sums rather than means travel, so that the server can pool sites of different sizes exactly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from knowmine.shared.settings import Plan
from knowmine.shared.weights import Weights

PROTOCOL = 1
"""Version of the messages below. Both ends must name the same one."""


@dataclass(frozen=True)
class Calibration:
    """How good pseudo-labels are where the truth is known, as sums over probe images.

    Sums of several sites add up to the sums of their union, so a site whose own probe set is
    too small to judge borrows the federation's.

    images: probe images behind the sums.
    fused: summed Dice of the fused masks, one sum for each weight in `FUSE_WEIGHTS`; the first
        is SAM alone, the last the U-Net++ alone.
    gram, target: X^T X (row by row) and, for each weight in `FUSE_WEIGHTS` one after the other,
        X^T y of the quality judge's linear model: X the `FEATURES`, y the Dice of the mask fused
        with that weight.
    empty, empty_predicted, empty_right: images without any foreground; images in which the
        U-Net++ saw none; images in which it was right to.
    """

    images: int = 0
    fused: tuple[float, ...] = ()
    gram: tuple[float, ...] = ()
    target: tuple[float, ...] = ()
    empty: int = 0
    empty_predicted: int = 0
    empty_right: int = 0

    def __add__(self, other: "Calibration") -> "Calibration":
        """Pool two sites' sums."""
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
    """Sums that were written out as lists and numbers, from the wire or from a record."""
    sums: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return Calibration(**sums)


MIN_CALIBRATION_IMAGES = 8
"""Images needed to calibrate SAM; a site with fewer uses the federation's sums. Fewer scatter by
more than SAM's gain (docs/findings.md)."""

FUSE_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of U-Net++ in the fused mask that a probe set compares; 1 leaves SAM out."""


FEATURES = ("one", "agreement", "sam_iou", "sam_stability", "area_ratio", "expected_dice")
"""What the quality judge knows of a pseudo-label; each in [0, 1]. The last is of an even mix."""


@dataclass(frozen=True)
class Hello:
    """A site introduces itself: its name and how many images it has of each kind."""

    site: str
    protocol: int
    model_digest: str
    labelled: int
    unlabelled: int
    probe: int
    test: int


@dataclass(frozen=True)
class TrainTask:
    """Improve `weights` on the site's images; this is round `round` of `rounds`, counted from 1."""

    round: int
    rounds: int
    plan: Plan
    weights: Weights
    calibration: Calibration = field(default_factory=Calibration)


GATES = ("unused", "on", "off", "unjudged", "borrowed")
"""What a round's gate can say; it travels as its place in this list."""


@dataclass(frozen=True)
class Mined:
    """What a site mined in a round: counts and means only.

    gate: "on", "off" (SAM did not help on the probe set), "unjudged" (too few probe images
        anywhere to tell, so SAM stays off), "borrowed" (too few here, so the federation's judged:
        SAM is off where fuse_weight is 1), or "unused" (the method or the round mines nothing).
    fuse_weight: U-Net++'s share in the fused masks.
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
    """A site's answer to `TrainTask`.

    labelled, pseudo_labelled: images that it trained on. A site that had nothing to train on
    answers with both 0 and the weights that it was sent.
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
    """Score `weights`, the global model after round `round` of `rounds`, on the site's test set,
    and pseudo-labels on its probe set.
    """

    round: int
    rounds: int
    plan: Plan
    weights: Weights


@dataclass(frozen=True)
class Scores:
    """A site's answer to `EvaluateTask`: sums over its test images, and its probe sums.

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
