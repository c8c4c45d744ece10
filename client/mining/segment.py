"""SAM segments images from their prompts: one mask a prompt, joined by class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from knowmine.client.mining.prompts import LOGIT, ImagePrompts, joined
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Prompts, Sam


@dataclass(frozen=True)
class SamMasks:
    """SAM's masks of one image with K prompts.

    masks: (C, S, S) float32 in [0, 1], model frame; 0 where nothing was prompted.
    iou, stability: means over the prompts, weighted by area, in [0, 1]: SAM's own estimate of its
        IoU, and how little the mask changes with its threshold.
    valid: (K,) bool, False for prompts whose mask held NaN or infinity.
    """

    masks: Tensor
    iou: float
    stability: float
    valid: Tensor


@torch.inference_mode()
def segment(
    sam: Sam,
    embeddings: Tensor,
    images: Sequence[ImagePrompts],
    frames: Sequence[Frames],
    *,
    classes: int,
    by_agreement: bool,
) -> list[SamMasks]:
    """SAM's masks for several images, in one call of its decoder.

    embeddings: (B, 256, G, G); images, frames: one for each of the B images.
    by_agreement: pick among SAM's masks for a prompt by agreement with the component and by
        stability as well, rather than by SAM's own IoU estimate alone.
    A prompt for which SAM gives NaN or infinity has an empty mask and is not `valid`.
    """
    prompts = joined(images)
    if prompts is None:
        return [_gather(one, f, None, classes) for one, f in zip(images, frames, strict=True)]
    best = _best_masks(sam, embeddings, prompts, images, frames, by_agreement)
    found, start = [], 0
    for one, f in zip(images, frames, strict=True):
        rows = slice(start, start := start + len(one.classes))
        found.append(_gather(one, f, best.rows(rows), classes))
    return found


@dataclass(frozen=True)
class _Best:
    """The mask picked for each of K prompts: logits (K, S, S) float32; the rest is (K,)."""

    logits: Tensor
    iou: Tensor
    stability: Tensor
    valid: Tensor

    def rows(self, rows: slice) -> "_Best":
        return _Best(*(tensor[rows] for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.logits, self.iou, self.stability, self.valid


def _best_masks(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    images: Sequence[ImagePrompts],
    frames: Sequence[Frames],
    by_agreement: bool,
) -> _Best:
    """Of SAM's masks for each prompt, the one with the highest score; see `segment`."""
    decoded = sam.decode(embeddings, prompts)
    valid = decoded.logits.isfinite().all((1, 2, 3)) & decoded.iou.isfinite().all(1)
    low_res = torch.nan_to_num(decoded.logits.float(), nan=-LOGIT, posinf=LOGIT, neginf=-LOGIT)
    iou = torch.nan_to_num(decoded.iou.float()).clamp(0, 1) * valid[:, None]
    parts, start = [], 0
    for one, f in zip(images, frames, strict=True):
        rows = slice(start, start := start + len(one.classes))
        if not len(one.classes):
            continue
        logits = f.low_res_to_model(low_res[rows])
        # As in segment-anything: IoU of the masks at a threshold one above and one below.
        stability = (logits > 1).sum((2, 3)) / (logits > -1).sum((2, 3)).clamp_min(1)
        agreement = _dice(logits > 0, one.regions[:, None])
        score = agreement + iou[rows] + stability if by_agreement else iou[rows]
        pick = score.argmax(1)
        k = torch.arange(len(pick))
        parts.append(_Best(logits[k, pick], iou[rows][k, pick], stability[k, pick], valid[rows]))
    columns = zip(*(part._tensors() for part in parts), strict=True)
    return _Best(*(torch.cat(column) for column in columns))


def _gather(one: ImagePrompts, frames: Frames, best: _Best | None, classes: int) -> SamMasks:
    """The masks of one image's prompts, joined class by class."""
    masks = torch.zeros((classes, frames.model_px, frames.model_px))
    if best is None or not len(one.classes):
        return SamMasks(masks, 0.0, 0.0, torch.zeros(0, dtype=torch.bool))
    for c, logits in zip(one.classes, best.logits, strict=True):
        masks[c] = torch.maximum(masks[c], logits.sigmoid())
    area = one.regions.sum((1, 2)).float()
    weight = area / area.sum()
    iou, stability = float((best.iou * weight).sum()), float((best.stability * weight).sum())
    return SamMasks(masks, iou, stability, best.valid)


def _dice(a: Tensor, b: Tensor) -> Tensor:
    both, size = (a & b).sum((-2, -1)), a.sum((-2, -1)) + b.sum((-2, -1))
    return torch.where(size > 0, 2 * both / size.clamp_min(1), 1.0)
