"""Move points and masks between the model's square frame and SAM's padded one.

```
original frame   (H, W)        the image as a person sees it
model frame      (S, S)        the same image, warped to a square
SAM frame        (P, P)        long side scaled to P, zeros to the right and below; P is 1024 or less
low-res frame    (P/4, P/4)    SAM's masks: the SAM frame, four pixels in one
```
A coordinate names pixel centres: (0, 0) is the middle of the first pixel, x comes first.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SAM_PX = 1024
"""Side of the SAM frame as published; see `sam.input_px`."""
LOW_RES_STEP = 4
"""Pixels of the SAM frame, along one axis, in one of the low-res frame."""


@dataclass(frozen=True)
class Frames:
    """The frames of one image of `height` x `width` pixels, seen by a model of side `model_px`.

    sam_px: side of the SAM frame.

    >>> Frames(height=500, width=1000, model_px=224).sam_size()
    (512, 1024)
    """

    height: int
    width: int
    model_px: int
    sam_px: int = SAM_PX

    def sam_size(self) -> tuple[int, int]:
        """Height and width of the scaled image inside the SAM frame; the rest is padding."""
        scale = self.sam_px / max(self.height, self.width)
        # Rounded as segment-anything's ResizeLongestSide does; a hair-thin image keeps one pixel.
        return max(1, int(self.height * scale + 0.5)), max(1, int(self.width * scale + 0.5))

    def to_sam(self, xy: Tensor) -> Tensor:
        """Points of the model frame in the SAM frame.

        Args:
            xy: (..., 2) floats, x first, pixels of the model frame. A box is two such points.
        """
        height, width = self.sam_size()
        scale = torch.tensor([width, height], dtype=xy.dtype, device=xy.device) / self.model_px
        return (xy + 0.5) * scale - 0.5

    def low_res_to_model(self, logits: Tensor) -> Tensor:
        """SAM's masks as the model sees them, bilinear, free of what SAM says of the padding.

        Args:
            logits: (..., L, L) floats, low-res frame.

        Returns:
            (..., S, S) of the same dtype, model frame.
        """
        # Where the centres of the model's pixels lie in the low-res frame, one axis at a time.
        height, width = self.sam_size()
        steps = (torch.arange(self.model_px, device=logits.device) + 0.5) / self.model_px
        y = steps * height / LOW_RES_STEP - 0.5
        x = steps * width / LOW_RES_STEP - 0.5
        rows, columns = self._low_res_size()
        return _sample(logits, y.clamp(0, rows - 1), x.clamp(0, columns - 1))

    def model_to_low_res(self, logits: Tensor, fill: float) -> Tensor:
        """The model's logits as a mask prompt for SAM, bilinear, with `fill` in the padding.

        Args:
            logits: (..., S, S) floats, model frame.
            fill: the logit where there is no image, for instance the lowest that is used.

        Returns:
            (..., L, L) of the same dtype, low-res frame.
        """
        height, width = self.sam_size()
        low_res_px = self.sam_px // LOW_RES_STEP
        steps = (torch.arange(low_res_px, device=logits.device) + 0.5) * LOW_RES_STEP
        y = steps / height * self.model_px - 0.5
        x = steps / width * self.model_px - 0.5
        last = self.model_px - 1
        low_res = _sample(logits, y.clamp(0, last), x.clamp(0, last))
        rows, columns = self._low_res_size()
        low_res[..., rows:, :] = fill
        low_res[..., :, columns:] = fill
        return low_res

    def _low_res_size(self) -> tuple[int, int]:
        """Rows and columns of the low-res frame that hold any of the image."""
        height, width = self.sam_size()
        return math.ceil(height / LOW_RES_STEP), math.ceil(width / LOW_RES_STEP)


def _sample(planes: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values of planes (..., H, W) at rows y (h,) and columns x (w,): (..., h, w)."""
    *lead, height, width = planes.shape
    # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
    grid_y, grid_x = torch.meshgrid(
        (2 * y + 1) / height - 1, (2 * x + 1) / width - 1, indexing="ij"
    )
    grid = torch.stack([grid_x, grid_y], dim=-1)[None]
    flat = planes.reshape(1, -1, height, width)
    sampled = F.grid_sample(
        flat.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled.to(planes.dtype).reshape(*lead, len(y), len(x))
