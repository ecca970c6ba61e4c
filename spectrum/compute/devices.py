"""What a scan may use of a machine: its devices, their lanes, their memory.

A lane is a thread that scores one batch at a time. On the CPU there is one for each core: two matrices on a core each
are done before the same two one after the other on both cores, small ones several times sooner, and scores do not
depend on the number of cores. The lanes of a GPU have a stream each: while one waits for the host, where the last part
of the eigensolver runs, for a copy, or between launches, the others have the GPU.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch

from spectrum.compute import main_memory
from spectrum.errors import DeviceError, first_line

# How many lanes a GPU has, up to which short side k. The host's part of the eigensolver takes k^2 time, the GPU's k^3:
# the smaller the matrices, the more lanes keep the GPU busy. Estimated from that, not measured yet.
_GPU_LANES = ((1024, 6), (4096, 4))
_GPU_LANES_BEYOND = 3
_CPU_BATCH = 16 << 20  # bytes
_GPU_BATCH = 768 << 20

# What a device could not do, as messages say it.
NO_MEMORY = "has no memory for"
NO_DECOMPOSITION = "cannot decompose"

# Words in errors for which torch has no exception of its own. The last three come from cuBLAS and cuSOLVER when the GPU
# has no memory left for their handles.
_OUT_OF_MEMORY = (
    *("can't allocate memory", "out of memory", "_ALLOC_FAILED"),
    *("_NOT_INITIALIZED", "cublasCreate", "cusolverDnCreate"),
)
_REFUSED = "cusolver error"  # of arguments that cuSOLVER does not accept


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
            raise DeviceError(
                f"there is no device {name!r}: this machine has {len(gpus)} GPU(s) that torch can use; use auto or cpu"
            )
        return [gpus[device.index or 0]]
    if device.type != "cpu":
        warn(f"torch has no float64 eigensolver for {name}; the scan runs on the CPU")
    return [cpu]


def batch_budget(devices: Iterable[torch.device]) -> int:
    """Bytes that small matrices may take together in a call: enough to hide the calls' overhead."""
    return max(_CPU_BATCH if device.type == "cpu" else _GPU_BATCH for device in devices)


def lanes(device: torch.device, k: int) -> int:
    """How many batches of matrices of short side k are scored at a time."""
    if device.type == "cpu":
        return torch.get_num_threads()
    return next((number for largest, number in _GPU_LANES if k <= largest), _GPU_LANES_BEYOND)


def lane(device: torch.device) -> AbstractContextManager[object]:
    """What the work of a lane is done within."""
    if device.type == "cpu":
        # A new thread has MKL's own number of cores until torch is asked for its. With two cores, the first matrix of a
        # lane would be rounded otherwise than with one.
        torch.get_num_threads()
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def warm_up(devices: Iterable[torch.device]) -> None:
    """Use the solver of each GPU once: its first use must not be in two threads at once (pytorch#90613).

    Raises DeviceError for a GPU that cannot be used.
    """
    for device in devices:
        if device.type == "cuda":
            try:
                torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
            except (RuntimeError, AssertionError) as error:  # the latter from a torch that is built without CUDA
                raise DeviceError(
                    f"{device} cannot be used: {first_line(error)}; use --device cpu to scan without it"
                ) from error


def give_memory_back(devices: Iterable[torch.device]) -> None:
    """Return GPU memory that torch keeps for later calls, since a training may follow the scan.

    That is freed memory, a workspace of cuBLAS for each lane's stream, and pinned main memory.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        return
    with suppress(RuntimeError):  # a GPU that has failed says so here again
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
        for release in ("_cuda_clearCublasWorkspaces", "_host_emptyCache"):  # torch has no public way
            getattr(torch._C, release, lambda: None)()
        torch.cuda.empty_cache()


@contextmanager
def one_core_a_thread(devices: Iterable[torch.device]) -> Iterator[None]:
    """If the CPU is among the devices: have torch use one core in each thread, afterwards as many as before."""
    if any(device.type == "cpu" for device in devices):
        with _threads(1):
            yield
    else:
        yield


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use all cores in this thread, even if a launcher of several processes has set one for each."""
    with _threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1):
        yield


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def identity(device: torch.device) -> str:
    """A name that no other device has, on any machine. Processes compare it to see whether they share a device."""
    if device.type != "cuda":
        return f"{device} of {platform.node()}"
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", f"{device} of {platform.node()}"))


def memory_budget(device: torch.device, processes: int = 1) -> int:
    """Bytes that the batches in flight may take together: half of the memory that is free, or four fifths of a GPU's.

    processes: how many share the device.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # freed, and kept by torch
        return free * 4 // 5 // processes
    return main_memory.available() // 2 // processes


def is_out_of_memory(error: Exception) -> bool:
    """Whether a failure is for want of memory; torch has exceptions of their own only for some of these."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )


def problem_of(error: Exception) -> str | None:
    """What the device could not do, NO_MEMORY or NO_DECOMPOSITION; None for any other failure.

    Another device may succeed.
    """
    if is_out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, torch.linalg.LinAlgError) or _REFUSED in str(error):  # type: ignore[attr-defined]
        return NO_DECOMPOSITION
    return None
