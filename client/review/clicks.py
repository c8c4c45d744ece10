"""A person's clicks on an image, answered by SAM from the image's embedding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Prompts, Sam

SINGLE = 0
"""The mask that SAM means when several points leave no doubt; see `sam.Decoded`."""


class Click(NamedTuple):
    """A point in pixels of the frame that the person sees; inside: it belongs to the object."""

    x: float
    y: float
    inside: bool


@torch.inference_mode()
def answer_clicks(
    sam: Sam,
    embedding: NDArray[np.float16],
    size: tuple[int, int],
    shown: tuple[int, int],
    clicks: Sequence[Click],
) -> NDArray[np.bool_]:
    """SAM's mask for one object: (h, w) bool in the frame that is shown.

    Args:
        sam: answers on two cores in some tens of milliseconds.
        embedding: (256, 64, 64), of the image whose file has `size`.
        size: (H, W), original frame; its aspect ratio is what SAM saw.
        shown: (h, w) of the frame that the person clicks in.
        clicks: at least one.
    """
    height, width = shown
    frames = Frames(*size, model_px=max(shown))
    # From the frame shown to the square one, pixel centres to pixel centres.
    scale = torch.tensor([max(shown) / width, max(shown) / height])
    xy = (torch.tensor([[c.x, c.y] for c in clicks], dtype=torch.float32) + 0.5) * scale - 0.5
    prompts = Prompts(
        image_of=torch.zeros(1, dtype=torch.int64),
        boxes=None,
        points=frames.to_sam(xy)[None],
        point_labels=torch.tensor([[float(c.inside) for c in clicks]]),
        masks=None,
    )
    decoded = sam.decode(torch.from_numpy(embedding)[None], prompts)
    # One click may mean the whole, a part or a part of that: SAM's own guess decides.
    ambiguous = len(clicks) == 1
    pick = int(decoded.iou[0, 1:].argmax()) + 1 if ambiguous else SINGLE
    square = frames.low_res_to_model(decoded.logits[:, pick : pick + 1])
    logits = F.interpolate(square, size=shown, mode="bilinear", align_corners=False)
    mask: NDArray[np.bool_] = (logits[0, 0] > 0).numpy()
    return mask
