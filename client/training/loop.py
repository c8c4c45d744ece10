"""Train for one round on labelled and pseudo-labelled images."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from knowmine.client.device import Compute
from knowmine.client.training.augmentation import augment, cut_mix
from knowmine.client.training.losses import proximal_term, segmentation_losses
from knowmine.client.training.teacher import Teacher
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Progress
from knowmine.shared.settings import MiningSettings, TrainingSettings

RATE_RISE_STEPS = 10
"""Steps in which the learning rate rises in each round: AdamW starts without moments."""
LAST_RATE_FRACTION = 0.02
"""Fraction of the peak learning rate at the end of a run."""
WEIGHT_DECAY = 1e-2
"""AdamW's default (Loshchilov and Hutter 2019)."""
MAX_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Examples:
    """N images with targets to learn, model frame.

    images: (N, 3, S, S) uint8; targets: (N, C, S, S) uint8, 255 for certain foreground;
    weights: (N,) float32, how much each counts.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Some rows' images and targets as floats in [0, 1], and their weights."""
        return self.images[rows] / 255, self.targets[rows] / 255, self.weights[rows]

    @classmethod
    def none(cls, classes: int, image_px: int) -> "Examples":
        """No examples, in the shapes of a model."""
        return cls(
            torch.zeros((0, 3, image_px, image_px), dtype=torch.uint8),
            torch.zeros((0, classes, image_px, image_px), dtype=torch.uint8),
            torch.zeros(0),
        )


def train(
    model: nn.Module,
    labelled: Examples,
    pseudo_labelled: Examples,
    settings: TrainingSettings,
    mining: MiningSettings,
    *,
    part: tuple[float, float],
    generator: Generator,
    compute: Compute,
    progress: Progress,
) -> float:
    """Train `model` in place for one round and return its mean loss.

    part: where in the run this round begins and ends, in [0, 1]; the learning rate falls along one
        cosine over all of it.
    Raises `RunFailed` when the loss stops being a number.
    """
    model.to(compute.device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in parameters] if settings.fedprox else []
    optimiser = torch.optim.AdamW(
        parameters, settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
    )
    schedule = LambdaLR(optimiser, lambda step: _rate(step, settings.steps, part))
    batches = _Batches(labelled, pseudo_labelled, settings.batch, mining.fraction, generator)
    teacher = (
        Teacher(model, mining.renew, compute) if mining.renew and len(pseudo_labelled) else None
    )
    total = 0.0
    progress.start("training", settings.steps)
    for step in range(settings.steps):
        images, targets, weights, pseudo = batches.next()
        if teacher and pseudo.any():
            targets[pseudo] = teacher.renew(images[pseudo], targets[pseudo])
        strong = pseudo & (torch.rand(len(pseudo), generator=generator) < mining.strong)
        images, targets = augment(
            images, targets, generator, orientation=settings.orientation, strong=strong
        )
        if mining.cut_mix and pseudo.any():
            images, targets = cut_mix(images, targets, generator, pseudo, mining.cut_mix)
        with compute.autocast():
            logits = model(images.to(compute.device))
        losses = segmentation_losses(logits, targets.to(compute.device))
        weights = weights.to(compute.device)
        loss = (losses * weights).sum() / weights.sum().clamp_min(1e-6)
        if settings.fedprox:
            loss = loss + settings.fedprox * proximal_term(parameters, anchors)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        if teacher:
            teacher.follow(model)
        total += loss.item()
        if not math.isfinite(total):
            raise RunFailed(
                f"the training loss became {loss.item()} at step {step + 1}; "
                "lower training.learning_rate or look for damaged images"
            )
        progress.advance()
    progress.done()
    return total / settings.steps


def _rate(step: int, steps: int, part: tuple[float, float]) -> float:
    """Fraction of the peak learning rate: a cosine over the run, a short rise in each round."""
    place = part[0] + (part[1] - part[0]) * step / steps
    cosine = LAST_RATE_FRACTION + (1 - LAST_RATE_FRACTION) * (1 + math.cos(math.pi * place)) / 2
    return cosine * min(1.0, (step + 1) / RATE_RISE_STEPS)


class _Batches:
    """Endless batches; each image of a kind comes once before any comes twice."""

    def __init__(
        self,
        labelled: Examples,
        pseudo: Examples,
        batch: int,
        fraction: float,
        generator: Generator,
    ) -> None:
        # Few pseudo-labels would otherwise be repeated often to fill their part of each batch.
        of_all = len(pseudo) / max(1, len(labelled) + len(pseudo))
        self.batch, self.drawn = batch, 0
        # Each batch has a labelled image, if there are any.
        self.fraction = min(fraction, of_all, 1 - 1 / batch) if len(labelled) else of_all
        self.labelled, self.pseudo = labelled, pseudo
        self.rows = _Shuffled(len(labelled), generator), _Shuffled(len(pseudo), generator)

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, targets, weights and which of them are pseudo-labelled."""
        # The fraction is kept over all batches together and not rounded in each.
        before, self.drawn = round(self.drawn * self.fraction), self.drawn + self.batch
        n_pseudo = round(self.drawn * self.fraction) - before
        n_labelled = self.batch - n_pseudo
        parts = [
            examples.at(rows.take(n))
            for examples, rows, n in (
                (self.labelled, self.rows[0], n_labelled),
                (self.pseudo, self.rows[1], n_pseudo),
            )
            if n
        ]
        images, targets, weights = (torch.cat(column) for column in zip(*parts, strict=True))
        return images, targets, weights, torch.arange(len(images)) >= n_labelled


class _Shuffled:
    def __init__(self, n: int, generator: Generator) -> None:
        self.n, self.generator, self.queue = n, generator, torch.empty(0, dtype=torch.long)

    def take(self, count: int) -> Tensor:
        while len(self.queue) < count:
            self.queue = torch.cat([self.queue, torch.randperm(self.n, generator=self.generator)])
        rows, self.queue = self.queue[:count], self.queue[count:]
        return rows
