"""The devices of a machine, and how many lanes and how much memory a scan may use on each.

A lane is a thread that scores one batch at a time. The CPU has one lane per core. Two matrices take less time if two
cores score one each than if both cores work on one after the other; for small matrices it is several times less. Scores
then do not depend on the number of cores either.

Each lane of a GPU has its own CUDA stream. While one lane waits for the host, the other one uses the GPU.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch

from spectrum.compute import main_memory
from spectrum.compute.batches import BatchBudget
from spectrum.compute.device_names import check_device_name, not_a_device
from spectrum.errors import DeviceError, first_line

# More lanes are hardly faster, because the eigensolver keeps the whole GPU busy, and take more memory.
_GPU_LANES = 2

# Memory of a batch in bytes: enough matrices to hide the cost of a kernel call. On a GPU, with 32 matrices of 4096 rows
# instead of 16, each takes 12 percent less time.
_CPU_BATCH = 16 << 20
_GPU_BATCH = 16 << 30

# The same on a GPU for weights that arrive over a network: they arrive more slowly than a GPU scores them even in small
# batches, and those of an interrupted batch must arrive again.
_GPU_BATCH_FROM_NETWORK = 1 << 30

# Why a device could not score a matrix, in the words of messages: "cuda:0 has no memory for lm_head".
NO_MEMORY = "has no memory for"
NO_DECOMPOSITION = "cannot decompose"

# Parts of the messages of errors for which torch has no exception class. The second line is from cuBLAS and cuSOLVER,
# if the GPU has no memory left for their handles.
_OUT_OF_MEMORY = (
    *("can't allocate memory", "out of memory", "_ALLOC_FAILED"),
    *("_NOT_INITIALIZED", "cublasCreate", "cusolverDnCreate"),
)
_REFUSED = "cusolver error"  # cuSOLVER does not accept the arguments


def devices_for(name: str, warn: Callable[[str], None], process: int | None = None) -> list[torch.device]:
    """The devices that a `--device` stands for. `auto` is every visible GPU, or the CPU if there is none.

    The CPU replaces a device without float64 decompositions, with a warning.

    Args:
        name: auto, cpu, cuda, cuda:N, or another device that torch knows.
        warn: receives the warning.
        process: this process's number on its machine if several scan together, each on one GPU; else None.

    Raises DeviceError if the name is not a device, or if this machine does not have that GPU.
    """
    check_device_name(name)
    cpu = torch.device("cpu")
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if process is not None and gpus and name in ("auto", "cuda"):
        return [gpus[process % len(gpus)]]
    if name == "auto":
        return gpus or [cpu]
    try:
        device = torch.device(name)
    except RuntimeError as error:  # this torch does not have it
        raise not_a_device(name) from error
    if device.type == "cuda":
        if (device.index or 0) >= len(gpus):
            raise DeviceError(
                f"there is no device {name!r}: this machine has {len(gpus)} GPU(s) that torch can use; use auto or cpu"
            )
        return [gpus[device.index or 0]]
    if device.type != "cpu":
        warn(f"torch has no float64 eigensolver for {name}; the scan runs on the CPU")
    return [cpu]


def batch_budget(devices: Sequence[torch.device], processes: int = 1, *, from_network: bool = False) -> BatchBudget:
    """What limits a batch on these devices. A GPU has room for one in each lane while the next is read.

    Args:
        devices: all of one type.
        processes: how many processes share the devices.
        from_network: whether the weights arrive over a network.

    Raises DeviceError if a GPU cannot be used.
    """
    if devices[0].type != "cuda":
        return BatchBudget(_CPU_BATCH, num_gpus=0)
    most = _GPU_BATCH_FROM_NETWORK if from_network else _GPU_BATCH
    rooms = (memory_budget(device, processes) // (_GPU_LANES + 1) for device in devices)
    return BatchBudget(min(most, *rooms), num_gpus=len(devices))


def num_lanes(device: torch.device) -> int:
    """How many lanes a device has."""
    return torch.get_num_threads() if device.type == "cpu" else _GPU_LANES


def lane_context(device: torch.device) -> AbstractContextManager[object]:
    """A context in which a lane works, entered in its thread: a new CUDA stream on a GPU, nothing on the CPU."""
    if device.type == "cpu":
        # In a new thread MKL uses several cores until torch is asked for the number of its threads. The first matrix of
        # a lane would then be rounded differently from all others.
        torch.get_num_threads()
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


def warm_up(devices: Iterable[torch.device]) -> None:
    """Use the solver of each GPU once, because two threads must not be the first to use it (pytorch#90613).

    Raises DeviceError if a GPU cannot be used.
    """
    for device in devices:
        if device.type == "cuda":
            with _named_if_unusable(device):
                torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))


@contextmanager
def _named_if_unusable(gpu: torch.device) -> Iterator[None]:
    """Raises DeviceError if the first use of a GPU fails."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:  # a torch built without CUDA raises AssertionError
        raise DeviceError(f"{gpu} cannot be used: {first_line(error)}; use --device cpu to scan without it") from error


def release_cached_memory(devices: Iterable[torch.device]) -> None:
    """Return the GPU memory that torch keeps for later calls, because a training may follow the scan.

    This is freed memory, and the cuBLAS workspace of each lane's stream.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    if not gpus:
        return
    with suppress(RuntimeError):  # a GPU that failed during the scan raises its error again here
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
        getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)()  # torch has no public function for it
        torch.cuda.empty_cache()


@contextmanager
def one_core_per_thread(devices: Iterable[torch.device]) -> Iterator[None]:
    """If the CPU is among the devices, let torch use one core in each thread; afterwards as many as before."""
    if any(device.type == "cpu" for device in devices):
        with _threads(1):
            yield
    else:
        yield


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use all cores in this thread, even if a launcher of several processes has set one core for each."""
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


def unique_name(device: torch.device) -> str:
    """A name that no other device on any machine has. Processes compare these to find out which share a device."""
    if device.type != "cuda":
        return f"{device} of {platform.node()}"
    return str(getattr(torch.cuda.get_device_properties(device), "uuid", f"{device} of {platform.node()}"))


def memory_budget(device: torch.device, processes: int = 1) -> int:
    """Memory in bytes that all batches in flight may take together: half of the free main memory, 4/5 of a GPU's.

    Args:
        processes: how many processes share the device.

    Raises DeviceError if a GPU cannot be used.
    """
    if device.type == "cuda":
        with _named_if_unusable(device):
            free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # freed, but kept by torch
        return free * 4 // 5 // processes
    return main_memory.available() // 2 // processes


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out. torch has an exception class for only some of these."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error) for words in _OUT_OF_MEMORY
    )


def problem_of(error: Exception) -> str | None:
    """Why the device failed where another device may succeed: NO_MEMORY or NO_DECOMPOSITION. None for other errors."""
    if is_out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, torch.linalg.LinAlgError) or _REFUSED in str(error):  # type: ignore[attr-defined]
        return NO_DECOMPOSITION
    return None
