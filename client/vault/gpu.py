"""Start the GPU's driver while this process may still open sockets.

NVIDIA's driver opens a socket of its own when it starts, and fails to start if the kernel refuses
it. So a process that must be without sockets starts the driver first. torch later takes the
context that is made here. Only the driver is loaded, and no image has been read yet.
"""

import ctypes
from collections.abc import Callable
from typing import Any


def start_driver(device: str, load: Callable[[str], Any] = ctypes.CDLL) -> None:
    """Make the context of `device` (auto, cpu, cuda or cuda:N), if there is a driver.

    Errors are ignored here: `pick_compute` meets the same ones and reports them.
    load: opens the driver's library.
    """
    if device == "cpu":
        return
    try:
        driver = load("libcuda.so.1")
    except OSError:
        return
    number = device.removeprefix("cuda:")
    place, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0):
        return
    if not driver.cuDeviceGet(ctypes.byref(place), int(number) if number.isdecimal() else 0):
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), place)
