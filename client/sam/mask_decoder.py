"""SAM's mask decoder with the same weights and outputs as segment-anything's, in half the time.

A prompt is some ten tokens, its image 4096 places. segment-anything projects all places to keys and
values for each attention, and moves them between layouts; here the few tokens are taken to the
places' space instead:

```
tokens attend to places  softmax((q Wk) (x + pe)^T) x Wv     for  softmax(q ((x + pe) Wk)^T) (x Wv)
places attend to tokens  softmax((x + pe) (Wq k)^T) (v Wo)   for  softmax(((x + pe) Wq) k^T) v Wo
```
Matrix products are associative, and a key's bias moves all of a token's scores alike, which softmax
does not see. Places stay rows of 256 numbers throughout, so that layer norms and the transposed
convolutions (which do not overlap) are plain products too. It has gradients where the weights have
them. The modules are segment-anything's; only their forward is ours.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def predict_masks(
    decoder: Any, places: Tensor, places_pe: Tensor, sparse: Tensor, masks: int
) -> tuple[Tensor, Tensor]:
    """Logits (K, M, 4 H, 4 W) and guessed IoU (K, M) of the first M = `masks` masks.

    Args:
        decoder: segment-anything's MaskDecoder.
        places: (K, H, W, 256) each prompt's image embedding with its dense prompt added.
        places_pe: (H W, 256), where each place is.
        sparse: (K, T, 256), points and boxes as tokens.
        masks: how many of the decoder's four.
    """
    count, height, width, dim = places.shape
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens_pe = torch.cat([own.expand(count, -1, -1), sparse], dim=1)
    tokens, x = tokens_pe, places.reshape(count, height * width, dim)
    transformer = decoder.transformer
    for layer in transformer.layers:
        tokens, x = _block(layer, tokens, tokens_pe, x, places_pe)
    last = transformer.final_attn_token_to_image
    tokens = tokens + _attend_to_places(last, tokens + tokens_pe, x + places_pe, x)
    tokens = transformer.norm_final_attn(tokens)
    kernels = [
        mlp(tokens[:, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps[:masks])
    ]
    logits = _upscaled(decoder.output_upscaling, x) @ torch.stack(kernels, dim=2)
    # Each place has become 2 x 2 x 2 x 2 pixels, the coarse step before the fine one.
    pixels = logits.view(count, height, width, 2, 2, 2, 2, masks)
    planes = pixels.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(count, masks, 4 * height, 4 * width)
    return planes, decoder.iou_prediction_head(tokens[:, 0])[:, :masks]


def _block(
    layer: Any, tokens: Tensor, tokens_pe: Tensor, x: Tensor, places_pe: Tensor
) -> tuple[Tensor, Tensor]:
    """TwoWayAttentionBlock.forward."""
    if layer.skip_first_layer_pe:
        tokens = layer.self_attn(q=tokens, k=tokens, v=tokens)
    else:
        placed = tokens + tokens_pe
        tokens = tokens + layer.self_attn(q=placed, k=placed, v=tokens)
    tokens = layer.norm1(tokens)
    x_placed = x + places_pe
    attention = layer.cross_attn_token_to_image
    tokens = layer.norm2(tokens + _attend_to_places(attention, tokens + tokens_pe, x_placed, x))
    tokens = layer.norm3(tokens + layer.mlp(tokens))
    attention = layer.cross_attn_image_to_token
    return tokens, layer.norm4(
        _attend_to_tokens(attention, x, x_placed, tokens + tokens_pe, tokens)
    )


def _attend_to_places(attention: Any, tokens: Tensor, x_placed: Tensor, x: Tensor) -> Tensor:
    """(K, T, 256): Attention.forward with tokens as queries, places as keys and values."""
    count, length, dim = tokens.shape
    query = _by_head(attention, attention.q_proj(tokens))
    queries = query @ _head_weights(attention, attention.k_proj)  # (K, heads, T, 256)
    scores = queries.reshape(count, -1, dim) @ x_placed.transpose(1, 2)
    weights = (scores * _scale(attention)).softmax(dim=-1)
    seen = (weights @ x).view(count, attention.num_heads, length, dim)
    values = seen @ _head_weights(attention, attention.v_proj).transpose(1, 2)
    joined = values.transpose(1, 2).reshape(count, length, -1) + attention.v_proj.bias
    out: Tensor = attention.out_proj(joined)
    return out


def _attend_to_tokens(
    attention: Any, x: Tensor, x_placed: Tensor, tokens: Tensor, values: Tensor
) -> Tensor:
    """(K, H W, 256): x plus Attention.forward with places as queries, tokens as keys and values."""
    count, length, dim = tokens.shape
    heads = attention.num_heads
    key = _by_head(attention, attention.k_proj(tokens)) * _scale(attention)
    queries = key @ _head_weights(attention, attention.q_proj)  # (K, heads, T, 256)
    offset = key @ attention.q_proj.bias.view(heads, -1, 1)
    scores = torch.baddbmm(
        offset.reshape(count, -1, 1), queries.reshape(count, -1, dim), x_placed.transpose(1, 2)
    )
    weights = scores.view(count, heads, length, -1).softmax(dim=2).view(count, heads * length, -1)
    value = _by_head(attention, attention.v_proj(values))
    out = attention.out_proj
    # A head's weights add up to one, so each of its tokens may carry a part of the bias.
    values_out = value @ out.weight.view(dim, heads, -1).permute(1, 2, 0) + out.bias / heads
    return torch.baddbmm(x, weights.transpose(1, 2), values_out.reshape(count, -1, dim))


def _upscaled(layers: Any, x: Tensor) -> Tensor:
    """(K, H W 16, 32): output_upscaling, whose transposed convolutions do not overlap."""
    first, norm, act, second, last_act = layers
    y = act(F.layer_norm(_spread(first, x), norm.weight.shape, norm.weight, norm.bias, norm.eps))
    return torch.flatten(last_act(_spread(second, y.flatten(1, 2))), 1, 2)


def _spread(convolution: Any, x: Tensor) -> Tensor:
    """(K, N, 4, out): each of N rows becomes 2 x 2, by the weights (in, out, 2, 2)."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)
    return torch.unflatten(F.linear(x, weight, convolution.bias.repeat(4)), 2, (4, -1))


def _by_head(attention: Any, x: Tensor) -> Tensor:
    """(K, T, C) to (K, heads, T, C / heads)."""
    heads: int = attention.num_heads
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _head_weights(attention: Any, linear: Any) -> Tensor:
    """A projection's weights (C, 256) as (heads, C / heads, 256)."""
    weight: Tensor = linear.weight
    return weight.view(attention.num_heads, -1, weight.shape[1])


def _scale(attention: Any) -> float:
    return 1 / math.sqrt(attention.internal_dim // attention.num_heads)
