"""The loop learns from labels and pseudo-labels, and repeats itself for the same seed."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from knowmine.client.device import Compute
from knowmine.client.training import loop
from knowmine.client.training.loop import Examples, train
from knowmine.client.training.losses import segmentation_losses
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Silent
from knowmine.shared.settings import MiningSettings, ModelSettings, TrainingSettings
from knowmine.shared.unetplusplus import build_model

PX = 16
SMALL = ModelSettings(pretrained=False, decoder_channels=(8, 8, 8), image_px=64)
CPU = Compute(torch.device("cpu"), torch.float32)
NONE = Examples.none(1, PX)


class Pixelwise(nn.Module):
    """One linear map of each pixel's colour. It records its input."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 1, 1)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        self.shown = []

    def forward(self, images):
        self.shown.append(images.detach().clone())
        return self.head(images)

    @property
    def distance(self):
        """How far training has moved it from its start at zero."""
        return float(torch.cat([p.detach().flatten() for p in self.parameters()]).norm())


def bright_squares(n=6, weight=1.0, px=PX):
    """Bright squares on black, each of them its own mask."""
    targets = torch.zeros(n, 1, px, px, dtype=torch.uint8)
    for i in range(n):
        targets[i, :, 3 : 9 + i % 4, 4 : 10 + i % 3] = 255
    return Examples(targets.repeat(1, 3, 1, 1), targets, torch.full((n,), weight))


def flat(n, level, target=0):
    """Even images, all background or all foreground."""
    return Examples(
        torch.full((n, 3, PX, PX), level, dtype=torch.uint8),
        torch.full((n, 1, PX, PX), target, dtype=torch.uint8),
        torch.ones(n),
    )


def trained(labelled, pseudo=NONE, *, model=None, seed=0, part=(0.0, 1.0), mining=None, **changes):
    """A model after one round, and its mean loss."""
    model = Pixelwise() if model is None else model
    chosen = {"steps": 3, "batch": 4, "learning_rate": 0.05, **changes}
    loss = train(
        model,
        labelled,
        pseudo,
        TrainingSettings.model_validate(chosen),
        MiningSettings.model_validate(mining or {}),
        part=part,
        generator=torch.Generator().manual_seed(seed),
        compute=CPU,
        progress=Silent(),
    )
    return model, loss


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


# --------------------------------------------------------------------------- learning


def test_the_loss_falls():
    """Bright is foreground: one round learns it, the next costs less."""
    model, first = trained(bright_squares(), steps=40)
    _, second = trained(bright_squares(), steps=40, model=model)
    assert second < 0.7 * first


def test_pseudo_labels_alone_teach_too():
    """A site without labels learns from what it mined."""
    model, first = trained(NONE, bright_squares(), steps=40)
    _, second = trained(NONE, bright_squares(), steps=40, model=model)
    assert second < 0.8 * first


def test_equal_seeds_give_equal_weights():
    """To the last bit."""
    one, _ = trained(bright_squares(), bright_squares(), seed=3)
    again, _ = trained(bright_squares(), bright_squares(), seed=3)
    assert same(one, again)


def test_other_seeds_give_other_weights():
    """The generator is the only source of randomness."""
    one, _ = trained(bright_squares(), seed=3)
    other, _ = trained(bright_squares(), seed=4)
    assert not same(one, other)


def test_global_seeds_change_nothing():
    """The global generator of torch is not used."""
    torch.manual_seed(1)
    one, _ = trained(bright_squares())
    torch.manual_seed(2)
    other, _ = trained(bright_squares())
    assert same(one, other)


def test_a_loss_that_is_no_number_stops_the_round():
    """With the step and what to do."""
    model = Pixelwise()
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    with pytest.raises(RunFailed, match=r"became nan at step 1; lower training\.learning_rate"):
        trained(bright_squares(), model=model)


def test_the_model_learns_in_training_mode():
    """Also after it was used to predict."""
    model = Pixelwise().eval()
    trained(bright_squares(), model=model)
    assert model.training


# ---------------------------------------------------------------------------- batches


def whites(model):
    """How many images of each batch were white rather than black."""
    middle = slice(PX // 2 - 2, PX // 2 + 2)
    return [
        int((batch[:, :, middle, middle].mean((1, 2, 3)) > 0.42).sum()) for batch in model.shown
    ]


@pytest.mark.parametrize(("labelled", "pseudo"), [(400, 3), (3, 400), (70, 60)])
def test_no_pseudo_label_is_seen_more_often_than_a_label(labelled, pseudo):
    """Over fifty batches, to within one image; and each batch has a label."""
    generator = torch.Generator().manual_seed(0)
    batches = loop._Batches(flat(labelled, 0), flat(pseudo, 255), 8, 0.5, generator)
    counts = [int(batches.next()[3].sum()) for _ in range(50)]
    assert max(counts) < 8 and sum(counts) <= 400 * min(0.5, pseudo / (labelled + pseudo)) + 1


@pytest.mark.parametrize(
    ("labelled", "pseudo", "fraction", "white"),
    [
        (5, 5, 0.5, [4, 4, 4]),
        (5, 5, 0.25, [2, 2, 2]),
        (5, 5, 0.01, [0, 0, 0]),
        (5, 5, 0.99, [4, 4, 4]),
        (1, 20, 0.99, [7, 7, 7]),
        (9, 1, 0.5, [1, 1, 0]),
        (5, 0, 0.5, [0, 0, 0]),
        (0, 5, 0.5, [8, 8, 8]),
        (1, 1, 0.5, [4, 4, 4]),
    ],
)
def test_a_batch_has_its_fraction_of_pseudo_labels(labelled, pseudo, fraction, white):
    """Labelled images are black here, mined ones white. Few mined images take no larger part of the
    batches than of all images, so that some batches may have none.
    """
    model, _ = trained(flat(labelled, 0), flat(pseudo, 255), mining={"fraction": fraction}, batch=8)
    assert whites(model) == white


def noisy(model):
    """Which images of all batches, one after the other, are no longer even."""
    middle = slice(PX // 2 - 2, PX // 2 + 2)
    return (torch.cat(model.shown)[:, :, middle, middle].std((2, 3)).amax(1) > 1e-3).tolist()


@pytest.mark.parametrize(("chance", "distorted"), [(0.0, [0]), (1.0, [2]), (0.5, [0, 1, 2])])
def test_only_pseudo_labelled_views_are_distorted_strongly(chance, distorted):
    """As often as `mining.strong` says; noise is part of it and shows in even images."""
    model, _ = trained(flat(8, 128), flat(8, 128), mining={"strong": chance}, steps=12)
    seen = noisy(model)
    assert not any(seen[i + k] for i in range(0, len(seen), 4) for k in (0, 1))
    assert {sum(seen[i : i + 4]) for i in range(0, len(seen), 4)} == set(distorted)


def test_every_image_comes_before_any_comes_twice():
    """Red, green and blue in three steps of two: each twice."""
    colours = torch.eye(3).mul(255).to(torch.uint8).view(3, 3, 1, 1).expand(3, 3, PX, PX)
    model, _ = trained(
        Examples(colours, NONE.targets.new_zeros(3, 1, PX, PX), torch.ones(3)), batch=2
    )
    seen = torch.cat(model.shown)[:, :, PX // 2, PX // 2].argmax(1)
    assert seen.bincount().tolist() == [2, 2, 2]


# ---------------------------------------------------------------------------- weights


def test_images_of_weight_zero_do_not_contribute():
    """Their targets may be all wrong."""
    squares = bright_squares()
    weights = torch.tensor([1.0, 0, 1, 0, 1, 0])
    wrong = squares.targets.clone()
    wrong[1::2] = 255 - wrong[1::2]
    one, _ = trained(Examples(squares.images, squares.targets, weights))
    other, _ = trained(Examples(squares.images, wrong, weights))
    assert same(one, other)


def test_pseudo_labels_of_weight_zero_do_not_contribute():
    """Beside labels of full weight."""
    squares, ignored = bright_squares(), bright_squares(weight=0.0)
    wrong = Examples(ignored.images, 255 - ignored.targets, ignored.weights)
    one, _ = trained(squares, ignored)
    other, _ = trained(squares, wrong)
    assert same(one, other)


def test_all_weights_zero_move_nothing():
    """And the loss is 0, not 0 / 0."""
    model, loss = trained(bright_squares(weight=0.0))
    assert loss == 0 and model.distance == 0


def test_heavier_pseudo_labels_pull_harder():
    """Labels say black is background, pseudo-labels say white is foreground."""
    white = flat(4, 255, target=255)
    biases = [
        trained(flat(4, 0), replace(white, weights=torch.full((4,), w)), steps=20)[0].head.bias
        for w in (0.1, 1.0)
    ]
    assert biases[0] < biases[1]


# ---------------------------------------------------------------------------- FedProx


def test_fedprox_pulls_towards_the_global_weights():
    """The larger mu, the closer the model stays to where it began."""
    distances = [
        trained(bright_squares(), fedprox=mu, steps=40)[0].distance for mu in (0.0, 0.3, 10.0)
    ]
    assert distances[0] > 1.3 * distances[1] > 2 * distances[2]


# --------------------------------------------------------------------- learning rate


def moved(steps, **place):
    """How far a steady gradient moves the bias, in peak learning rates.

    AdamW divides the gradient by its own size, so each step is as long as the learning rate.
    """
    model, _ = trained(flat(4, 0, target=0), steps=steps, learning_rate=1e-4, **place)
    return abs(model.head.bias.item()) / 1e-4


@pytest.mark.parametrize(
    ("place", "rate"), [(0.0, 1.0), (0.5, 0.51), (1.0, 0.02)], ids=["start", "half", "end"]
)
def test_the_rate_follows_one_cosine(place, rate):
    """Ten steps rise .1, .2 to 1.0, which is 5.5 together, times the cosine at that place."""
    assert moved(10, part=(place, place)) == pytest.approx(5.5 * rate, rel=0.02)


def test_the_rate_stays_up_after_the_rise():
    """5.5 and ten full steps."""
    assert moved(20, part=(0.0, 0.0)) == pytest.approx(15.5, rel=0.02)


def test_the_rate_falls_within_a_long_round():
    """A run of one round: the rise, then the cosine's mean of .51 over all forty steps."""
    assert moved(40) == pytest.approx(40 * 0.51 - 4.5, rel=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loop_trains_as_a_plain_one(seed, monkeypatch):
    """It has the mean loss of a hand-written loop over the same batches, without augmentation."""
    monkeypatch.setattr(loop, "augment", lambda images, targets, *_, **__: (images, targets))
    examples, settings = (
        bright_squares(px=64),
        TrainingSettings(steps=20, batch=4, learning_rate=0.01),
    )
    model, plain = (build_model(SMALL, seed) for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    loss = train(
        model,
        examples,
        NONE,
        settings,
        MiningSettings(),
        part=(0.0, 1.0),
        generator=generator,
        compute=CPU,
        progress=Silent(),
    )

    generator = torch.Generator().manual_seed(seed)
    batches = loop._Batches(examples, NONE, 4, 0.5, generator)
    optimiser = torch.optim.AdamW(plain.parameters(), 0.01, weight_decay=loop.WEIGHT_DECAY)
    plain.train()
    losses = []
    for step in range(20):
        cosine = 0.02 + 0.98 * (1 + math.cos(math.pi * step / 20)) / 2
        optimiser.param_groups[0]["lr"] = 0.01 * cosine * min(1, (step + 1) / 10)
        images, targets, *_ = batches.next()
        torch.rand(4, generator=generator)  # the draw for strong views, of which there are none
        losses.append(segmentation_losses(plain(images), targets).mean())
        optimiser.zero_grad()
        losses[-1].backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 5.0)
        optimiser.step()
    assert loss == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-3)
    assert losses[-1] < 0.8 * losses[0]
