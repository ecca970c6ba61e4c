"""Groups matrices of one shape and dtype into kernel calls, within a memory budget. Needs no torch."""

from __future__ import annotations

import heapq
import math
import re
from bisect import bisect_right
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from spectrum.compute.workspace import call_bytes
from spectrum.records import LayerWeight


@dataclass(frozen=True, slots=True)
class WeightBatch:
    """Matrices that are scored in one kernel call.

    Args:
        matrix_shape: (n, m) of each.
        dtype: of each, by torch's name.
        members: the weight that holds the matrix and the matrix's index in that weight's stack, for each matrix.
    """

    matrix_shape: tuple[int, int]
    dtype: str
    members: tuple[tuple[LayerWeight, int], ...]


@dataclass(frozen=True, slots=True)
class BatchBudget:
    """What limits a batch. Processes that share a scan plan with the same budget.

    Args:
        num_bytes: memory of one kernel call. A single matrix may take more.
        num_gpus: how many GPUs the batches are for, in all processes; 0 for CPUs. On a GPU a call takes more memory,
            and few matrices do not share one.
    """

    num_bytes: int
    num_gpus: int


# Larger batches are hardly faster, and the progress bar would move too rarely.
_MAX_BATCH = 256

# On a GPU, fewer matrices than these get a call each. For several matrices in one call cuSOLVER uses another algorithm,
# of many short steps. With fewer than about eight matrices of up to 2048 rows, these take longer than one call each.
_GPU_MIN_BATCH = 10


def plan(
    weights: Iterable[LayerWeight],
    batch_size: int | None,
    budget: BatchBudget,
    scored: Container[tuple[str, int]] = frozenset(),
) -> list[WeightBatch]:
    """Batches of all matrices. The costliest come first, so that at the end no lane works alone on a costly one.

    Tied weights are planned once.

    Args:
        batch_size: matrices per call; None for as many as the budget allows, or one if these are few on a GPU.
        budget: the limit of a call if `batch_size` is None.
        scored: matrices to leave out, by parameter and index.
    """
    distinct: dict[str, LayerWeight] = {}
    for weight in weights:
        distinct.setdefault(weight.parameter, weight)
    groups: dict[tuple[tuple[int, int], str], list[tuple[LayerWeight, int]]] = {}
    for weight in distinct.values():
        members = groups.setdefault((weight.matrix_shape, weight.dtype), [])
        members.extend((weight, index) for parameter, index in weight.matrices() if (parameter, index) not in scored)
    batches = []
    for (shape, dtype), members in groups.items():
        size = batch_size or _largest_batch(budget, shape, dtype, len(members))
        parts = [members[start : start + size] for start in range(0, len(members), size)]
        if parts and batch_size is None and len(parts[-1]) < _fewest(budget):
            parts[-1:] = [[member] for member in parts[-1]]
        batches += [WeightBatch(shape, dtype, tuple(part)) for part in parts]
    return sorted(batches, key=batch_cost, reverse=True)


def share(batches: Sequence[WeightBatch], processes: int) -> list[list[WeightBatch]]:
    """The batches of each process, so that all have about the same work. Expects the costliest batches first."""
    shares: list[list[WeightBatch]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for batch in batches:
        load, process = loads[0]
        shares[process].append(batch)
        heapq.heapreplace(loads, (load + batch_cost(batch), process))
    return shares


def arriving_order(batches: Sequence[WeightBatch]) -> list[WeightBatch]:
    """The batches in an order for weights that arrive over a network. batches: the costliest first.

    The first tenth of the work is that of the batches with the most work per byte, so that the lanes are soon at work
    and the largest matrices, such as embeddings, arrive meanwhile. The rest keep their order.
    """
    left = sum(map(batch_cost, batches)) / 10
    early = []
    for batch in sorted(batches, key=_work_per_element, reverse=True):
        if left > 0:
            early.append(batch)
            left -= batch_cost(batch)
    chosen = {batch.members[0] for batch in early}
    return [*early, *(batch for batch in batches if batch.members[0] not in chosen)]


def _work_per_element(batch: WeightBatch) -> float:
    return matrix_cost(batch.matrix_shape) / math.prod(batch.matrix_shape)


def parse_batch_size(text: str) -> int | None:
    """The batch size from a command line; None for `auto`.

    Raises ValueError if the text is neither `auto` nor a number from 1 up.
    """
    if text == "auto":
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"a whole number from 1 up is expected, or auto, not {text!r}")
    return int(text)


def matrix_cost(shape: tuple[int, int]) -> int:
    """Work to score one matrix of short side k and long side m, up to a constant factor: `k^2 m + 2 k^3`.

    The first term is the Gram matrix. The second is its reduction to tridiagonal form: 4/3 k^3 operations, at about
    half the rate of a matrix product.
    """
    k, m = sorted(shape)
    return k * k * (m + 2 * k)


def num_matrices(batches: Iterable[WeightBatch]) -> int:
    """How many matrices the batches hold together."""
    return sum(len(batch.members) for batch in batches)


def matrices_of(batches: Iterable[WeightBatch]) -> list[tuple[LayerWeight, int]]:
    """The matrices of the batches, in their order."""
    return [member for batch in batches for member in batch.members]


def batch_cost(batch: WeightBatch) -> int:
    """Work to score a batch, in the unit of `matrix_cost`."""
    return len(batch.members) * matrix_cost(batch.matrix_shape)


def batch_bytes(batch: WeightBatch, *, gpu: bool) -> int:
    """Memory in bytes to score a batch."""
    return call_bytes(len(batch.members), batch.matrix_shape, batch.dtype, gpu=gpu)


def common_budget(budgets: Sequence[BatchBudget]) -> BatchBudget:
    """The budget that all processes can plan with, from the budgets of each."""
    return BatchBudget(min(each.num_bytes for each in budgets), sum(each.num_gpus for each in budgets))


def _largest_batch(budget: BatchBudget, shape: tuple[int, int], dtype: str, count: int) -> int:
    """How many of `count` matrices to score in one call; at least one."""
    gpu, sizes = budget.num_gpus > 0, range(1, _MAX_BATCH + 1)
    fitting = bisect_right(sizes, budget.num_bytes, key=lambda size: call_bytes(size, shape, dtype, gpu=gpu))
    if gpu:  # so that each has some
        fitting = min(fitting, max(_GPU_MIN_BATCH, math.ceil(count / budget.num_gpus)))
    return 1 if fitting < _fewest(budget) else fitting


def _fewest(budget: BatchBudget) -> int:
    """How many matrices a call of several takes at least."""
    return _GPU_MIN_BATCH if budget.num_gpus else 1
