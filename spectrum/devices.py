"""What a scan may use of a machine: its devices, their lanes, their memory.

A lane is a thread that scores one batch at a time. On the CPU there is one for each core: two matrices on a core each
are done before the same two one after the other on both cores, small ones several times sooner, and scores do not
depend on the number of cores. A GPU has two, each with a stream of its own, so that the copies of one, and the gaps
between its launches, hide behind the arithmetic of the other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from spectrum.errors import DeviceError

_GPU_LANES = 2

_CPU_BATCH = 16 << 20  # bytes
_GPU_BATCH = 512 << 20

_UNKNOWN_MEMORY = 8 << 30  # a small machine of today
_NO_MEMORY = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")

_CGROUP = [
    tuple(f"/sys/fs/cgroup/{name}" for name in names)
    for names in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
]


def devices_for(name: str, warn: Callable[[str], None], process: int | None = None) -> list[torch.device]:
    """The devices that a `--device` means: `auto` is every visible GPU, else the CPU.

    process: the number on this machine of one of several processes, each of which has a GPU of its own. What cannot do
    float64 decompositions is replaced by the CPU; `warn` is told. Raises DeviceError for a name that is no device, or a
    GPU that this machine lacks.
    """
    cpu = torch.device("cpu")
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if process is not None and gpus and name in ("auto", "cuda"):
        return [gpus[process % len(gpus)]]
    if name == "auto":
        return gpus or [cpu]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        if (device.index or 0) >= len(gpus):
            raise DeviceError(f"there is no device {name!r}: this machine has {len(gpus)} GPU(s) that torch can use")
        return [gpus[device.index or 0]]
    if device.type != "cpu":
        warn(f"torch has no float64 eigensolver for {name}; the scan runs on the CPU")
    return [cpu]


def batch_budget(devices: Iterable[torch.device]) -> int:
    """Bytes that small matrices may take together in a call: enough to hide the calls' overhead."""
    return max(_CPU_BATCH if device.type == "cpu" else _GPU_BATCH for device in devices)


def lanes(device: torch.device) -> int:
    """How many batches are scored at a time."""
    return torch.get_num_threads() if device.type == "cpu" else _GPU_LANES


def lane(device: torch.device) -> AbstractContextManager[object]:
    """What the work of a lane is done within."""
    return nullcontext() if device.type == "cpu" else torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


@contextmanager
def one_core_a_thread(devices: Iterable[torch.device]) -> Iterator[None]:
    """If the CPU is among the devices: have torch use one core in each thread, afterwards as many as before."""
    threads = torch.get_num_threads()
    if any(device.type == "cpu" for device in devices):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def memory_budget(device: torch.device, processes: int = 1) -> int:
    """Bytes that the batches in flight may take together: half of the memory that is free, of a GPU's most.

    processes: how many of them share the machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free * 4 // 5
    return _available_memory() // 2 // processes


def is_out_of_memory(error: Exception) -> bool:
    """Whether a failure is for want of memory; torch has exceptions of their own only for some of these."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _NO_MEMORY)


def _available_memory() -> int:
    """Bytes of main memory that can be had without swapping, within the limit that a container sets."""
    limits = []
    with suppress(OSError, ValueError, IndexError):
        meminfo = Path("/proc/meminfo").read_text()
        limits.append(int(meminfo.split("MemAvailable:")[1].split()[0]) << 10)
    for limit, used, statistics in _CGROUP:
        with suppress(OSError, ValueError, IndexError):  # "max" where there is no limit
            # What is counted as used includes files' pages, which are given up for whoever needs memory.
            pages = int(Path(statistics).read_text().split("inactive_file ")[1].split()[0])
            limits.append(int(Path(limit).read_text()) - int(Path(used).read_text()) + pages)
    if not limits:
        with suppress(AttributeError, OSError, ValueError):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return max(0, min(limits, default=_UNKNOWN_MEMORY))
