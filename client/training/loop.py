"""One optimiser loop: labels, and pseudo-labels beside them."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from knowmine.client.device import Compute
from knowmine.client.training.augmentation import augment, cut_mix
from knowmine.client.training.losses import proximal_term, segmentation_losses
from knowmine.client.training.teacher import Teacher
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Progress
from knowmine.shared.settings import TrainingSettings

WARMUP_STEPS = 10
"""Steps in which the learning rate climbs anew each round: AdamW starts without moments."""


@dataclass(frozen=True)
class Examples:
    """Images with targets to learn, in the model frame.

    images: (N, 3, S, S) uint8; targets: (N, C, S, S) uint8, 255 for certain foreground;
    weights: (N,) float32, how much each counts. doubts: (N, C, S, S) uint8, 255 for pixels that
    count nothing; None where all count alike.
    """

    images: Tensor
    targets: Tensor
    weights: Tensor
    doubts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def at(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Some rows' images, targets, doubts and weights as floats in [0, 1]."""
        targets = self.targets[rows] / 255
        doubts = torch.zeros_like(targets) if self.doubts is None else self.doubts[rows] / 255
        return self.images[rows] / 255, targets, doubts, self.weights[rows]


def train(
    model: nn.Module,
    labelled: Examples,
    pseudo_labelled: Examples,
    settings: TrainingSettings,
    *,
    pseudo_share: float,
    pseudo_weight: float,
    strong_chance: float = 0.0,
    cut_mix_chance: float = 0.0,
    renew: float = 0.0,
    fall: tuple[float, float],
    generator: Generator,
    compute: Compute,
    progress: Progress,
) -> float:
    """Train `model` in place for one round and return its mean loss.

    pseudo_share: part of each batch drawn from `pseudo_labelled`, where both have images.
    strong_chance: that a pseudo-labelled view is distorted more than a labelled one.
    cut_mix_chance: that a pseudo-labelled view gets a box of another of its batch.
    renew: share of a moving average's opinion in the pseudo-labels, renewed at each step.
    fall: how far the learning rate has fallen, in [0, 1] along one cosine, when this round begins
        and when it ends.
    Raises `RunFailed` when the loss stops being a number.
    """
    model.to(compute.device).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    anchors = [p.detach().clone() for p in parameters] if settings.fedprox else []
    optimiser = torch.optim.AdamW(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    batches = _Batches(labelled, pseudo_labelled, settings.batch, pseudo_share, generator)
    teacher = Teacher(model, renew, compute) if renew and len(pseudo_labelled) else None
    total = 0.0
    progress.start("training", settings.steps)
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings.steps, fall)
        images, targets, doubts, weights, pseudo = batches.next()
        if teacher and pseudo.any():
            targets[pseudo] = teacher.renew(images[pseudo], targets[pseudo])
        strong = pseudo & (torch.rand(len(pseudo), generator=generator) < strong_chance)
        images, planes = augment(
            images,
            torch.cat([targets, doubts], 1),
            generator,
            orientation=settings.orientation,
            strong=strong,
        )
        if cut_mix_chance and pseudo.any():
            images, planes = cut_mix(images, planes, generator, pseudo, cut_mix_chance)
        targets, doubts = planes.to(compute.device).chunk(2, 1)
        trust = None if pseudo_labelled.doubts is None else 1 - doubts
        weights = torch.where(pseudo, weights * pseudo_weight, weights).to(compute.device)
        with compute.autocast():
            logits = model(images.to(compute.device))
        losses = segmentation_losses(logits, targets, trust)
        loss = (losses * weights).sum() / weights.sum().clamp_min(1e-6)
        if settings.fedprox:
            loss = loss + settings.fedprox * proximal_term(parameters, anchors)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
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


def _rate(step: int, steps: int, fall: tuple[float, float]) -> float:
    """Part of the peak learning rate: a cosine over rounds, a short climb in each of them."""
    place = fall[0] + (fall[1] - fall[0]) * step / steps
    cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * place)) / 2
    return cosine * min(1.0, (step + 1) / WARMUP_STEPS)


class _Batches:
    """Endless batches, each image once before any comes twice."""

    def __init__(
        self, labelled: Examples, pseudo: Examples, batch: int, share: float, generator: Generator
    ) -> None:
        # A handful of pseudo-labels is not repeated to fill its part of every batch.
        of_all = len(pseudo) / max(1, len(labelled) + len(pseudo))
        self.batch, self.drawn = batch, 0
        # Where there are labels, each batch has one.
        self.share = min(share, of_all, 1 - 1 / batch) if len(labelled) else of_all
        self.labelled, self.pseudo = labelled, pseudo
        self.rows = _Shuffled(len(labelled), generator), _Shuffled(len(pseudo), generator)

    def next(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Images, targets, doubts, weights and which of them are pseudo-labelled."""
        # Of so many images, so many pseudo-labelled, rounded over all batches and not in each.
        before, self.drawn = round(self.drawn * self.share), self.drawn + self.batch
        n_pseudo = round(self.drawn * self.share) - before
        n_labelled = self.batch - n_pseudo
        parts = [
            examples.at(rows.take(n))
            for examples, rows, n in (
                (self.labelled, self.rows[0], n_labelled),
                (self.pseudo, self.rows[1], n_pseudo),
            )
            if n
        ]
        images, targets, doubts, weights = (torch.cat(c) for c in zip(*parts, strict=True))
        return images, targets, doubts, weights, torch.arange(len(images)) >= n_labelled


class _Shuffled:
    def __init__(self, n: int, generator: Generator) -> None:
        self.n, self.generator, self.queue = n, generator, torch.empty(0, dtype=torch.long)

    def take(self, count: int) -> Tensor:
        while len(self.queue) < count:
            self.queue = torch.cat([self.queue, torch.randperm(self.n, generator=self.generator)])
        rows, self.queue = self.queue[:count], self.queue[count:]
        return rows
