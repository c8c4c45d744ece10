"""A moving average of the model in training, which renews pseudo-labels while it learns.

Mean teacher (Tarvainen and Valpola 2017, section 2): the average of many steps' weights is better
than the last step's, and it no longer makes the mistakes that the pseudo-labels began with.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from knowmine.client.device import Compute

DECAY = 0.97
"""Some thirty steps are remembered: most of a round."""


class Teacher:
    """The moving average of `model`; `weight` is its part in renewed targets."""

    def __init__(self, model: nn.Module, weight: float, compute: Compute) -> None:
        self._average = AveragedModel(
            model,
            multi_avg_fn=get_ema_multi_avg_fn(DECAY),  # type: ignore[no-untyped-call]  # torch's
            use_buffers=True,
        )
        # The first update of an AveragedModel copies; the average begins at `model` as it is.
        self._average.update_parameters(model)
        self._average.requires_grad_(False).eval()
        self._weight, self._compute = weight, compute

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move a little towards `model`, after each of its steps."""
        self._average.update_parameters(model)

    @torch.no_grad()
    def renew(self, images: Tensor, targets: Tensor) -> Tensor:
        """Targets (N, C, S, S) in [0, 1], mixed with the average's prediction on plain `images`."""
        x = images.to(self._compute.device).contiguous(memory_format=torch.channels_last)
        with self._compute.autocast():
            seen = self._average(x).float().sigmoid().cpu()
        # Sharpened as in MixMatch at temperature one half (Berthelot et al. 2019, equation 7).
        yes, no = seen**2, (1 - seen) ** 2
        renewed: Tensor = (1 - self._weight) * targets + self._weight * yes / (yes + no)
        return renewed
