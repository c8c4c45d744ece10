"""Let SAM answer the prompts: pick one of its masks, ask again with it, gather it by class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from knowmine.client.mining.prompts import LOGIT, Asked
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Prompts, Sam

STILL = 0.98
"""A mask whose IoU with the one before is above this has settled; asking again is wasted."""


@dataclass(frozen=True)
class Refined:
    """SAM's opinion of one image.

    masks: (C, S, S) float32 in [0, 1], model frame; 0 where nothing was asked.
    iou, stability: means over the image's prompts, weighted by area, in [0, 1]; SAM's own
        estimate of its IoU, and how little the mask changes with its threshold.
    heard: (K,) bool, False for prompts to which SAM gave no number.
    """

    masks: Tensor
    iou: float
    stability: float
    heard: Tensor


@torch.inference_mode()
def refine(
    sam: Sam,
    embeddings: Tensor,
    asked: Sequence[Asked],
    frames: Sequence[Frames],
    *,
    classes: int,
    by_agreement: bool,
    refinements: int,
) -> list[Refined]:
    """SAM's masks for several images, in as few decoder calls as refinement takes.

    embeddings: (B, 256, 64, 64); asked, frames: one for each of the B images.
    by_agreement: choose among SAM's masks by agreement and stability too, not by SAM's word alone.
    refinements: times at most that SAM is prompted again with its own logits.
    Where SAM says NaN or infinity, it has no opinion: its mask is empty, and not `heard`.
    """
    prompts = joined(asked)
    if prompts is None:
        return [_gather(a, f, None, classes) for a, f in zip(asked, frames, strict=True)]
    best = _best_of(sam, embeddings, prompts, asked, frames, by_agreement)
    for _ in range(refinements):
        again = replace(prompts, masks=best.low_res.clamp(-LOGIT, LOGIT)[:, None])
        moved = _best_of(sam, embeddings, again, asked, frames, by_agreement)
        still = bool((_iou(moved.logits > 0, best.logits > 0) > STILL).all())
        best = best.or_better(moved)
        if still:
            break
    answers, start = [], 0
    for a, f in zip(asked, frames, strict=True):
        rows = slice(start, start := start + len(a.classes))
        answers.append(_gather(a, f, best.rows(rows), classes))
    return answers


@dataclass(frozen=True)
class _Best:
    """One mask per prompt: (K, 256, 256) and (K, S, S) logits, what speaks for it and whether it is
    an answer at all, (K,).
    """

    low_res: Tensor
    logits: Tensor
    iou: Tensor
    stability: Tensor
    score: Tensor
    heard: Tensor

    def rows(self, rows: slice) -> "_Best":
        return _Best(*(tensor[rows] for tensor in self._tensors()))

    def or_better(self, other: "_Best") -> "_Best":
        """Prompt by prompt, the one with the higher score."""
        wins = other.score > self.score
        pairs = zip(self._tensors(), other._tensors(), strict=True)
        return _Best(*(torch.where(wins.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in pairs))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.low_res, self.logits, self.iou, self.stability, self.score, self.heard


def joined(asked: Sequence[Asked]) -> Prompts | None:
    """The prompts of several images as one batch, or None when there are none."""
    parts = [
        replace(a.prompts, image_of=torch.full_like(a.prompts.image_of, i))
        for i, a in enumerate(asked)
        if a.prompts is not None
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


def _best_of(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    asked: Sequence[Asked],
    frames: Sequence[Frames],
    by_agreement: bool,
) -> _Best:
    """Of SAM's several masks for each prompt, the one with the best sum of three opinions:
    agreement with the U-Net++'s component, SAM's predicted IoU, and stability; without
    `by_agreement`, the one that SAM itself thinks best.
    """
    decoded = sam.decode(embeddings, prompts)
    heard = decoded.logits.isfinite().all((1, 2, 3)) & decoded.iou.isfinite().all(1)
    low_res = torch.nan_to_num(decoded.logits.float(), nan=-LOGIT, posinf=LOGIT, neginf=-LOGIT)
    iou = torch.nan_to_num(decoded.iou.float()).clamp(0, 1) * heard[:, None]
    parts, start = [], 0
    for a, f in zip(asked, frames, strict=True):
        rows = slice(start, start := start + len(a.classes))
        if not len(a.classes):
            continue
        logits = f.low_res_to_model(low_res[rows])
        # As in segment-anything: IoU of the masks at a threshold one above and one below.
        stability = (logits > 1).sum((2, 3)) / (logits > -1).sum((2, 3)).clamp_min(1)
        agreement = _dice(logits > 0, a.regions[:, None])
        score = agreement + iou[rows] + stability if by_agreement else iou[rows]
        pick = score.argmax(1)
        one = torch.arange(len(pick))
        parts.append(
            _Best(
                low_res[rows][one, pick],
                logits[one, pick],
                iou[rows][one, pick],
                stability[one, pick],
                score[one, pick],
                heard[rows],
            )
        )
    return _Best(
        *(torch.cat(column) for column in zip(*(p._tensors() for p in parts), strict=True))
    )


def _gather(asked: Asked, frames: Frames, best: _Best | None, classes: int) -> Refined:
    """The masks of one image's prompts, joined class by class."""
    masks = torch.zeros((classes, frames.model_px, frames.model_px))
    if best is None or not len(asked.classes):
        return Refined(masks, 0.0, 0.0, torch.zeros(0, dtype=torch.bool))
    area = asked.regions.sum((1, 2)).float()
    for union, parts in asked.joins:
        rows = list(parts)
        apart = (best.score[rows] * area[rows]).sum() / area[rows].sum()
        area[rows if best.score[union] > apart else [union]] = 0  # the worse answer is not heard
    for row in area.nonzero()[:, 0].tolist():
        c = asked.classes[row]
        masks[c] = torch.maximum(masks[c], best.logits[row].sigmoid())
    share = area / area.sum()
    iou, stability = float((best.iou * share).sum()), float((best.stability * share).sum())
    return Refined(masks, iou, stability, best.heard)


def _dice(a: Tensor, b: Tensor) -> Tensor:
    both, size = (a & b).sum((-2, -1)), a.sum((-2, -1)) + b.sum((-2, -1))
    return torch.where(size > 0, 2 * both / size.clamp_min(1), 1.0)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    both, either = (a & b).sum((-2, -1)), (a | b).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)
