"""The encoder learns what SAM sees, and nothing else of the network changes."""

from typing import Any

import numpy as np
import pytest
import torch

from knowmine.client.device import Compute
from knowmine.client.sam.frames import Frames
from knowmine.client.site.round import improve
from knowmine.client.training.distillation import KEPT_GRID, distil, pooled
from knowmine.deploy.phantom.draw import make_folder
from knowmine.shared.errors import RunFailed
from knowmine.shared.log import Silent
from knowmine.shared.unetplusplus import build_model, weights_of
from tests.client.small_site import MODEL, FakeSam, plan, small_site, task

CPU = Compute(torch.device("cpu"), torch.float32)


def bright_and_dark(n=8):
    """Images of one level each, and a SAM that says the level in every channel and place."""
    levels = torch.linspace(0, 1, n).view(n, 1, 1, 1)
    images = (levels * 255).byte().expand(n, 3, 64, 64)
    return images, levels.half().expand(n, 256, KEPT_GRID, KEPT_GRID)


def taught(steps, *, seed=0, seen=None):
    """A small network after so many steps, and the loss of the last."""
    images, says = bright_and_dark()
    model = build_model(MODEL, 0)
    loss = distil(
        model,
        images,
        says if seen is None else seen,
        steps=steps,
        learning_rate=2e-3,
        orientation="any",
        generator=torch.Generator().manual_seed(seed),
        compute=CPU,
        progress=Silent(),
    )
    return weights_of(model), loss


def test_an_embedding_without_its_padding():
    """Of an image twice as wide as high the lower half of what SAM saw is none of it."""
    embedding = torch.zeros(256, 64, 64, dtype=torch.float16)
    embedding[:, 32:] = 9
    embedding[:, :32, 32:] = 1
    kept = pooled(embedding, Frames(height=100, width=200, model_px=64))
    assert kept.shape == (256, KEPT_GRID, KEPT_GRID) and kept.dtype == torch.float16
    assert kept[0, :, 0].tolist() == [0] * KEPT_GRID and kept[0, :, -1].tolist() == [1] * KEPT_GRID


def test_it_learns():
    """Sixty steps foretell better than three."""
    assert taught(60)[1] < 0.6 * taught(3)[1]


def test_the_decoder_stays_as_it_was():
    """What a mask is, labels teach."""
    before, (after, _) = weights_of(build_model(MODEL, 0)), taught(3)
    changed = {
        name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])
    }
    assert changed == {"encoder"}


def test_the_same_seed_gives_the_same_encoder():
    """And torch's own generator is left alone."""
    torch.manual_seed(7)
    first, _ = taught(3)
    told = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(told, torch.rand(1))
    second, _ = taught(3)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_loss_that_is_no_number_says_what_to_do():
    """An embedding with NaN in it."""
    _, says = bright_and_dark()
    with pytest.raises(RunFailed, match=r"mining\.distil_steps to 0"):
        taught(1, seen=says * torch.nan)


@pytest.mark.parametrize(
    ("method", "round_", "encoded"), [("knowmine", 1, 8), ("knowmine", 2, 0), ("supervised", 1, 0)]
)
def test_in_the_first_round_sam_looks_at_all_images(tmp_path, method, round_, encoded):
    """Labelled, probe and unlabelled ones; later rounds and other methods do not."""
    make_folder(tmp_path / "data", 10)
    split: dict[str, Any] = {"labelled": 4, "probe_fraction": 0.5, "test_fraction": 0.2}
    site = small_site(tmp_path / "data", tmp_path, sam=FakeSam(), **split)
    chosen = plan(method, distil_steps=2, warmup_rounds=3)
    update = improve(site, task(weights_of(build_model(MODEL, 0)), chosen, round_))
    assert site.encoded == encoded and update.labelled > 0
