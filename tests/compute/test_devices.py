"""The devices that a `--device` stands for, their lanes and their memory."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from spectrum.compute import main_memory
from spectrum.compute.batches import BatchBudget
from spectrum.compute.devices import (
    NO_DECOMPOSITION,
    NO_MEMORY,
    all_cores,
    batch_budget,
    devices_for,
    is_out_of_memory,
    lane_context,
    memory_budget,
    num_lanes,
    one_core_per_thread,
    problem_of,
    unique_name,
)
from spectrum.errors import DeviceError

CPU = torch.device("cpu")


def no_warning(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 1, ["cuda:0"]),
        ("auto", 3, ["cuda:0", "cuda:1", "cuda:2"]),
        ("cpu", 0, ["cpu"]),
        ("cpu", 2, ["cpu"]),
        ("cuda", 2, ["cuda:0"]),
        ("cuda:1", 2, ["cuda:1"]),
    ],
)
def test_devices(name: str, gpus: int, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [str(device) for device in devices_for(name, no_warning)] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "'nonsense' is not a device; use auto, cpu, cuda or cuda:N"),
        ("", "'' is not a device"),
        ("cuda:-1", "'cuda:-1' is not a device"),
        ("cuda:99", "there is no device 'cuda:99': this machine has 2 GPU(s) that torch can use; use auto or cpu"),
        ("cuda:2", "there is no device 'cuda:2': this machine has 2 GPU(s)"),
    ],
)
def test_a_device_that_is_not_there_is_named(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=re.escape(message)):
        devices_for(name, no_warning)


@pytest.mark.parametrize("name", ["mps", "mps:0", "xpu", "meta"])
def test_the_cpu_stands_in_for_a_device_without_a_float64_eigensolver_and_says_so(name: str) -> None:
    said: list[str] = []
    assert devices_for(name, said.append) == [CPU]
    assert said == [f"torch has no float64 eigensolver for {name}; the scan runs on the CPU"]


def test_the_cpu_has_a_lane_for_each_core_that_torch_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (1, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda cores=cores: cores)
        assert num_lanes(CPU) == cores
    with lane_context(CPU):
        assert torch.ones(1).item() == 1


def test_a_gpu_has_a_second_lane_while_one_waits() -> None:
    assert num_lanes(torch.device("cuda")) == 2


def test_one_core_a_thread_is_for_the_cpu_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_core_per_thread([torch.device("cuda"), CPU]):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with one_core_per_thread([torch.device("cuda")]):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_all_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 4, 6}, raising=False)
    before = torch.get_num_threads()
    with all_cores():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before


def free_memory(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Let GPUs have so many free bytes of memory, of which torch keeps none."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device.index], 80 << 30))
    for kept in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, kept, lambda device: 0)


def test_a_gpu_has_room_for_a_batch_in_each_lane_and_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 24 << 30, 12 << 30)
    gpus = [torch.device("cuda", i) for i in range(2)]
    assert batch_budget(gpus) == BatchBudget((12 << 30) * 4 // 5 // 3, num_gpus=2)
    assert batch_budget(gpus[:1], 4) == BatchBudget((24 << 30) * 4 // 5 // 4 // 3, num_gpus=1)
    assert batch_budget(gpus, from_network=True) == BatchBudget(1 << 30, num_gpus=2)
    free_memory(monkeypatch, 120 << 30, 120 << 30)
    assert batch_budget(gpus) == BatchBudget(16 << 30, num_gpus=2)
    free_memory(monkeypatch, 1 << 30, 1 << 30)
    assert batch_budget(gpus, from_network=True) == batch_budget(gpus)
    assert batch_budget([CPU]) == batch_budget([CPU], from_network=True) == BatchBudget(16 << 20, num_gpus=0)


def test_a_gpu_that_cannot_be_used_is_said_when_its_memory_is_asked_for() -> None:
    with pytest.raises(DeviceError, match=r"cuda:63 cannot be used: .*; use --device cpu"):
        batch_budget([torch.device("cuda", 63)])


def test_processes_that_share_a_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free_memory(monkeypatch, 2000, 1000)
    gpu = torch.device("cuda", 1)
    assert [memory_budget(gpu, processes) for processes in (1, 2, 8)] == [800, 400, 100]


def test_a_device_is_known_by_a_name_that_no_other_has(monkeypatch: pytest.MonkeyPatch) -> None:
    uuids = ["GPU-1", "GPU-2"]
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuids[device.index or 0])
    )
    assert [unique_name(torch.device("cuda", i)) for i in range(2)] == uuids
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace())
    names = {unique_name(torch.device("cuda", i)) for i in range(2)} | {unique_name(CPU)}
    assert len(names) == 3
    assert all(name.endswith(f" of {platform.node()}") for name in names)


def test_the_budget_is_half_of_the_memory_that_the_process_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_memory, "available", lambda: 1000)
    assert [memory_budget(CPU, processes) for processes in (1, 3)] == [500, 166]


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="what is free is told elsewhere")
def test_the_budget_is_within_the_memory_that_is_free() -> None:
    available = int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0]) << 10
    assert 0 < memory_budget(CPU) <= 0.6 * available


def test_failures_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)  # the error of torch's own allocator
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    for words in (
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`",
    ):
        assert is_out_of_memory(RuntimeError(words))
        assert problem_of(RuntimeError(words)) == NO_MEMORY
    assert not is_out_of_memory(RuntimeError("did not converge"))


def test_failures_of_a_decomposition() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.linalg.cholesky(torch.zeros(2, 2))
    assert problem_of(caught.value) == NO_DECOMPOSITION
    assert (
        problem_of(RuntimeError("cusolver error: CUSOLVER_STATUS_INVALID_VALUE, when calling `...`"))
        == NO_DECOMPOSITION
    )
    assert problem_of(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
