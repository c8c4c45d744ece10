"""The tensors of SAM's mask decoder, which sites may share beside the model (`mining.share_decoder`).

Every SAM that knowmine knows has the same one, segment-anything's MaskDecoder for 256 channels, so
its list of tensors is a constant, and whoever checks or averages them needs neither SAM nor torch.
"""

from collections.abc import Iterator
from types import MappingProxyType
from typing import TypeAlias

from knowmine.shared.weights import Array, Manifest, TensorSpec, Weights, bytes_of_manifest

PREFIX = "sam.mask_decoder."
"""Of these tensors' names wherever they travel: none of a U-Net++ begins so."""
DIM, INNER, MLP = 256, 128, 2048
"""Channels of an image's places; of attention between places and tokens; of a block's MLP."""
BLOCKS, MASKS, KERNEL = 2, 4, 32

Shapes: TypeAlias = Iterator[tuple[str, tuple[int, ...]]]


def prefixed(state: Weights) -> dict[str, Array]:
    """A decoder's own tensors by the names under which they travel."""
    return {PREFIX + name: array for name, array in state.items()}


def without_prefix(decoder: Weights) -> dict[str, Array]:
    """The same back by the decoder's own names."""
    return {name.removeprefix(PREFIX): array for name, array in decoder.items()}


def parted(tensors: Weights) -> tuple[dict[str, Array], dict[str, Array]]:
    """The model's tensors and SAM's decoder's, out of one mapping of both."""
    model = {name: array for name, array in tensors.items() if not name.startswith(PREFIX)}
    return model, {name: array for name, array in tensors.items() if name not in model}


def _shapes() -> Shapes:
    """In the order of segment_anything/modeling/mask_decoder.py and transformer.py."""
    for block in range(BLOCKS):
        at = f"transformer.layers.{block}"
        yield from _attention(f"{at}.self_attn", DIM)
        yield from _norm(f"{at}.norm1", DIM)
        yield from _attention(f"{at}.cross_attn_token_to_image", INNER)
        yield from _norm(f"{at}.norm2", DIM)
        yield from _linear(f"{at}.mlp.lin1", DIM, MLP)
        yield from _linear(f"{at}.mlp.lin2", MLP, DIM)
        yield from _norm(f"{at}.norm3", DIM)
        yield from _norm(f"{at}.norm4", DIM)
        yield from _attention(f"{at}.cross_attn_image_to_token", INNER)
    yield from _attention("transformer.final_attn_token_to_image", INNER)
    yield from _norm("transformer.norm_final_attn", DIM)
    yield "iou_token.weight", (1, DIM)
    yield "mask_tokens.weight", (MASKS, DIM)
    yield from _twice_as_large("output_upscaling.0", DIM, DIM // 4)
    yield from _norm("output_upscaling.1", DIM // 4)
    yield from _twice_as_large("output_upscaling.3", DIM // 4, KERNEL)
    for mask in range(MASKS):
        yield from _mlp(f"output_hypernetworks_mlps.{mask}", KERNEL)
    yield from _mlp("iou_prediction_head", MASKS)


def _attention(name: str, inner: int) -> Shapes:
    for side in ("q", "k", "v"):
        yield from _linear(f"{name}.{side}_proj", DIM, inner)
    yield from _linear(f"{name}.out_proj", inner, DIM)


def _mlp(name: str, outputs: int) -> Shapes:
    for layer, size in enumerate((DIM, DIM, outputs)):
        yield from _linear(f"{name}.layers.{layer}", DIM, size)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _twice_as_large(name: str, inputs: int, outputs: int) -> Shapes:
    yield f"{name}.weight", (inputs, outputs, 2, 2)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, size: int) -> Shapes:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


DECODER: Manifest = MappingProxyType(
    {PREFIX + name: TensorSpec(shape, "float32") for name, shape in _shapes()}
)
"""What SAM's mask decoder looks like: 120 tensors."""
DECODER_BYTES = bytes_of_manifest(DECODER)
"""16.2 MB."""
