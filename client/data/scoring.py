"""Score predictions against hidden masks, which only this file may open.

Hidden masks are those of test images, and those of images that the run counts as unlabelled. Only
mean scores leave this file, and pictures for a simulation's own report. No step that trains,
prompts, fuses or estimates quality calls it. One test checks the source of all other files for
this rule, and another records which files are opened.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from knowmine.client.data.dataset import Case, HiddenMasks
from knowmine.client.data.images import MAX_IMAGE_PX, image_size, read_mask, resize_mask
from knowmine.client.data.metrics import dice, hd95, iou, mean_over_classes
from knowmine.shared.errors import DataError

Predict: TypeAlias = Callable[[Case], NDArray[np.float32]]
"""From a case to probabilities (C, S, S) float32 in [0, 1], model frame."""

MEASURES = {"dice": dice, "iou": iou, "hd95": hd95}


class Scorer:
    """Opens the hidden masks of one site and scores predictions against them."""

    def __init__(
        self, hidden: HiddenMasks, classes: int, *, max_image_px: int = MAX_IMAGE_PX
    ) -> None:
        self._paths = dict(hidden.paths)
        self._classes = classes
        self._max_image_px = max_image_px
        self._reasons: dict[str, str] = {}

    @property
    def left_out(self) -> tuple[str, ...]:
        """The test images that could not be scored so far, each once, as "case id: reason"."""
        return tuple(f"{case_id}: {reason}" for case_id, reason in self._reasons.items())

    def score_test(self, cases: Iterable[Case], predict: Predict) -> dict[str, dict[str, float]]:
        """Dice, IoU and hd95 of each case, in its original frame, by case id.

        Probabilities are resized, not masks, so that the border stays where the model put it. Cases
        without a usable hidden mask get no score and appear in `left_out`.
        """
        scores = {}
        for case in cases:
            if not self._usable(case):
                continue
            truth = self._read(case.case_id)
            if truth is None:
                continue
            height, width = truth.shape
            predicted = label_map(resize_probabilities(predict(case), height, width))
            scores[case.case_id] = {
                name: mean_over_classes(measure, predicted, truth, self._classes)
                for name, measure in MEASURES.items()
            }
        return scores

    def check(self, cases: Iterable[Case]) -> tuple[str, ...]:
        """Check the headers of the cases and return `left_out`; fast enough to run before a round."""
        for case in cases:
            self._usable(case)
        return self.left_out

    def truth(self, case_id: str, px: int) -> NDArray[np.uint8] | None:
        """The hidden mask (px, px) uint8, model frame; None if it cannot be read.

        For a simulation's report only; never for training.
        """
        mask = self._read(case_id) if case_id in self._paths else None
        return None if mask is None else resize_mask(mask, px)

    def _usable(self, case: Case) -> bool:
        """Whether the mask exists and has the image's size; the reason is recorded if not."""
        case_id = case.case_id
        if case_id in self._reasons:
            return False
        if case_id not in self._paths:
            self._reasons[case_id] = "has no mask to score against"
            return False
        try:
            mask = image_size(self._paths[case_id], max_image_px=self._max_image_px)
            image = image_size(case.image, max_image_px=self._max_image_px)
        except DataError as error:
            self._leave_out(case_id, error)
            return False
        if mask != image:
            self._reasons[case_id] = (
                f"its mask is {mask[1]}x{mask[0]} pixels and its image {image[1]}x{image[0]}; "
                "expected equal sizes, so export the mask again"
            )
        return mask == image

    def _read(self, case_id: str) -> NDArray[np.uint8] | None:
        path = self._paths[case_id]
        try:
            return read_mask(path, self._classes, max_image_px=self._max_image_px)
        except DataError as error:
            self._leave_out(case_id, error)
            return None

    def _leave_out(self, case_id: str, error: DataError) -> None:
        self._reasons[case_id] = str(error).replace(f"{self._paths[case_id]}: ", "its mask ")


def resize_probabilities(
    probabilities: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    """Resize (C, S, S) float32, model frame, to (C, height, width), original frame; bilinear."""
    return np.stack(
        [
            np.asarray(
                Image.fromarray(np.asarray(channel, np.float32)).resize(
                    (width, height), Image.Resampling.BILINEAR
                )
            )
            for channel in probabilities
        ]
    )


def label_map(probabilities: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, H, W) in [0, 1] to (H, W) uint8: the most probable class if above 1/2, else 0."""
    likeliest = probabilities.argmax(0).astype(np.uint8) + np.uint8(1)
    return np.where(probabilities.max(0) > 0.5, likeliest, np.uint8(0))
