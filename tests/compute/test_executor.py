"""Planning, reading and scoring together, with tensors from a dictionary."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from spectrum.compute import executor, lanes, snr
from spectrum.compute.batches import BatchBudget, WeightBatch, plan
from spectrum.compute.workspace import call_bytes
from spectrum.errors import DeviceError
from spectrum.records import BulkEdge, LayerWeight, MatrixScore
from tests.helpers.gpu_memory import limited_memory
from tests.helpers.oracle import oracle_snr
from tests.helpers.scanned import scan

CPU = torch.device("cpu")


class Reader:
    """Reads matrices from memory and records which."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self.parameters = parameters
        self.reads: list[tuple[str, int]] = []

    def __call__(self, weight: LayerWeight, index: int) -> torch.Tensor:
        self.reads.append((weight.parameter, index))
        value = self.parameters[weight.parameter]
        return value[index] if value.ndim == 3 else value

    def weights(self) -> list[LayerWeight]:
        return [
            LayerWeight(
                name,
                "type",
                parameter=name,
                shape=tuple(value.shape),
                matrix_shape=(value.shape[-2], value.shape[-1]),
                num_matrices=value.shape[0] if value.ndim == 3 else 1,
                dtype=str(value.dtype).removeprefix("torch."),
            )
            for name, value in self.parameters.items()
        ]


def matrices(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def alike(count: int) -> Reader:
    return Reader({f"layers.{i}": matrices(5, 8, seed=i) for i in range(count)})


def spy_on_score(
    monkeypatch: pytest.MonkeyPatch, before: Callable[[torch.Tensor], object] = lambda batch: None
) -> list[tuple[int, ...]]:
    """A list that collects the shapes of the kernel's calls from now on."""
    shapes: list[tuple[int, ...]] = []
    score = snr.score

    def spy(batch: torch.Tensor) -> snr.Scores:
        shapes.append(tuple(batch.shape))
        before(batch)
        return score(batch)

    monkeypatch.setattr(snr, "score", spy)
    return shapes


def workers() -> list[threading.Thread]:
    """The threads of scans that are still running."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(("score ", "read ahead"))]


@pytest.mark.parametrize("batch_size", [None, 1, 2, 100])
def test_every_weight_is_read_and_scored_once(batch_size: int | None) -> None:
    reader = Reader(
        {
            **{f"wide.{i}": matrices(4, 9, seed=i) for i in range(5)},
            **{f"tall.{i}": matrices(9, 4, seed=10 + i) for i in range(3)},
            **{f"half.{i}": matrices(4, 9, seed=20 + i).bfloat16() for i in range(2)},
            "norm": matrices(1, 9, seed=30),
        }
    )
    scores = list(scan(reader.weights(), reader, [CPU], batch_size))
    expected = {name: oracle_snr(value.double().numpy()) for name, value in reader.parameters.items()}
    assert sorted(score.name for score in scores) == sorted(expected)
    assert {score.name: score.snr for score in scores} == pytest.approx(expected, rel=1e-8)
    assert all(score.experts is None and score.layer_type == "type" for score in scores)
    assert sorted(reader.reads) == sorted((name, 0) for name in expected)


def test_a_tied_weight_is_read_once_and_entered_under_each_of_its_names() -> None:
    reader = alike(3)
    tied = LayerWeight("lm_head", "lm_head", "layers.0", (5, 8), (5, 8), 1, "float64")
    scores = {score.name: score for score in scan([*reader.weights(), tied], reader, [CPU], 1)}
    assert sorted(scores) == ["layers.0", "layers.1", "layers.2", "lm_head"]
    assert (
        scores["lm_head"].snr
        == scores["layers.0"].snr
        == pytest.approx(oracle_snr(reader.parameters["layers.0"].numpy()))
    )
    assert scores["lm_head"].layer_type == "lm_head"
    assert reader.reads.count(("layers.0", 0)) == 1


@pytest.mark.parametrize("experts", [2, 3, 4, 5])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_stack_scores_the_median_of_its_experts_and_lists_them(experts: int, batch_size: int | None) -> None:
    # A second stack and a matrix have the same shape, so that they share batches with the first stack.
    reader = Reader({"a": matrices(experts, 6, 7), "b": matrices(3, 6, 7, seed=1), "c": matrices(6, 7, seed=2)})
    scores = {score.name: score for score in scan(reader.weights(), reader, [CPU], batch_size)}
    expected = [oracle_snr(expert) for expert in reader.parameters["a"].numpy()]
    assert scores["a"].experts == pytest.approx(expected, rel=1e-8)
    assert scores["a"].snr == pytest.approx(np.median(expected), rel=1e-8)
    assert len(scores["b"].experts or ()) == 3
    assert scores["c"].experts is None
    assert sorted(reader.reads) == sorted([*(("a", i) for i in range(experts)), ("b", 0), ("b", 1), ("b", 2), ("c", 0)])


def test_a_weight_with_nan_scores_nan_and_no_other_does() -> None:
    reader = Reader({"a": matrices(5, 8), "b": matrices(5, 8, seed=1), "stack": matrices(3, 5, 8, seed=2)})
    reader.parameters["a"][2, 3] = math.nan
    reader.parameters["stack"][2, 0, 0] = math.inf
    scores = {score.name: score for score in scan(reader.weights(), reader, [CPU])}
    assert math.isnan(scores["a"].snr)
    assert scores["b"].snr == pytest.approx(oracle_snr(reader.parameters["b"].numpy()), rel=1e-8)
    assert math.isnan(scores["stack"].snr)
    assert [math.isnan(value) for value in scores["stack"].experts or ()] == [False, False, True]


def test_a_scan_that_fails_does_not_wait_for_a_read_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, reading, stopped = alike(4), threading.Event(), threading.Event()

    def slow(weight: LayerWeight, index: int) -> torch.Tensor:
        if reader.reads:
            reading.set()
            stopped.wait(5)
            raise DeviceError("the read was stopped")
        return reader(weight, index)

    def fail(batch: torch.Tensor) -> None:
        reading.wait(30)
        raise ValueError("the kernel fails")

    spy_on_score(monkeypatch, fail)
    batches = plan(reader.weights(), 1, BatchBudget(1 << 20, num_gpus=0))
    with pytest.raises(ValueError, match="the kernel fails"):
        list(executor.score(batches, slow, [CPU], stop_reading=stopped.set))
    assert stopped.is_set()
    assert workers() == []


def test_an_exception_of_the_reader_surfaces_unchanged_and_ends_the_reading() -> None:
    reader = alike(50)
    failure = OSError("the disk is gone")

    def failing(weight: LayerWeight, index: int) -> torch.Tensor:
        value = reader(weight, index)
        if weight.name == "layers.3":
            raise failure
        return value

    with pytest.raises(OSError, match="the disk is gone") as caught:
        list(scan(reader.weights(), failing, [CPU], 1))
    assert caught.value is failure
    assert workers() == []
    assert len(reader.reads) == 4


def endless() -> Reader:
    """More weights than the workers score before the test stops them."""
    return Reader(dict.fromkeys((f"layers.{i}" for i in range(5000)), matrices(5, 8)))


def test_an_exception_on_one_device_stops_the_others() -> None:
    reader = endless()

    def failing(weight: LayerWeight, index: int) -> torch.Tensor:
        value = reader(weight, index)
        if weight.name == "layers.3":
            raise OSError("the disk is gone")
        return value

    with pytest.raises(OSError, match="the disk is gone"):
        list(scan(reader.weights(), failing, [CPU, CPU], 1))
    assert workers() == []
    assert len(reader.reads) < 5000


def test_an_exception_of_the_kernel_surfaces_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = RuntimeError("did not converge")

    def failing(batch: torch.Tensor) -> snr.Scores:
        raise failure

    monkeypatch.setattr(snr, "score", failing)
    reader = alike(3)
    with pytest.raises(RuntimeError, match="did not converge") as caught:
        list(scan(reader.weights(), reader, [CPU]))
    assert caught.value is failure


@pytest.mark.parametrize(
    ("batch_size", "calls"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (50, [7]), (None, [7])], ids=str
)
def test_the_kernel_is_called_on_batches_of_the_wanted_size(
    batch_size: int | None, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = spy_on_score(monkeypatch)
    reader = alike(7)
    list(scan(reader.weights(), reader, [CPU], batch_size))
    assert shapes == [(size, 5, 8) for size in calls]


def test_two_devices_share_the_batches_and_find_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {score.name: score.snr for score in scan(alike(9).weights(), alike(9), [CPU], 1)}
    workers: set[int] = set()
    both = threading.Barrier(2)

    def meet(batch: torch.Tensor) -> None:
        # A worker's first call waits for the other's: one worker alone would break the barrier.
        if threading.get_ident() not in workers:
            workers.add(threading.get_ident())
            both.wait(timeout=60)

    shapes = spy_on_score(monkeypatch, meet)
    reader = alike(9)
    scores = list(scan(reader.weights(), reader, [CPU, CPU], 1))
    assert {score.name: score.snr for score in scores} == pytest.approx(alone, rel=1e-12)
    assert (len(scores), len(shapes), len(workers)) == (9, 9, 2)
    assert sorted(reader.reads) == sorted((name, 0) for name in alone)


def test_closing_the_scan_early_ends_the_reading() -> None:
    reader = endless()
    stream = scan(reader.weights(), reader, [CPU, CPU], 1)
    assert isinstance(stream, Generator)
    next(stream)
    stream.close()
    assert workers() == []
    assert len(reader.reads) < 5000


def test_nothing_to_scan_gives_nothing() -> None:
    assert list(scan([], Reader({}), [CPU])) == []


def no_convergence() -> Exception:
    """The exception that torch raises if a decomposition fails."""
    with pytest.raises(RuntimeError) as caught:
        torch.linalg.cholesky(torch.zeros(2, 2))
    return caught.value


class Starved:
    """A kernel that fails for more than `most` matrices in one call, and records the size of each call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, failure: Exception) -> None:
        self.sizes: list[int] = []
        score = snr.score

        def starved(batch: torch.Tensor) -> snr.Scores:
            self.sizes.append(len(batch))
            if len(batch) > most:
                raise failure
            return score(batch)

        monkeypatch.setattr(snr, "score", starved)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "failure",
    [
        OUT_OF_MEMORY,
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        no_convergence(),
    ],
    ids=["gpu", "python", "cpu", "no convergence"],
)
@pytest.mark.parametrize(("most", "sizes"), [(7, [7]), (6, [7, 3, 4]), (3, [7, 3, 4, 2, 2]), (1, 13)], ids=str)
def test_a_batch_that_is_too_much_is_halved(
    failure: Exception, most: int, sizes: list[int] | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {score.name: score.snr for score in scan(alike(7).weights(), alike(7), [CPU])}
    kernel = Starved(monkeypatch, most, failure)
    reader = alike(7)
    warnings: list[str] = []
    scores = {score.name: score.snr for score in scan(reader.weights(), reader, [CPU], None, warnings.append)}
    assert scores == pytest.approx(expected, rel=1e-12)
    assert kernel.sizes == sizes or len(kernel.sizes) == sizes
    assert warnings == []
    assert sorted(reader.reads) == sorted((name, 0) for name in expected)  # none was read twice


def test_a_matrix_for_which_the_cpu_has_no_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Starved(monkeypatch, 0, MemoryError())
    reader = alike(1)
    with pytest.raises(DeviceError, match=re.escape("the CPU has no memory for layers.0, 5 x 8")):
        list(scan(reader.weights(), reader, [CPU]))
    assert kernel.sizes == [1, 1]  # tried again, alone


def test_a_matrix_that_the_cpu_cannot_decompose_is_named_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Starved(monkeypatch, 0, no_convergence())
    reader = alike(1)
    with pytest.raises(DeviceError, match=re.escape("the CPU cannot decompose layers.0, 5 x 8")):
        list(scan(reader.weights(), reader, [CPU]))
    assert kernel.sizes == [1]


def test_a_matrix_without_memory_is_tried_again_when_the_other_lanes_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are three lanes. One runs out of memory while the others are at work."""
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 3)
    score, lock, scoring = snr.score, threading.Lock(), 0
    begun, failed = threading.Event(), threading.Event()
    beside: list[int] = []

    def starved(batch: torch.Tensor) -> snr.Scores:
        nonlocal scoring
        with lock:
            scoring += 1
            others = scoring - 1
        try:
            if batch[0, 0, 0] == 1000:
                beside.append(others)
                if len(beside) == 1:
                    assert begun.wait(timeout=60)
                    failed.set()
                    raise OUT_OF_MEMORY
            else:
                begun.set()
                failed.wait(timeout=60)  # the others are not done before it has failed
                time.sleep(0.05)
            return score(batch)
        finally:
            with lock:
                scoring -= 1

    monkeypatch.setattr(snr, "score", starved)
    reader = alike(12)
    reader.parameters["layers.0"][0, 0] = 1000
    warnings: list[str] = []
    scores = list(scan(reader.weights(), reader, [CPU], 1, warnings.append))
    assert (len(scores), warnings) == (12, [])
    assert len(beside) == 2
    assert beside[1] == 0


def on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, failure: Exception, on_cpu: Callable[[], object] = lambda: None
) -> tuple[torch.device, list[str]]:
    """A device that fails at everything, and a list that collects the devices of the kernel's calls from now on.

    The meta device stands in for a GPU. It holds no values, so all scores come from the CPU.
    """
    score, called = snr.score, []

    def on(batch: torch.Tensor) -> snr.Scores:
        called.append(batch.device.type)
        if batch.device.type == "meta":
            raise failure
        on_cpu()
        return score(batch)

    monkeypatch.setattr(snr, "score", on)
    monkeypatch.setattr(executor, "lane_context", lambda device: nullcontext())
    return torch.device("meta"), called


@pytest.mark.parametrize(
    ("failure", "words", "tries"),
    [(OUT_OF_MEMORY, "has no memory for", 2), (no_convergence(), "cannot decompose", 1)],
    ids=["memory", "convergence"],
)
def test_what_is_too_much_for_a_device_goes_to_the_cpu_with_a_warning(
    failure: Exception, words: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, called = on_a_gpu(monkeypatch, failure)
    reader = alike(3)
    warnings: list[str] = []
    scores = {score.name: score.snr for score in scan(reader.weights(), reader, [gpu], 1, warnings.append)}
    assert scores == {name: pytest.approx(oracle_snr(value.numpy())) for name, value in reader.parameters.items()}
    assert sorted(warnings) == [f"meta {words} layers.{i}; the CPU takes it" for i in range(3)]
    assert (called.count("meta"), called.count("cpu")) == (3 * tries, 3)


def test_the_cpu_stands_in_for_one_lane_at_a_time_with_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(5), raising=False)
    at_once = threading.Lock()
    threads: list[int] = []

    def on_cpu() -> None:
        assert at_once.acquire(blocking=False)  # no other lane is here
        threads.append(torch.get_num_threads())
        time.sleep(0.01)
        at_once.release()

    gpu, _ = on_a_gpu(monkeypatch, OUT_OF_MEMORY, on_cpu)
    before = torch.get_num_threads()
    reader = alike(6)
    assert len(list(scan(reader.weights(), reader, [gpu], 1))) == 6
    assert threads == [5] * 6
    assert torch.get_num_threads() == before


def test_a_device_goes_on_while_the_cpu_stands_in_for_one_of_its_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are two lanes. One waits for the CPU, the other one wants the whole device."""
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 2)
    score, attempts, others_done = snr.score, Counter[float](), threading.Event()

    def attempt(stored: torch.Tensor, device: torch.device) -> list[MatrixScore] | str:
        which = float(stored[0, 0, 0])
        if device.type == "cpu":
            assert others_done.wait(timeout=60)
        elif which == 1000 or (which == 2000 and not attempts[which]):
            attempts[which] += 1
            return "has no memory for"
        scores = torch.stack(score(stored), dim=1).tolist()
        return [MatrixScore(row[0], BulkEdge(int(row[1]), int(row[2]), *row[3:])) for row in scores]

    monkeypatch.setattr(executor, "_try_to_score", attempt)
    monkeypatch.setattr(executor, "lane_context", lambda device: nullcontext())
    reader = alike(8)
    reader.parameters["layers.0"][0, 0], reader.parameters["layers.1"][0, 0] = 1000, 2000
    found = []
    for layer in scan(reader.weights(), reader, [torch.device("meta")], 1):
        found.append(layer.name)
        if len(found) == 7:
            others_done.set()  # all but the one on the CPU
    assert (len(found), found[-1]) == (8, "layers.0")


def test_a_scan_that_is_closed_tries_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 2)
    closing = threading.Event()
    sizes: list[int] = []

    def attempt(stored: torch.Tensor, device: torch.device) -> list[MatrixScore] | str:
        if len(stored) == 1 and not sizes:
            return [MatrixScore(1.0, BulkEdge(1, 0, 1.0, 0.0))]
        sizes.append(len(stored))
        closing.wait(timeout=60)
        return "has no memory for"

    monkeypatch.setattr(executor, "_try_to_score", attempt)
    reader = Reader({"norm": matrices(1, 8), "experts": matrices(64, 1, 7)})
    budget = BatchBudget(1, num_gpus=0)
    small, large = plan([*reader.weights()][:1], 1, budget), plan([*reader.weights()][1:], 64, budget)
    stream = executor.score([*small, *large], reader, [CPU])
    next(stream)
    while not sizes:
        time.sleep(0.001)
    threading.Timer(0.1, closing.set).start()
    stream.close()
    assert sizes == [64]
    assert workers() == []


def test_what_was_read_ahead_is_not_scored_when_the_scan_has_been_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 1)
    closing, score, scored = threading.Event(), snr.score, []

    def counted(batch: torch.Tensor) -> snr.Scores:
        scored.append(len(batch))
        if len(scored) == 2:
            closing.wait(timeout=60)
        return score(batch)

    monkeypatch.setattr(snr, "score", counted)
    reader = alike(3)
    stream = executor.score(plan(reader.weights(), 1, BatchBudget(1, num_gpus=0)), reader, [CPU])
    next(stream)
    while len(scored) < 2 or len(reader.reads) < 3:
        time.sleep(0.001)
    threading.Timer(0.1, closing.set).start()
    stream.close()
    assert scored == [1, 1]


@pytest.mark.parametrize(("budget", "place"), [(1, "cpu"), (1 << 30, "meta")])
def test_a_batch_over_the_budget_waits_in_main_memory(budget: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, places = executor._stack, []

    def recorded(batch: WeightBatch, read: executor.Reader, device: torch.device) -> torch.Tensor:
        places.append(device.type)
        return stack(batch, read, device)

    monkeypatch.setattr(executor, "_stack", recorded)
    monkeypatch.setattr(lanes, "memory_budget", lambda device, processes: budget)
    device, _ = on_a_gpu(monkeypatch, OUT_OF_MEMORY)
    reader = alike(6)
    assert len(list(scan(reader.weights(), reader, [device], 3))) == 6
    assert places == [place] * 2


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, MemoryError()], ids=["gpu", "python"])
def test_what_a_gpu_has_no_memory_for_stays_in_main_memory(error: Exception) -> None:
    def make(place: torch.device) -> torch.Tensor:
        if place.type == "cuda":
            raise error
        return torch.ones(2, device=place)

    assert executor._in_memory_of(torch.device("cuda", 0), make).is_cpu


def test_another_error_of_a_gpu_is_not_taken_for_a_lack_of_memory() -> None:
    def make(place: torch.device) -> torch.Tensor:
        if place.type == "cuda":
            raise RuntimeError("an illegal memory access was encountered")
        return torch.ones(2)

    with pytest.raises(RuntimeError, match="illegal"):
        executor._in_memory_of(torch.device("cuda", 0), make)


def test_a_device_that_cannot_be_used_is_said_before_anything_is_read() -> None:
    reader = alike(3)
    with pytest.raises(DeviceError, match=r"cuda:63 cannot be used: .*; use --device cpu"):
        list(scan(reader.weights(), reader, [CPU, torch.device("cuda", 63)]))
    assert reader.reads == []
    assert workers() == []


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_scores_do_not_depend_on_cores_devices_or_batches(cores: int) -> None:
    """To the last digit: a resumed scan, or one on another machine, must find the same."""
    parameters = {
        **{f"small.{i}": matrices(30, 40, seed=i).bfloat16() for i in range(8)},
        **{f"wide.{i}": matrices(300, 700, seed=10 + i).bfloat16() for i in range(3)},
        "tall": matrices(900, 210, seed=20).bfloat16(),
        "square": matrices(260, 260, seed=21),
    }
    alone = {score.name: score.snr for score in scan(Reader(parameters).weights(), Reader(parameters), [CPU], 1)}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(cores)
        for devices, batch_size in (([CPU], 1), ([CPU, CPU], 3), ([CPU], None)):
            reader = Reader(parameters)
            scores = {score.name: score.snr for score in scan(reader.weights(), reader, devices, batch_size)}
            assert scores == alone
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_batches_in_flight_keep_within_the_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    # There are five lanes, but memory for two matrices only: no more may be read and not yet scored.
    size = call_bytes(1, (50, 80), "float64", gpu=False)
    monkeypatch.setattr(lanes, "memory_budget", lambda device, processes: 2 * size)
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 5)
    matrix = matrices(50, 80)
    held: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def read(weight: LayerWeight, index: int) -> torch.Tensor:
        nonlocal most
        value = matrix.clone()
        held.append(weakref.ref(value))
        most = max(most, sum(ref() is not None for ref in held))
        return value

    weights = Reader(dict.fromkeys((f"layers.{i}" for i in range(200)), matrix)).weights()
    assert len(list(scan(weights, read, [CPU], 1))) == 200
    assert most == 2


def test_a_matrix_over_the_budget_is_scored_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "memory_budget", lambda device, processes: 1)
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 3)
    reader = alike(20)
    assert len(list(scan(reader.weights(), reader, [CPU], 1))) == 20


def test_a_large_share_is_not_overtaken_by_small_ones() -> None:
    room = lanes.Budget(2)
    room.acquire(1)
    served: list[int] = []

    def wait_for(size: int) -> threading.Thread:
        def take() -> None:
            room.acquire(size)
            served.append(size)
            room.release(size)

        thread = threading.Thread(target=take)
        thread.start()
        return thread

    large = wait_for(2)
    while not room._first.locked():
        time.sleep(0.001)
    small = [wait_for(1) for _ in range(5)]  # there is enough for each of them
    time.sleep(0.05)
    assert served == []
    room.release(1)
    for thread in (large, *small):
        thread.join(timeout=60)
    assert served == [2, 1, 1, 1, 1, 1]


def test_an_exception_ends_lanes_that_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "memory_budget", lambda device, processes: 1)
    monkeypatch.setattr(lanes, "num_lanes", lambda device: 3)

    def failing(batch: torch.Tensor) -> snr.Scores:
        raise RuntimeError("did not converge")

    monkeypatch.setattr(snr, "score", failing)
    reader = alike(20)
    with pytest.raises(RuntimeError, match="did not converge"):
        list(scan(reader.weights(), reader, [CPU], 1))
    assert workers() == []


# The same on a GPU, which has streams, copies and its own memory.


def of_many_kinds() -> Reader:
    dtypes = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
    return Reader(
        {
            **{f"{dtype}.{i}": matrices(60, 90, seed=i).to(dtype) for dtype in dtypes for i in range(12)},
            **{f"tall.{i}": matrices(300, 40, seed=i).bfloat16() for i in range(5)},
            "experts": matrices(20, 30, 50).bfloat16(),
            "norm": matrices(1, 90).bfloat16(),
            "wide": matrices(20, 64, 1000, seed=3).bfloat16()[:, ::2],  # views with strides of their own
        }
    )


@pytest.mark.parametrize("batch_size", [None, 1, 4])
@pytest.mark.parametrize("number", [1, 2, 6])
def test_cuda_lanes_find_the_scores_of_a_float64_svd(
    number: int, batch_size: int | None, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "num_lanes", lambda device: number)
    reader = of_many_kinds()
    on_gpu = {score.name: score for score in scan(reader.weights(), reader, [gpu], batch_size)}
    for name, value in reader.parameters.items():
        stack = value if value.ndim == 3 else value[None]
        expected = [oracle_snr(matrix.double().numpy()) for matrix in stack]
        assert (on_gpu[name].experts or (on_gpu[name].snr,)) == pytest.approx(expected, rel=1e-8), name


def test_cuda_scans_weights_that_are_in_its_memory(gpu: torch.device) -> None:
    reader = of_many_kinds()
    expected = {score.name: score.snr for score in scan(reader.weights(), reader, [CPU])}
    reader.parameters = {name: value.to(gpu) for name, value in reader.parameters.items()}
    for devices in ([gpu], [CPU]):
        found = {score.name: score.snr for score in scan(reader.weights(), reader, devices)}
        assert found == pytest.approx(expected, rel=1e-9)


def test_cuda_scans_a_model_where_it_is(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    import spectrum

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config)
    expected = {layer.name: layer.snr for layer in spectrum.scan(model, device="cpu", show_progress=False).layers}
    on_gpu: torch.nn.Module = model.to(gpu)  # type: ignore[arg-type]
    stack = executor._stack

    def stays(*args: Any) -> torch.Tensor:
        stored = stack(*args)
        assert stored.device == gpu
        return stored

    monkeypatch.setattr(executor, "_stack", stays)
    found = {layer.name: layer.snr for layer in spectrum.scan(on_gpu, show_progress=False).layers}
    assert found == pytest.approx(expected, rel=1e-9)


def test_cuda_memory_is_given_back_after_a_scan(gpu: torch.device) -> None:
    list(scan([], Reader({}), [gpu]))
    before = torch.cuda.memory_reserved(gpu)
    reader = Reader({f"layers.{i}": matrices(500, 700, seed=i) for i in range(20)})
    list(scan(reader.weights(), reader, [gpu], 2))
    assert torch.cuda.memory_reserved(gpu) == before


@pytest.mark.parametrize("mebibytes", [1000, 100, 1], ids="{} MiB".format)
def test_cuda_without_enough_memory_finds_the_same_scores(mebibytes: int, gpu: torch.device) -> None:
    reader = Reader({f"layers.{i}": matrices(600, 1200, seed=i).bfloat16() for i in range(8)})
    expected = {score.name: score.snr for score in scan(reader.weights(), reader, [CPU])}
    warnings: list[str] = []
    with limited_memory(gpu, mebibytes << 20):
        found = {score.name: score.snr for score in scan(reader.weights(), reader, [gpu], 8, warnings.append)}
    assert found == pytest.approx(expected, rel=1e-9)
    # With 100 MiB, it depends on the workspace that cuBLAS takes for each lane.
    assert len(warnings) in {1000: [0], 100: range(9), 1: [8]}[mebibytes]


def test_cuda_scores_a_batch_in_parts_if_it_has_no_memory_for_the_solver(gpu: torch.device) -> None:
    """The weights of the batch alone fit into 400 MiB."""
    reader = Reader({f"layers.{i}": matrices(1024, 2048, seed=i).bfloat16() for i in range(64)})
    expected = {score.name: score.snr for score in scan(reader.weights(), reader, [CPU])}
    warnings: list[str] = []
    with limited_memory(gpu, 400 << 20):
        found = {score.name: score.snr for score in scan(reader.weights(), reader, [gpu], 64, warnings.append)}
    assert found == pytest.approx(expected, rel=1e-9)
    assert warnings == []


@pytest.mark.parametrize("started", [0, 1, 2, 3])
def test_where_no_more_threads_can_be_started_there_are_fewer_lanes(
    started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, threads, start = alike(6), 0, threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        nonlocal threads
        if threads == started:
            raise RuntimeError("can't start new thread")
        threads += 1
        start(thread)

    monkeypatch.setattr(lanes, "num_lanes", lambda device: 4)
    monkeypatch.setattr(threading.Thread, "start", limited)
    if started < 2:  # one that reads, one that scores
        with pytest.raises(DeviceError, match="no memory for a thread"):
            list(scan(reader.weights(), reader, [CPU], 1))
    else:
        assert len(list(scan(reader.weights(), reader, [CPU], 1))) == 6
    assert threads == started
    assert workers() == []


ROUNDED = """
import torch
from spectrum.compute import executor, snr
from spectrum.compute.batches import BatchBudget, WeightBatch, plan
from spectrum.compute.devices import one_core_per_thread
from spectrum.records import LayerWeight

cpu = torch.device("cpu")
matrices = torch.randn(16, 96, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
weights = [LayerWeight(f"h.{i}", "h", f"h.{i}.weight", (96, 96), (96, 96), 1, "bfloat16") for i in range(16)]
with one_core_per_thread([cpu]):
    expected = [snr.score(matrix[None]).snr.item() for matrix in matrices]
for _ in range(3):  # each scan has new threads
    batches = plan(weights, 1, BatchBudget(1 << 20, num_gpus=0))
    scores = executor.score(batches, lambda weight, _: matrices[int(weight.name[2:])], [cpu])
    found = {batch.members[0][0].name: score.snr for batch, (score,) in scores}
    assert [found[f"h.{i}"] for i in range(16)] == expected
"""


def test_the_first_matrices_of_the_lanes_are_rounded_as_all_others() -> None:
    """A new thread would use several cores for its first matrix, and round it differently. Tests run with one core."""
    environment = os.environ | {"OMP_NUM_THREADS": "4"}
    subprocess.run([sys.executable, "-c", ROUNDED], env=environment, check=True, timeout=120)
