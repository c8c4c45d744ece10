"""A moving average of the model in training, which renews pseudo-labels while it learns.

Mean teacher (Tarvainen and Valpola 2017, section 2): the average of many steps' weights is better
than the last step's, and its mistakes are no longer those that the pseudo-labels began with.
"""

import copy

import torch
from torch import Tensor, nn

from knowmine.client.device import Compute

DECAY = 0.97
"""Some thirty steps are remembered: most of a round."""


class Teacher:
    """The moving average of `model`; `share` is its part in renewed targets."""

    def __init__(self, model: nn.Module, share: float, compute: Compute) -> None:
        self._average = copy.deepcopy(model).requires_grad_(False).eval()
        self._share, self._compute = share, compute

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move a little towards `model`, after each of its steps."""
        ours, theirs = self._average.state_dict(), model.state_dict()
        for name, tensor in ours.items():
            if tensor.is_floating_point():
                tensor.lerp_(theirs[name], 1 - DECAY)
            else:
                tensor.copy_(theirs[name])

    @torch.no_grad()
    def renew(self, images: Tensor, targets: Tensor) -> Tensor:
        """Targets (N, C, S, S) in [0, 1], mixed with what the average sees in plain `images`."""
        x = images.to(self._compute.device).contiguous(memory_format=torch.channels_last)
        with self._compute.autocast():
            seen = self._average(x).float().sigmoid().cpu()
        yes, no = seen**2, (1 - seen) ** 2  # sharpened, as the targets are
        renewed: Tensor = (1 - self._share) * targets + self._share * yes / (yes + no)
        return renewed
