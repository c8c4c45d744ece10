"""Read tensors from files that others made, and give them to modules, without running code."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from knowmine.shared.errors import WeightsError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file, on the CPU.

    Raises `WeightsError` where the file is damaged, holds anything but a mapping of names to
    tensors, or asks for code to be run.
    """
    try:
        if file.suffix == ".safetensors":
            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(
            f"{file} is damaged, or holds code, which is never run ({_short(error)}); "
            "save its state_dict alone, or fetch it again"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{file} is not a complete weights file ({_short(error)}); fetch it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"{file} is no mapping of names to tensors; save its state_dict alone")
    return state


def put_frozen(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Give a module the tensors whose names begin with `prefix`, as float32, and freeze it.

    The module may be on the meta device: the tensors become its own. Raises `WeightsError`
    unless every tensor fits and none is left over on either side.
    """
    part = {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    try:
        module.load_state_dict(part, strict=True, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"these weights do not fit SAM's {prefix.rstrip('.')} ({_short(error)}); "
            "expected segment-anything's layout"
        ) from None
    module.requires_grad_(False).eval()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
