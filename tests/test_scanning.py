"""Planning, reading and scoring together, with a reader that takes tensors from a dictionary."""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from spectrum import scanning, snr
from spectrum.batching import matrix_bytes
from spectrum.errors import DeviceError
from spectrum.layers import LayerWeight
from tests.oracle import oracle_snr
from tests.scanned import scan

CPU = torch.device("cpu")


class Reader:
    """Reads matrices from memory and remembers which."""

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
                matrix=(value.shape[-2], value.shape[-1]),
                count=value.shape[0] if value.ndim == 3 else 1,
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
    """The shapes that the kernel is from now on called with."""
    shapes: list[tuple[int, ...]] = []
    score = snr.score

    def spy(batch: torch.Tensor) -> snr.Scores:
        shapes.append(tuple(batch.shape))
        before(batch)
        return score(batch)

    monkeypatch.setattr(snr, "score", spy)
    return shapes


def workers() -> list[threading.Thread]:
    """Threads of a scan that are still at work."""
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
    # Beside a second stack and a matrix of the same shape, with which batches are shared.
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
    """More weights than a worker scores before whoever wants it to stop has said so."""
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
    """What torch raises where a decomposition fails."""
    with pytest.raises(RuntimeError) as caught:
        torch.linalg.cholesky(torch.zeros(2, 2))
    return caught.value


class Starved:
    """A kernel for which more than so many matrices are too much, on any device but the real CPU."""

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
    assert sorted(reader.reads) == sorted((name, 0) for name in expected)  # none was read anew


def test_a_matrix_for_which_the_cpu_has_no_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Starved(monkeypatch, 0, MemoryError())
    reader = alike(1)
    with pytest.raises(DeviceError, match=re.escape("the CPU has no memory for layers.0, 5 x 8")):
        list(scan(reader.weights(), reader, [CPU]))


def test_what_is_too_much_for_a_device_goes_to_the_cpu_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    # The meta device stands for a GPU: nothing can be had from it, so all that comes back was done on the CPU.
    gpu = torch.device("meta")
    score = snr.score

    def on(batch: torch.Tensor) -> snr.Scores:
        if batch.device == gpu:
            raise OUT_OF_MEMORY
        return score(batch)

    monkeypatch.setattr(snr, "score", on)
    monkeypatch.setattr(scanning, "lane", lambda device: nullcontext())
    reader = alike(3)
    warnings: list[str] = []
    scores = {score.name: score.snr for score in scan(reader.weights(), reader, [gpu], None, warnings.append)}
    assert scores == {name: pytest.approx(oracle_snr(value.numpy())) for name, value in reader.parameters.items()}
    assert sorted(warnings) == [f"meta has no memory for layers.{i}; the CPU takes it" for i in range(3)]


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_scores_do_not_depend_on_cores_devices_or_batches(cores: int) -> None:
    """To the last digit: what is scored on a machine with more cores, or anew, must not differ."""
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
    # Room for two of these at once: five lanes, but never more than two matrices read and not yet scored.
    size = matrix_bytes((50, 80), "float64")
    monkeypatch.setattr(scanning, "memory_budget", lambda device, processes: 2 * size)
    monkeypatch.setattr(scanning, "lanes", lambda device: 5)
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
    monkeypatch.setattr(scanning, "memory_budget", lambda device, processes: 1)
    monkeypatch.setattr(scanning, "lanes", lambda device: 3)
    reader = alike(20)
    assert len(list(scan(reader.weights(), reader, [CPU], 1))) == 20


def test_an_exception_ends_lanes_that_wait_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "memory_budget", lambda device, processes: 1)
    monkeypatch.setattr(scanning, "lanes", lambda device: 3)

    def failing(batch: torch.Tensor) -> snr.Scores:
        raise RuntimeError("did not converge")

    monkeypatch.setattr(snr, "score", failing)
    reader = alike(20)
    with pytest.raises(RuntimeError, match="did not converge"):
        list(scan(reader.weights(), reader, [CPU], 1))
    assert workers() == []
