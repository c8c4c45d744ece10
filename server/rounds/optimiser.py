"""Step the global model towards the sites' mean.

This is adaptive federated optimisation (Reddi et al. 2021, algorithm 2): the difference of the
global model and the mean serves as a gradient, and an ordinary optimiser takes a step with it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np

from knowmine.shared.errors import SettingsError, UsageError
from knowmine.shared.weights import Array, Weights

if TYPE_CHECKING:  # the plain mean needs no torch, and a server starts faster without it
    import torch

OptimiserName: TypeAlias = Literal["mean", "sgd", "adam", "adamw", "adagrad"]

# tau and beta_2 of Reddi et al. 2021, section 5. Pseudo-gradients are small, so their ratio to
# Adam's usual epsilon would be noise.
TAU, BETA_2 = 1e-3, 0.99

_SLOTS: Mapping[str, frozenset[str]] = {
    "mean": frozenset(),
    "sgd": frozenset({"momentum_buffer"}),
    "adam": frozenset({"step", "exp_avg", "exp_avg_sq"}),
    "adamw": frozenset({"step", "exp_avg", "exp_avg_sq"}),
    "adagrad": frozenset({"step", "sum"}),
}


class ServerOptimiser:
    """Turns the old global model and the sites' mean into the new global model.

    "mean" returns the mean as it is and has no state. The others take a step of `torch.optim`,
    and `state()` holds their memory.

    Whole numbers and batch norm's running statistics are not parameters: they become the mean.
    """

    def __init__(
        self,
        name: OptimiserName = "mean",
        *,
        learning_rate: float | None = None,
        momentum: float = 0.9,
    ) -> None:
        """`learning_rate` None is 1 for SGD and 0.01 for the adaptive optimisers, whose steps are
        as long as their learning rate. `momentum` is SGD's, or beta 1 of Adam and AdamW.
        """
        if name not in get_args(OptimiserName):
            known = ", ".join(get_args(OptimiserName))
            raise SettingsError(f"unknown server optimiser {name!r}; expected one of {known}")
        if learning_rate is None:
            learning_rate = 1.0 if name in ("mean", "sgd") else 0.01
        if not 0 < learning_rate < float("inf"):
            raise SettingsError(
                f"server learning rate is {learning_rate}; expected a number above 0"
            )
        if not 0 <= momentum < 1:
            raise SettingsError(f"server momentum is {momentum}; expected a number from 0 to 1")
        self.name = name
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._state: dict[str, dict[str, torch.Tensor]] = {}

    def step(self, global_weights: Weights, mean: Weights) -> dict[str, Array]:
        """The new global weights; both arguments stay as they are."""
        if self.name == "mean":
            return dict(mean)
        return {
            name: self._stepped(name, value, mean[name])
            if _is_parameter(name, value)
            else mean[name]
            for name, value in global_weights.items()
        }

    def state(self) -> dict[str, Array]:
        """The optimiser's memory as arrays named `slot:tensor`; empty for "mean"."""
        return {
            f"{slot}:{name}": value.numpy().copy()
            for name, slots in self._state.items()
            for slot, value in slots.items()
        }

    def restore(self, state: Weights) -> None:
        """Restore what `state()` returned, so that the next step is the same bit for bit.

        Raises `UsageError` for the state of another optimiser.
        """
        if not state:
            self._state = {}
            return
        import torch

        restored: dict[str, dict[str, torch.Tensor]] = {}
        for key, value in state.items():
            slot, _, name = key.partition(":")
            if slot not in _SLOTS[self.name]:
                raise UsageError(
                    f"the saved optimiser state holds {key}, which {self.name!r} does not keep: "
                    "resume with the server optimiser that the run was started with"
                )
            tensor = torch.from_numpy(np.array(value))
            restored.setdefault(name, {})[slot] = tensor.reshape(()) if slot == "step" else tensor
        self._state = restored

    def _stepped(self, name: str, value: Array, mean: Array) -> Array:
        import torch

        # One tensor at a time, so that only one is ever in memory twice. A new optimiser is made
        # around its state for each step, so that a resumed run computes exactly the same.
        parameter = torch.nn.Parameter(torch.from_numpy(np.array(value)))
        parameter.grad = torch.from_numpy(np.asarray(value - mean))
        optimiser = self._optimiser(parameter)
        if name in self._state:
            optimiser.state[parameter] = self._state[name]
        optimiser.step()
        kept = optimiser.state[parameter]
        self._state[name] = {slot: kept[slot] for slot in sorted(kept) if kept[slot] is not None}
        return parameter.detach().numpy()

    def _optimiser(self, parameter: "torch.nn.Parameter") -> "torch.optim.Optimizer":
        import torch

        # Weight decay would pull the model to zero, not towards the sites' mean.
        common: dict[str, Any] = {"lr": self._learning_rate, "weight_decay": 0.0}
        if self.name == "sgd":
            return torch.optim.SGD([parameter], momentum=self._momentum, **common)
        if self.name == "adagrad":
            return torch.optim.Adagrad([parameter], eps=TAU, **common)
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        return kind([parameter], betas=(self._momentum, BETA_2), eps=TAU, **common)


def _is_parameter(name: str, value: Array) -> bool:
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return value.dtype.kind == "f" and not name.endswith(statistics)
