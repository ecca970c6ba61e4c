"""Steps of `tests.benchmarks.gpu` that scan matrices of real models' shapes from main memory."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch

from spectrum.compute import devices, executor, lanes
from spectrum.compute.batches import plan
from spectrum.records import LayerWeight
from tests.benchmarks.cusolver import batched_eigenvalues
from tests.benchmarks.gpu import Session
from tests.benchmarks.hashed_weights import expected, weight
from tests.benchmarks.reference import snr_float32
from tests.helpers.gpu_memory import limited_memory

Shape = tuple[int, int]

# How many matrices of each shape.
Counts = Mapping[Shape, int]

# A matrix of each shape.
Samples = Mapping[Shape, torch.Tensor]

# By name: the matrices of the layers of a model, or of a part of them, and the size of that part.
WORKLOADS: Mapping[str, tuple[Counts, float]] = {
    "4096 x 14336": ({(4096, 14336): 32}, 1),
    "Phi-3.5-mini": ({(9216, 3072): 32, (3072, 3072): 32, (16384, 3072): 32, (3072, 8192): 32}, 1),
    "Llama-3-70B": ({(8192, 8192): 4, (1024, 8192): 4, (28672, 8192): 4, (8192, 28672): 2}, 2 / 80),
    "Qwen3-30B-A3B": ({(768, 2048): 1024, (2048, 768): 512}, 4 / 48),
    "Qwen3-30B-A3B, fused": ({(1536, 2048): 512, (2048, 768): 512}, 4 / 48),  # as in transformers 5
}


def scan_by_lanes_as_newer_torch(session: Session) -> None:
    """Scans of real shapes by the number of lanes, with the solver of torch 2.12 and later."""
    with batched_eigenvalues(session.device):
        _scan_workloads(session, "XsyevBatched", (None, 1, 3))


def scan(session: Session) -> None:
    """Scans of real shapes with the solver of this torch."""
    _scan_workloads(session, "this torch's", (None,))


def _scan_workloads(session: Session, solver: str, numbers: Sequence[int | None]) -> None:
    for name, (full, part) in WORKLOADS.items():
        samples, counts = _samples(session, full)
        _scan(session, samples, {shape: min(count, 20) for shape, count in counts.items()})  # what a process does once
        for number in numbers:
            row = _scan(session, samples, counts, number)
            whole = _seconds(row) / part
            session.note("scan", of=name, solver=solver, lanes=number or "own", whole_model_s_at_most=whole, **row)


def scan_with_little_memory(session: Session) -> None:
    """Smaller cards: a 70B model on one of 8 GiB; then so little that batches are halved or go to the CPU."""
    full, part = WORKLOADS["Llama-3-70B"]
    samples, counts = _samples(session, full)
    with _small_card(session, 8 << 30):
        row = _scan(session, samples, counts)
        session.note("8 GiB", of="Llama-3-70B", whole_model_s_at_most=_seconds(row) / part, **row)
    samples, counts = _samples(session, {(1024, 8192): 8})
    for mebibytes in (400, 100, 1):
        with _small_card(session, mebibytes << 20):
            session.note("little memory", MiB=mebibytes, **_scan(session, samples, counts, None, 4))


def compare_with_reference(session: Session) -> None:
    """The reference's float32 `svdvals` beside a scan with the solver of torch 2.12 and later.

    By size, as long as the next size is expected to fit.
    """
    ends = session.left() - 45
    seconds, last = 0.0, 0.0
    for shape in ((2048, 2048), (3072, 8192), (4096, 14336), (8192, 28672)):
        samples, counts = _samples(session, {shape: 1})
        ((k, m),) = counts
        work = float(k * k * m)
        expected_s = seconds * work / last if last else 0.0
        if expected_s > session.left() - max(5.0, ends):
            session.note("reference", shape=f"{k}x{m}", expected_s=expected_s, left_out="no time")
            continue
        matrix = samples[k, m].to(session.device).float()
        seconds, last = session.seconds(partial(snr_float32, matrix), 1, 0 if last else 1), work
        count = 32 if k <= session.size(4096) else 4
        with batched_eigenvalues(session.device):
            ours = _seconds(_scan(session, samples, {(k, m): count})) / count
        session.note("reference", shape=f"{k}x{m}", seconds=seconds, ours_each_s=ours, times=seconds / ours)


def scan_experts(session: Session) -> None:
    """Scans of experts by the number of lanes and the size of batches, with the solver of torch 2.12 and later."""
    samples, counts = _samples(session, {(768, 2048): 1344})
    with batched_eigenvalues(session.device):
        for batch_size in (21, 84, 256):
            for number in (1, 2, 3):
                row = _scan(session, samples, counts, number, batch_size)
                session.note("experts", batch_size=batch_size, lanes=number, **row)


def scan_large(session: Session) -> None:
    """The largest short side of today's models, and a large embedding."""
    for shape in ((16384, 16384), (152064, 8192)):
        session.note("large", shape=f"{shape}", **_scan(session, *_samples(session, {shape: 1})))


def _samples(session: Session, counts: Counts) -> tuple[Samples, Counts]:
    """One weight in main memory for all matrices of a shape; and the counts by the shapes of this session."""
    shapes = {session.shape(*shape): count for shape, count in counts.items()}
    return {shape: weight(*shape, session.device).cpu() for shape in shapes}, shapes


def _scan(
    session: Session, samples: Samples, counts: Counts, number: int | None = None, batch_size: int | None = None
) -> dict[str, object]:
    """Scan this many matrices: seconds, memory, and the largest error against a CPU.

    Args:
        number: of lanes; None for the number that the tool uses.
        batch_size: matrices per kernel call; None for as many as the tool takes.
    """
    named = {f"{shape}.{i}": shape for shape, count in counts.items() for i in range(count)}
    weights = [LayerWeight(name, "layer", name, shape, shape, 1, "bfloat16") for name, shape in named.items()]
    batches = plan(weights, batch_size, devices.batch_budget([session.device]))
    warned: list[str] = []
    errors: list[float] = []
    session.start_peak()
    started = time.perf_counter()
    with mock.patch.object(lanes, "num_lanes", lambda device: number or devices.num_lanes(device)):
        for batch, scores in executor.score(
            batches, lambda w, i: samples[w.matrix_shape], [session.device], warned.append
        ):
            on_cpu = expected(*batch.matrix_shape)
            if on_cpu is not None:
                for score in scores:
                    same_counts = [score.edge.num_above, score.edge.num_below] == on_cpu[1:3]
                    errors.append(abs(score.snr / on_cpu[0] - 1) if same_counts else math.inf)
    result: dict[str, object] = {"seconds": time.perf_counter() - started, "batches": len(batches)}
    result |= {"warnings": len(warned), **session.peak()}
    return result | {"compared": len(errors), "error": max(errors, default=None)}


def _seconds(row: Mapping[str, object]) -> float:
    """The time of a scan."""
    return float(str(row["seconds"]))


@contextmanager
def _small_card(session: Session, size: int) -> Iterator[None]:
    """Limit the card's memory to what this process has taken already and `size` bytes more."""
    if session.device.type == "cpu":
        yield
        return
    with limited_memory(session.device, size), mock.patch.object(torch.cuda, "mem_get_info", return_value=(size, size)):
        yield
