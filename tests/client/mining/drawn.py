"""Masks drawn for tests of mining."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from knowmine.client.mining.fusion import Predictions

PX = 8
FEW = settings(max_examples=25)


def half(value=0.9, top=PX // 2):
    """(1, PX, PX): `value` in the upper rows, 0 below."""
    mask = np.zeros((1, PX, PX), np.float32)
    mask[:, :top] = value
    return mask


EMPTY = half(0.0)


def predictions(unet, sam, prompted=None, iou=0.9, stability=0.8):
    """Predictions from lists of masks (C, PX, PX)."""
    n = len(unet)
    return Predictions(
        np.stack(unet),
        np.stack(sam),
        np.ones(n, bool) if prompted is None else np.array(prompted),
        np.full(n, iou, np.float32),
        np.full(n, stability, np.float32),
    )


@st.composite
def any_predictions(draw):
    """Up to six images of two classes, of any probabilities, with their truth."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n = draw(st.integers(1, 6))
    # To high powers most are near 0 or all are near 1: empty and full masks are among them.
    power = draw(st.sampled_from([0.05, 1, 20]))
    unet, sam = (rng.random((2, n, 2, PX, PX)) ** power).astype(np.float32)
    scores = rng.random((2, n)).astype(np.float32)
    truth = rng.random((n, 2, PX, PX)) ** power > 0.5
    return Predictions(unet, sam, rng.random(n) < 0.7, *scores), truth
