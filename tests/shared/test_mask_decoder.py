"""The list of SAM's decoder is the real decoder's, though nothing here but a test knows SAM."""

import numpy as np
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from knowmine.shared.mask_decoder import (
    DECODER,
    DECODER_BYTES,
    parted,
    prefixed,
    without_prefix,
)
from knowmine.shared.weights import TensorSpec
from tests.drawn_decoder import drawn_decoder


def test_the_rule_gives_segment_anythings_tensors_in_their_order():
    """Built as segment_anything/build_sam.py does for ViT-B, L and H alike."""
    with torch.device("meta"):
        real = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
    state = real.state_dict()
    assert [*DECODER] == [f"sam.mask_decoder.{name}" for name in state]
    assert [*DECODER.values()] == [
        TensorSpec(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for tensor in state.values()
    ]


def test_it_takes_sixteen_megabytes():
    """120 tensors of 4 058 340 numbers."""
    assert (len(DECODER), DECODER_BYTES) == (120, 4 * 4_058_340)


def test_the_model_and_the_decoder_part_as_they_were_joined():
    """Whatever the order."""
    model, decoder = {"decoder.w": np.ones(2, np.float32)}, drawn_decoder()
    seen_model, seen_decoder = parted({**decoder, **model})
    assert (seen_model, seen_decoder.keys()) == (model, decoder.keys())


def test_names_go_there_and_back():
    """A decoder knows its tensors by its own names."""
    own = {"iou_token.weight": np.zeros((1, 256), np.float32)}
    assert [*prefixed(own)] == ["sam.mask_decoder.iou_token.weight"]
    assert without_prefix(prefixed(own)) == own
