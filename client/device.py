"""Which device and which precision this machine is best at."""

import ctypes
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from knowmine.shared.errors import RunFailed, UsageError

T = TypeVar("T")

log = logging.getLogger(__name__)

_NO_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED", "Available memory of")
"""How torch's CPU, CUDA, its libraries and ONNX Runtime say it with a plain RuntimeError."""


@dataclass(frozen=True)
class Compute:
    """A device and the dtype that heavy layers run in; float32 means full precision."""

    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[object]:
        """A context in which convolutions and products run in `dtype`."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def __str__(self) -> str:
        return f"{self.device} in {str(self.dtype).removeprefix('torch.')}"


def pick_compute(device: str = "auto") -> Compute:
    """The device by name (`auto`, `cpu`, `cuda`, `cuda:1`) and the precision that suits it.

    bfloat16 on a GPU that has it and on a CPU with AMX or AVX512-BF16, where it trains up to
    four times faster; elsewhere on CPUs it is emulated and slower than float32. A GPU is tried first:
    torch sees older ones too, for which it has no code. Where one cannot be used, `auto` takes the CPU,
    with a line in the log.
    """
    name = device
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {device!r} is not one; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {device} was asked for, but this machine has no usable GPU")
        try:
            return Compute(chosen, torch.bfloat16 if _gpu_has_bfloat16(chosen) else torch.float32)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).partition("\n")[0]
            if device != "auto":
                raise UsageError(
                    f"device {device} cannot be used ({reason}); use auto, cpu or another"
                ) from None
            log.warning("the GPU cannot be used, the CPU is: %s", reason)
            chosen = torch.device("cpu")
    if chosen.type != "cpu":
        raise UsageError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    return Compute(chosen, torch.bfloat16 if _cpu_has_bfloat16() else torch.float32)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators begin at `seed` here; the CPU's and `device`'s then go on as before.

    To ask other GPUs for theirs, as torch does by itself, would start them.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def in_batches(count: int, most: int, work: Callable[[slice], T]) -> Iterator[T]:
    """What `work` makes of each batch of `count` rows, of at most `most` at once.

    Where memory is too short, batches are half as large from there on, with one line in the log.
    """
    start = 0
    while start < count:
        try:
            found = work(slice(start, start + most))
        except (RuntimeError, MemoryError) as error:
            if most == 1 or not _is_out_of_memory(error):
                raise
            most //= 2
            log.warning("memory is short: batches of %d from here", most)
            continue
        start += most
        yield found


@contextmanager
def memory_for(what: str, repair: str) -> Iterator[None]:
    """Say what to do where the memory is too short for `what`: raises `RunFailed`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RunFailed(
            f"the memory is too short for {what}: stop other programs that use it, or {repair}"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or any(words in str(error) for words in _NO_MEMORY)


def settle(threads: int = 0) -> None:
    """Set this process's threads and memory for tensors, once, before the first.

    It changes the whole process, so commands and runs call it, and no module on import. glibc
    gives large blocks back to the system after every layer and gets them again, zeroed, for the
    next: on two cores that costs a tenth of training and a third of inference.

    threads: of torch's arithmetic; 0 keeps the number.
    """
    if threads:
        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 1 << 30)


def _gpu_has_bfloat16(device: torch.device) -> bool:
    """Try `device`; raises `RuntimeError` or `AssertionError` where it cannot be used."""
    with torch.cuda.device(device):
        (torch.ones(8, device=device) * 2).sum().item()
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
