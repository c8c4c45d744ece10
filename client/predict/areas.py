"""Segment an image and describe the mask: its area, how far two views agree, whether to check it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knowmine.client.data.images import resize_image
from knowmine.client.data.metrics import dice, mean_over_classes
from knowmine.client.data.scoring import label_map, resize_probabilities
from knowmine.client.predict.networks import Network

DOUBT_BELOW = 0.85
"""A mask is flagged below this agreement of the two views; docs/predict.md says what that finds."""


@dataclass(frozen=True)
class Segmented:
    """One image's mask and how certain it is.

    mask: (H, W) uint8, original frame, 0 is background.
    agreement: Dice between the masks of the image and of its mirror image, mean over classes; 1 for
        two empty masks.
    """

    mask: NDArray[np.uint8]
    agreement: float

    @property
    def doubt(self) -> bool:
        """Whether a person should look at this one first."""
        return self.agreement < DOUBT_BELOW

    def area_px(self, value: int) -> int:
        """Pixels of class `value`."""
        return int(np.count_nonzero(self.mask == value))


def segment(network: Network, image: NDArray[np.uint8], px: int) -> Segmented:
    """The mask of an image (H, W, 3) uint8, original frame, from the mean of both mirror views.

    Probabilities are resized, not masks, as for the scores in training. The agreement is computed
    in the model frame, before resizing.
    """
    seen = resize_image(image, px).transpose(2, 0, 1).astype(np.float32) / 255
    logits = network(np.stack([seen, seen[:, :, ::-1]]))
    views = (1 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)
    plain, mirrored = views[0], views[1, :, :, ::-1]
    agreement = mean_over_classes(dice, label_map(plain), label_map(mirrored), len(plain))
    mask = label_map(resize_probabilities((plain + mirrored) / 2, *image.shape[:2]))
    return Segmented(mask, agreement)


def overlay_of(image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image with each class tinted in its colour and outlined: (H, W, 3) uint8."""
    shown = image.copy()
    wash, inner = mask > 0, np.zeros(mask.shape, bool)
    inner[1:-1, 1:-1] = (
        (mask[1:-1, 1:-1] == mask[:-2, 1:-1])
        & (mask[1:-1, 1:-1] == mask[2:, 1:-1])
        & (mask[1:-1, 1:-1] == mask[1:-1, :-2])
        & (mask[1:-1, 1:-1] == mask[1:-1, 2:])
    )
    colours = COLOURS[mask % len(COLOURS)]
    soft, hard = wash & inner, wash & ~inner
    shown[soft] = (image[soft] * np.float32(0.7) + colours[soft] * np.float32(0.3)).astype(np.uint8)
    shown[hard] = colours[hard]
    return shown


# Visible on grey and on tissue, and distinct for colour-blind people (Okabe and Ito 2008).
COLOURS = np.array(
    [[204, 121, 167], [0, 158, 115], [230, 159, 0], [86, 180, 233], [240, 228, 66], [213, 94, 0]],
    np.uint8,
)
