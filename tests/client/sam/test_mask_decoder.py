"""The faster mask decoder gives what segment-anything's own gives."""

import pytest
import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer

from knowmine.client.sam.mask_decoder import predict_masks

SIDE = 8


@pytest.fixture(scope="module")
def decoder():
    """Segment-anything's decoder as SAM has it, with random weights and biases."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = MaskDecoder(
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
            transformer_dim=256,
        )
        for parameter in made.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        return made


def inputs_of(count, tokens=5, seed=1):
    """Image embeddings, dense prompts, positional encoding, tokens."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, 256, SIDE, SIDE)] * 2 + [(1, 256, SIDE, SIDE), (count, tokens, 256)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def ours(decoder, images, dense, pe, sparse, *, masks=4):
    places = (images + dense).permute(0, 2, 3, 1)
    return predict_masks(decoder, places, pe[0].flatten(1).T, sparse, masks)


def theirs(decoder, images, dense, pe, sparse):
    """Segment-anything's, which takes one image at a time."""
    found = [
        decoder.predict_masks(images[k : k + 1], pe, sparse[k : k + 1], dense[k : k + 1])
        for k in range(len(images))
    ]
    return [torch.cat(column) for column in zip(*found, strict=True)]


@pytest.mark.parametrize("tokens", [2, 5])
def test_masks_and_ious_are_segment_anythings(decoder, tokens):
    """To rounding, for several prompts on several images at once."""
    inputs = inputs_of(3, tokens)
    for own, other in zip(ours(decoder, *inputs), theirs(decoder, *inputs), strict=True):
        assert own.shape == other.shape
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masks", [1, 3])
def test_fewer_masks_are_the_first_ones(decoder, masks):
    """The others are not computed, which changes nothing."""
    inputs = inputs_of(2)
    for own, all_four in zip(
        ours(decoder, *inputs, masks=masks), ours(decoder, *inputs), strict=True
    ):
        torch.testing.assert_close(own, all_four[:, :masks], rtol=1e-5, atol=1e-5)


def test_half_precision_moves_little(decoder):
    """Places that are cast beforehand stay half, and logits within three hundredths of their size."""
    images, dense, pe, sparse = inputs_of(2)
    exact, guessed = ours(decoder, images, dense, pe, sparse)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, iou = ours(decoder, images.bfloat16(), dense.bfloat16(), pe.bfloat16(), sparse)
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().mean() < 0.03 * exact.abs().mean()
    torch.testing.assert_close(iou.float(), guessed, rtol=0.05, atol=0.05)
