"""Turn the U-Net++'s probabilities into prompts for SAM: boxes, points, logits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Prompts

MIN_AREA = 0.001
"""Smallest component that is prompted, as a fraction of the image; smaller ones are specks."""
MAX_COMPONENTS = 5
"""Components prompted per image and class, the largest first; more are noise."""
MARGIN = 0.05
"""A box is widened by this fraction of its sides: the U-Net++ tends to draw lesions too small."""
AROUND = 0.25
"""Negative points lie in the box widened by this fraction."""
NEGATIVES = 2
"""Negative points per component at most."""
SURE, CLEAR = 0.8, 0.1
"""Positive points lie where the probability is above SURE, negative ones below CLEAR."""
LOGIT = 6.0
"""Mask prompts are clipped to plus and minus this; SAM's own logits seldom go further."""


@dataclass(frozen=True)
class ImagePrompts:
    """Prompts for one image, one for each of K components.

    prompts: K prompts in SAM's frames; None for an image without a component.
    regions: (K, S, S) bool, the component behind each prompt, model frame.
    classes: (K,) the class of each component, counted from 0.
    """

    prompts: Prompts | None
    regions: Tensor
    classes: NDArray[np.int64]

    def uncovered(
        self, probabilities: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """(C, S, S) bool: foreground of `probabilities` (C, S, S) that no valid mask answers.

        valid: (K,), the prompts for which SAM gave a mask. Specks, components beyond
        MAX_COMPONENTS and invalid masks say nothing about the foreground below them.
        """
        foreground = probabilities > 0.5
        for c, region in zip(self.classes[valid], self.regions.numpy()[valid], strict=True):
            foreground[c] &= ~region
        return foreground


def prompts_for(
    probabilities: NDArray[np.float32], frames: Frames, *, dense: bool = True
) -> ImagePrompts:
    """A prompt for every component of `probabilities` (C, S, S) float32 in [0, 1], model frame.

    dense: add the probabilities as a mask prompt to box and points.
    An image without a component gives no prompts.
    """
    found = [
        (c, component) for c, plane in enumerate(probabilities) for component in components(plane)
    ]
    size = probabilities.shape[-1]
    if not found:
        none = torch.zeros((0, size, size), dtype=torch.bool)
        return ImagePrompts(None, none, np.zeros(0, np.int64))
    boxes, points, labels, logits = [], [], [], []
    for c, component in found:
        plane = probabilities[c]
        boxes.append(box_of(component))
        xy, label = points_of(component, plane)
        points.append(xy)
        labels.append(label)
        logits.append(logits_of(component, plane))
    masks = torch.from_numpy(np.stack(logits))[:, None] if dense else None
    corners = torch.from_numpy(np.stack(boxes)).view(-1, 2, 2)
    prompts = Prompts(
        image_of=torch.zeros(len(found), dtype=torch.int64),
        boxes=frames.to_sam(corners).view(-1, 4),
        points=frames.to_sam(torch.from_numpy(np.stack(points))),
        point_labels=torch.from_numpy(np.stack(labels)),
        masks=None if masks is None else frames.model_to_low_res(masks, fill=-LOGIT),
    )
    return ImagePrompts(
        prompts,
        torch.from_numpy(np.stack([component for _, component in found])),
        np.array([c for c, _ in found]),
    )


def joined(images: Sequence[ImagePrompts]) -> Prompts | None:
    """The prompts of several images as one batch; None if there are none."""
    parts = [
        replace(one.prompts, image_of=torch.full_like(one.prompts.image_of, i))
        for i, one in enumerate(images)
        if one.prompts is not None
    ]
    if not parts:
        return None
    boxes = [p.boxes for p in parts if p.boxes is not None]
    masks = [p.masks for p in parts if p.masks is not None]
    return Prompts(
        image_of=torch.cat([p.image_of for p in parts]),
        boxes=torch.cat(boxes) if boxes else None,
        points=torch.cat([p.points for p in parts]),
        point_labels=torch.cat([p.point_labels for p in parts]),
        masks=torch.cat(masks) if masks else None,
    )


def components(plane: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """Connected parts of `plane` (S, S) above one half that are large enough to prompt, largest first."""
    labels, count = ndimage.label(plane > 0.5)
    if not count:
        return []
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")[:MAX_COMPONENTS]
    return [labels == i + 1 for i in order if areas[i] >= MIN_AREA * plane.size]


def box_of(component: NDArray[np.bool_], margin: float = MARGIN) -> NDArray[np.float32]:
    """Widened box (4,) float32 xyxy round a component (S, S), model frame, inside the image.

    Edges, not centres: a component of one pixel at (3, 5) is 2.5 to 3.5 wide before widening.
    """
    ys, xs = np.nonzero(component.any(1))[0], np.nonzero(component.any(0))[0]
    x0, x1, y0, y1 = xs[0] - 0.5, xs[-1] + 0.5, ys[0] - 0.5, ys[-1] + 0.5
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    box = np.array([x0 - dx, y0 - dy, x1 + dx, y1 + dy], np.float32)
    height, width = component.shape
    return box.clip(-0.5, np.array([width, height, width, height], np.float32) - 0.5)


def points_of(
    component: NDArray[np.bool_], plane: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """One positive point inside, up to NEGATIVES outside: (P, 2) xy model frame, (P,) labels.

    The positive one is the deepest point of the sure part. Negatives are the deepest points of
    what is clearly background in the widened box, far from each other; a missing one is
    labelled -1, which SAM takes as no point.
    """
    sure = component & (plane > SURE)
    xy, label = [_deepest(sure if sure.any() else component)], [1.0]
    x0, y0, x1, y1 = box_of(component, AROUND)
    ring = np.zeros_like(component)
    ring[max(0, int(y0 + 0.5)) : int(y1 + 1.5), max(0, int(x0 + 0.5)) : int(x1 + 1.5)] = True
    clear = ring & (plane < CLEAR)
    reach = max(3.0, 0.25 * max(x1 - x0, y1 - y0))
    rows, columns = np.ogrid[: plane.shape[0], : plane.shape[1]]
    for _ in range(NEGATIVES):
        if not clear.any():
            xy.append((0.0, 0.0))
            label.append(-1.0)
            continue
        x, y = _deepest(clear)
        xy.append((x, y))
        label.append(0.0)
        clear &= (columns - x) ** 2 + (rows - y) ** 2 > reach**2
    return np.array(xy, np.float32), np.array(label, np.float32)


def logits_of(component: NDArray[np.bool_], plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """The plane's logits (S, S) float32, clipped, with all other components set to background."""
    low = 1 / (1 + np.exp(LOGIT))
    alone = np.where(component | (plane <= 0.5), plane, low).clip(low, 1 - low)
    logits: NDArray[np.float32] = np.log(alone / (1 - alone)).astype(np.float32)
    return logits


def _deepest(region: NDArray[np.bool_]) -> tuple[float, float]:
    """(x, y) of the pixel of `region` that is farthest from its edge; the border is an edge."""
    # What lies outside the box of the region is no part of it: the nearest of it borders on the box.
    rows, columns = ndimage.find_objects(region.view(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(region[rows, columns], 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(columns.start + x), float(rows.start + y)
