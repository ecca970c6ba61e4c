"""What can be said of a device without torch: whether its name is one, and how many GPUs the CUDA driver has."""

from __future__ import annotations

import ctypes
import re
import sys

from spectrum.errors import DeviceError
from spectrum.text import nearest, proposal

# The device types of torch that a machine may have. `auto` is ours.
_TYPES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla", "ipu", "maia", "meta", "privateuseone")
_NAME = re.compile(rf"(?:{'|'.join(_TYPES)})(?::(?:0|[1-9][0-9]{{0,2}}))?")

# What a GPU is called elsewhere: 0, gpu0, cuda0, cuda 0, nvidia:0.
_NUMBERED_GPU = re.compile(r"(?:gpu|cuda|nvidia|hip|rocm)?[ :_-]?([0-9]{1,3})", re.IGNORECASE)
_GPU = re.compile(r"(?:gpu|cuda|nvidia|hip|rocm)\b.*|gpus", re.IGNORECASE)
_SEVERAL = re.compile(r".*,.*|all|cuda:all", re.IGNORECASE)


def check_device_name(name: str) -> None:
    """Raises DeviceError if this is not the name of a device, on any machine."""
    if name != "auto" and not _NAME.fullmatch(name):
        raise not_a_device(name)


def not_a_device(name: str) -> DeviceError:
    """The error for a name that is not a device's."""
    return DeviceError(f"{name!r} is not a device{proposal(_meant(name)) or '; use auto, cpu, cuda or cuda:N'}")


def num_driver_gpus() -> int:
    """How many GPUs the CUDA driver lets this process use, which CUDA_VISIBLE_DEVICES limits. 0 without the driver."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        done = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    except (OSError, AttributeError):
        return 0
    return count.value if done else 0


def _meant(name: str) -> str | None:
    """The name that a misspelt one most likely means."""
    if numbered := _NUMBERED_GPU.fullmatch(name):
        return f"cuda:{int(numbered[1])}"
    if _SEVERAL.fullmatch(name):
        return "auto"
    if _GPU.fullmatch(name):
        return "cuda"
    return nearest(name, ("auto", *_TYPES))
