"""Tune SAM's mask decoder on the site's labels, through prompts like those it will meet.

SAM's decoder is small (some 4 million parameters) and its image embeddings are on disk, so a step
costs under a second. It learns what a lesion's outline is at this site, which no prompt
can say. What it is asked with are truths made worse, as a U-Net++ would see them: outlines that
wander, leak and break up. The U-Net++'s own masks of these images would not do: it has been trained
on them, so SAM would learn to repeat what it is shown. And it is asked about places without a lesion,
for a U-Net++ will ask about such too, and SAM is to say no.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Generator, Tensor, nn

from knowmine.client.mining.prompts import CLEAR, ask
from knowmine.client.mining.refine import joined
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.model import Prompts, Tunable, run_decoder
from knowmine.client.training.losses import segmentation_losses
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Progress

LEARNING_RATE = 2e-4
BATCH = 2
"""Images a step. More are no faster on a CPU, and fewer steps."""
BOX_JITTER = 0.1
"""Each side of a box moves by up to this share of its length."""


@dataclass(frozen=True)
class Lessons:
    """What the decoder learns from: N labelled images.

    embeddings: (N, 256, 64, 64) float16, SAM's; truth: (N, C, S, S) bool, model frame.
    """

    embeddings: Tensor
    truth: Tensor
    frames: Sequence[Frames]

    def __len__(self) -> int:
        return len(self.frames)


def tune(
    sam: Tunable,
    lessons: Lessons,
    *,
    steps: int,
    dense: bool = True,
    false_alarms: float,
    generator: Generator,
    progress: Progress,
) -> nn.Module:
    """A copy of SAM's decoder that has learned from `BATCH` labelled images so many times more.

    dense: ask with mask prompts too, as SAM will be asked.
    false_alarms: chance that an image's prompts ask about a place without a lesion too, to which the
        right answer is an empty mask; see `false_alarm`.

    Its single answer (mask 0) is what is trained, with SAM's guess of that mask's IoU; the three
    others are for prompts that could mean several things, and ours do not.
    Raises `RunFailed` when the loss stops being a number.
    """
    decoder: nn.Module = copy.deepcopy(sam.mask_decoder).requires_grad_(True).train()
    if not len(lessons) or not steps:
        return decoder.requires_grad_(False).eval()
    optimiser = torch.optim.AdamW(decoder.parameters(), LEARNING_RATE, weight_decay=1e-2)
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    progress.start("tuning SAM", steps)
    for step, rows in enumerate(_batches(len(lessons), steps, generator)):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * _rate(step, steps)
        question = _question(lessons, rows.tolist(), rng, dense, false_alarms)
        if question is not None:
            loss = _loss(sam, decoder, *question)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimiser.step()
            if not math.isfinite(loss.item()):
                raise RunFailed(
                    f"tuning SAM's decoder gave a loss of {loss.item()}; look for damaged masks, "
                    "or set mining.tune_steps to 0"
                )
        progress.advance()
    progress.done()
    return decoder.requires_grad_(False).eval()


def _batches(count: int, steps: int, generator: Generator) -> list[Tensor]:
    """Rows of `count` images for each step: all of them in a new order, pass after pass."""
    passes = math.ceil(steps / math.ceil(count / BATCH))
    rows = [torch.split(torch.randperm(count, generator=generator), BATCH) for _ in range(passes)]
    return [batch for batches in rows for batch in batches][:steps]


def degrade(truth: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    """Probabilities (S, S) float32 as a U-Net++ might give them for `truth` (S, S) bool.

    The truth's signed distance, moved by a field of smooth noise whose reach goes with the size of
    the objects, so that outlines wander, thin parts break off and neighbours merge.
    """
    if not truth.any():
        return np.zeros(truth.shape, np.float32)
    inside = ndimage.distance_transform_edt(truth)
    distance = inside - ndimage.distance_transform_edt(~truth)
    radius = float(inside.max())
    wander = np.zeros(truth.shape)
    for reach in (0.3, 0.9):  # shares of the radius: ragged edges, then whole parts
        noise = ndimage.gaussian_filter(rng.standard_normal(truth.shape), max(1.0, reach * radius))
        wander = wander + rng.uniform(0, 0.45) * radius * noise / max(float(noise.std()), 1e-9)
    softness = max(0.5, rng.uniform(0.03, 0.25) * radius)
    moved = distance + wander + rng.uniform(-0.25, 0.2) * radius
    probabilities: NDArray[np.float32] = (
        1 / (1 + np.exp(-(moved / softness).clip(-30, 30)))
    ).astype(np.float32)
    return probabilities


def false_alarm(
    lesions: NDArray[np.bool_], shape: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Probabilities (S, S) float32 as a U-Net++ might give them where there is no lesion.

    It takes folds and reflections for lesions too, and a SAM that has only met questions about lesions
    outlines those as well. `shape` (S, S) bool, another image's objects, is turned, moved and made
    worse; a part that then overlaps `lesions` (S, S) bool, of whatever class, is no false alarm and
    is left out.
    """
    turned = np.rot90(shape, int(rng.integers(4)))
    moved = np.roll(turned, rng.integers(0, len(shape), 2), (0, 1))
    probabilities = degrade(moved, rng)
    parts, _ = ndimage.label(probabilities > CLEAR)
    overlapping = np.unique(parts[lesions])
    probabilities[np.isin(parts, overlapping[overlapping > 0])] = 0
    return probabilities


def _question(
    lessons: Lessons,
    rows: list[int],
    rng: np.random.Generator,
    dense: bool,
    false_alarms: float,
) -> tuple[Tensor, Prompts, Tensor] | None:
    """Embeddings, prompts and the masks (K, 1, 256, 256) wanted of them, for some images."""
    asked, wanted = [], []
    for row in rows:
        truth = lessons.truth[row].numpy()
        worse = np.stack([degrade(plane, rng) for plane in truth])
        if false_alarms and rng.random() < false_alarms:
            other = lessons.truth[int(rng.integers(len(lessons)))].numpy()
            anywhere: NDArray[np.bool_] = np.any(truth, axis=0)
            worse = np.maximum(worse, [false_alarm(anywhere, shape, rng) for shape in other])
        frames = lessons.frames[row]
        question = ask(worse, frames, dense=dense)
        asked.append(question)
        if question.prompts is not None:
            targets = np.stack(
                [
                    _meant(truth[c], region)
                    for c, region in zip(question.classes, question.regions.numpy(), strict=True)
                ]
            )
            planes = torch.from_numpy(targets.astype(np.float32))[:, None]
            wanted.append(frames.model_to_low_res(planes, fill=0.0) > 0.5)
    prompts = joined(asked)
    if prompts is None:
        return None
    assert prompts.boxes is not None, "the U-Net++'s prompts have boxes"
    sides = (prompts.boxes[:, 2:] - prompts.boxes[:, :2]).repeat(1, 2)
    jitter = torch.from_numpy(rng.uniform(-BOX_JITTER, BOX_JITTER, sides.shape)).float()
    prompts = replace(prompts, boxes=prompts.boxes + sides * jitter)
    return lessons.embeddings[rows][prompts.image_of].float(), prompts, torch.cat(wanted).float()


def _meant(truth: NDArray[np.bool_], region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """All of the true objects that `region` touches: a part that broke off means the whole."""
    labels, _ = ndimage.label(truth)
    touched = np.unique(labels[region & truth])
    meant: NDArray[np.bool_] = np.isin(labels, touched[touched > 0])
    return meant


def _loss(
    sam: Tunable, decoder: nn.Module, images: Tensor, prompts: Prompts, wanted: Tensor
) -> Tensor:
    device = sam.compute.device
    images, prompts, wanted = images.to(device), prompts.to(device), wanted.to(device)
    decoded = run_decoder(sam.prompt_encoder, decoder, images, prompts, sam.compute)
    logits = decoded.logits[:, :1]
    masks = segmentation_losses(logits, wanted).mean()
    seen = logits.detach() > 0
    both = (seen & (wanted > 0.5)).sum((1, 2, 3))
    either = (seen | (wanted > 0.5)).sum((1, 2, 3))
    return masks + (decoded.iou[:, 0] - both / either.clamp_min(1)).square().mean()


def _rate(step: int, steps: int) -> float:
    """Part of the peak learning rate: a short climb, then a cosine to nothing."""
    climb = min(1.0, (step + 1) / max(1, steps // 10))
    return climb * (1 + math.cos(math.pi * step / steps)) / 2
