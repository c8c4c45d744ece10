"""Tensors like those of SAM's mask decoder, for tests that need no SAM."""

import numpy as np

from knowmine.shared.mask_decoder import DECODER


def drawn_decoder(value=0.0):
    """All of one number."""
    return {name: np.full(spec.shape, value, spec.dtype) for name, spec in DECODER.items()}
