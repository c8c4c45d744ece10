"""Turn the U-Net++'s probabilities into prompts that SAM understands: boxes, points, logits."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Prompts

MIN_AREA = 0.001
"""Smallest component that is prompted, as a share of the image; smaller ones are specks."""
MAX_COMPONENTS = 5
"""Components prompted per image and class, the largest first; more are noise."""
MARGIN = 0.05
"""A box is widened by this share of its sides: U-Net++ tends to see lesions too small."""
AROUND = 0.25
"""Negative points are looked for in the box widened by this share."""
NEAR = 0.2
"""Components closer than this share of the image's side may be parts of one object."""
NEGATIVES = 2
"""Negative points per component at most."""
SURE, CLEAR = 0.8, 0.1
"""Positive points lie where the probability is above SURE, negative ones below CLEAR."""
LOGIT = 6.0
"""Mask prompts are clipped to plus and minus this; SAM's own logits seldom go further."""


@dataclass(frozen=True)
class Asked:
    """What SAM is asked about one image: K components of its classes.

    prompts: K prompts in SAM's frames, or None when there is nothing to ask about.
    regions: (K, S, S) bool, the component behind each prompt, model frame.
    classes: (K,) the class each belongs to, counted from 0.
    joins: rows of prompts that ask about several near components as one object, each with the
        rows that ask about them one by one; of the two answers the better is kept.
    """

    prompts: Prompts | None
    regions: Tensor
    classes: NDArray[np.int64]
    joins: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def left_open(
        self, probabilities: NDArray[np.float32], heard: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """(C, S, S) bool: foreground of `probabilities` on which SAM has said nothing.

        Specks, components past the largest, a class without a component, prompts that were not
        `heard` (K,): there SAM's silence is not a no.
        """
        foreground = probabilities > 0.5
        for c, region in zip(self.classes[heard], self.regions.numpy()[heard], strict=True):
            foreground[c] &= ~region
        return foreground


def ask(
    probabilities: NDArray[np.float32], frames: Frames, *, dense: bool = True, join: bool = False
) -> Asked:
    """Prompts for every component of `probabilities` (C, S, S) float32 in [0, 1], model frame.

    dense: prompt with the probabilities as a mask too, beside the box and points.
    join: ask about near components as one object too; a U-Net++ often sees one as several.
    An image without a component gives no prompts: SAM is never asked about an empty box.
    """
    found = [
        (c, component) for c, plane in enumerate(probabilities) for component in components(plane)
    ]
    size = probabilities.shape[-1]
    joins = []
    for members in near(found) if join else ():
        joins.append((len(found), members))
        union = np.logical_or.reduce([found[row][1] for row in members])
        found.append((found[members[0]][0], union))
    if not found:
        return Asked(None, torch.zeros((0, size, size), dtype=torch.bool), np.zeros(0, np.int64))
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
    return Asked(
        prompts,
        torch.from_numpy(np.stack([component for _, component in found])),
        np.array([c for c, _ in found]),
        tuple(joins),
    )


def components(plane: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """Connected parts of `plane` (S, S) above one half that are worth asking about, largest first."""
    labels, count = ndimage.label(plane > 0.5)
    if not count:
        return []
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")[:MAX_COMPONENTS]
    return [labels == i + 1 for i in order if areas[i] >= MIN_AREA * plane.size]


def near(found: list[tuple[int, NDArray[np.bool_]]]) -> list[tuple[int, ...]]:
    """Rows of `found` (class, component) that lie close together in one class, group by group."""
    groups = []
    for c in sorted({c for c, _ in found}):
        rows = [row for row, (own, _) in enumerate(found) if own == c]
        reach = max(1.0, NEAR * found[rows[0]][1].shape[-1] / 2)
        grown = [ndimage.distance_transform_edt(~found[row][1]) <= reach for row in rows]
        labels, count = ndimage.label(np.logical_or.reduce(grown))
        place = [int(labels[found[row][1]][0]) for row in rows]
        for label in range(1, count + 1):
            members = tuple(row for row, at in zip(rows, place, strict=True) if at == label)
            if len(members) > 1:
                groups.append(members)
    return groups


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
    labelled -1, which SAM reads as no point.
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
    """The plane's logits (S, S) float32, clipped, with all other components silenced."""
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
