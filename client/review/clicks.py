"""SAM turns a person's clicks on an image into a mask."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from knowmine.client.review.cases import Cases, ReviewCase, original_image
from knowmine.client.sam.embeddings import EmbeddingStore
from knowmine.client.sam.frames import Frames
from knowmine.client.sam.interface import Prompts, Sam, embedding_shape
from knowmine.shared.errors import UsageError

MAX_CLICKS = 64
UNAMBIGUOUS = 0
"""SAM's mask for a prompt of several points, which leaves no doubt; see `sam.Decoded`."""


class Click(NamedTuple):
    """A point in pixels of the frame that the person sees; inside: it belongs to the object."""

    x: float
    y: float
    inside: bool


class ClickSam:
    """SAM and the embeddings of a review. It is loaded at the first click, or by `warm_up`.

    embeddings: folder of the cache, shared with the rounds. Safe to use from many threads.
    """

    def __init__(self, open_sam: Callable[[], Sam], embeddings: Path, cases: Cases) -> None:
        self._open, self._embeddings, self._cases = open_sam, embeddings, cases
        self._sam: Sam | None = None
        self._lock = threading.Lock()

    @property
    def digest(self) -> str | None:
        """SHA-256 of SAM's weights; None while it is not loaded."""
        return None if self._sam is None else self._sam.digest

    def warm_up(self) -> None:
        """Load SAM and decode once: the first call takes three times as long."""
        with self._lock:
            sam = self._loaded()
            nothing = np.zeros(embedding_shape(sam.input_px), np.float16)
            mask_of_clicks(sam, nothing, (64, 64), (64, 64), [Click(32, 32, True)])

    def mask(self, case: ReviewCase, clicks: Sequence[Click]) -> NDArray[np.bool_]:
        """SAM's mask for the clicks: (h, w) bool in the frame shown.

        Raises `UsageError` for no click, too many, or one outside the image.
        """
        height, width = case.shown
        if not 1 <= len(clicks) <= MAX_CLICKS:
            raise UsageError(f"got {len(clicks)} clicks; expected 1 to {MAX_CLICKS}")
        for click in clicks:
            if not (-0.5 <= click.x <= width - 0.5 and -0.5 <= click.y <= height - 0.5):
                raise UsageError(
                    f"clicked at {click.x:.0f}, {click.y:.0f}, outside the image of "
                    f"{width} x {height} pixels: click inside it"
                )
        with self._lock:  # one call at a time: it uses all threads of the machine
            embedding, size = self._embedding(case)
            return mask_of_clicks(self._loaded(), embedding, size, case.shown, clicks)

    def _loaded(self) -> Sam:
        if self._sam is None:
            self._sam = self._open()
        return self._sam

    def _embedding(self, case: ReviewCase) -> tuple[NDArray[np.float16], tuple[int, int]]:
        """The image's embedding and the size (H, W) of the image that SAM encoded.

        The original image is preferred: its embedding is usually in the cache. Without it, the
        small copy that the round kept is encoded.
        """
        store = EmbeddingStore(self._embeddings, self._loaded(), seal=case.site.seal)
        digest, size = case.label.digest, case.label.size
        kept = store.find(digest)
        if kept is not None:
            return kept, size
        image = original_image(case)
        if image is not None:
            return store.make(digest, image), size
        small = self._cases.pixels(case).image
        digest = hashlib.sha256(np.ascontiguousarray(small).data).hexdigest()
        return store.get(digest, lambda: small), (small.shape[0], small.shape[1])


@torch.inference_mode()
def mask_of_clicks(
    sam: Sam,
    embedding: NDArray[np.float16],
    size: tuple[int, int],
    shown: tuple[int, int],
    clicks: Sequence[Click],
) -> NDArray[np.bool_]:
    """SAM's mask for one object: (h, w) bool in the frame shown.

    On two cores this takes some tens of milliseconds.

    Args:
        sam: the loaded model.
        embedding: (256, G, G), of the image.
        size: (H, W), original frame of the image that was encoded; SAM saw its aspect ratio.
        shown: (h, w) of the frame that the person clicks in.
        clicks: at least one.
    """
    height, width = shown
    frames = Frames(*size, model_px=max(shown), sam_px=sam.input_px)
    # From the frame shown to the square one, pixel centres to pixel centres.
    scale = torch.tensor([max(shown) / width, max(shown) / height])
    xy = (torch.tensor([[c.x, c.y] for c in clicks], dtype=torch.float32) + 0.5) * scale - 0.5
    prompts = Prompts(
        image_of=torch.zeros(1, dtype=torch.int64),
        boxes=None,
        points=frames.to_sam(xy)[None],
        point_labels=torch.tensor([[float(c.inside) for c in clicks]]),
        masks=None,
    )
    decoded = sam.decode(torch.from_numpy(embedding)[None], prompts)
    # One click is ambiguous: it may mean the whole, a part or a subpart. SAM's estimate of the IoU
    # decides.
    ambiguous = len(clicks) == 1
    pick = int(decoded.iou[0, 1:].argmax()) + 1 if ambiguous else UNAMBIGUOUS
    square = frames.low_res_to_model(decoded.logits[:, pick : pick + 1])
    logits = F.interpolate(square, size=shown, mode="bilinear", align_corners=False)
    mask: NDArray[np.bool_] = (logits[0, 0] > 0).numpy()
    return mask
