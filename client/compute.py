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
    four times faster; elsewhere on CPUs it is emulated and slower than float32.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r} is not one; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"device {device} was asked for, but this machine has no usable GPU")
        return Compute(
            chosen,
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float32,
        )
    if chosen.type != "cpu":
        raise UsageError(f"device {device!r} is not supported; use auto, cpu, cuda or cuda:N")
    return Compute(chosen, torch.bfloat16 if _cpu_has_bfloat16() else torch.float32)


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
def memory_for(what: str, mend: str) -> Iterator[None]:
    """Say what to do where the memory is too short for `what`: raises `RunFailed`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RunFailed(
            f"the memory is too short for {what}: stop other programs that use it, or {mend}"
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    # On a CPU torch says it with a plain RuntimeError.
    told = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return told or "allocate memory" in str(error)


def settle(threads: int = 0) -> None:
    """Make this process a good home for tensors; call it once, before the first.

    glibc gives large blocks back to the system after every layer and gets them again, zeroed,
    for the next: on two cores that costs a tenth of training and a third of inference.
    """
    if threads:
        torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 1 << 30)


def _cpu_has_bfloat16() -> bool:
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
