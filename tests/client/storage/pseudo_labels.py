"""Pseudo-labels drawn for tests of what is kept of them."""

from pathlib import Path

import numpy as np
import torch

from knowmine.client.data.dataset import Case
from knowmine.client.data.image_set import ImageSet
from knowmine.client.mining.fusion import Gate, Predictions
from knowmine.client.mining.miner import PseudoLabels
from knowmine.client.mining.quality import Selection

PX = 4


def images_of(n):
    """Images a0, a1 and so on; the level of each is its number."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).repeat(1, 3, PX, PX)
    cases = tuple(Case(f"a{i}", Path(f"a{i}.png"), None, f"a{i}") for i in range(n))
    truth = torch.zeros(0, 1, PX, PX, dtype=torch.bool)
    return ImageSet(cases, images, truth, ("",) * n, ((9, 9),) * n)


def predictions(n, classes=1, prompted=None):
    """The U-Net++ predicts .25 everywhere, SAM .75."""
    unet = np.full((n, classes, PX, PX), 0.25, np.float32)
    prompted = np.ones(n, bool) if prompted is None else np.array(prompted)
    return Predictions(unet, 3 * unet, prompted, *np.ones((2, n), np.float32))


def pseudo_labels(n, *, quality=None, kept=None, seen=None, masks=None):
    """Pseudo-labels of n images: by default the U-Net++'s masks, all kept."""
    seen = predictions(n) if seen is None else seen
    return PseudoLabels(
        images=images_of(n),
        predictions=seen,
        gate=Gate("unused", 1.0),
        masks=seen.unet if masks is None else masks,
        quality=np.ones(n) if quality is None else np.array(quality, np.float64),
        selection=Selection(
            np.ones(n, bool) if kept is None else np.array(kept), np.ones(n, np.float32)
        ),
    )
