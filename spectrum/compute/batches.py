"""Which matrices go through one kernel call: same shape and dtype, within a memory budget. Shapes and integers only."""

from __future__ import annotations

import heapq
import re
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass

from spectrum.compute.workspace import call_bytes
from spectrum.records import LayerWeight


@dataclass(frozen=True, slots=True)
class WeightBatch:
    """Matrices of one shape and dtype that go through one kernel call: (weight, index in its stack) each."""

    matrix: tuple[int, int]
    dtype: str
    members: tuple[tuple[LayerWeight, int], ...]


# More in one call saves nothing, and the progress bar should move.
_MAX_BATCH = 256


def plan(
    weights: Iterable[LayerWeight],
    batch_size: int | None,
    budget: int,
    known: Container[tuple[str, int]] = frozenset(),
    *,
    gpu: bool = False,
) -> list[WeightBatch]:
    """Batches, the costliest first, so that none is left for the end when all but one lane are done.

    Tied weights are planned once. batch_size: matrices a call, or None for as many as the budget has bytes for.
    known: matrices, by parameter and index, that are left out. gpu: whether the calls are a GPU's.
    """
    distinct: dict[str, LayerWeight] = {}
    for weight in weights:
        distinct.setdefault(weight.parameter, weight)
    groups: dict[tuple[tuple[int, int], str], list[tuple[LayerWeight, int]]] = {}
    for weight in distinct.values():
        members = groups.setdefault((weight.matrix, weight.dtype), [])
        members.extend((weight, index) for index in range(weight.count) if (weight.parameter, index) not in known)
    batches = []
    for (shape, dtype), members in groups.items():
        size = batch_size or _most_within(budget, shape, dtype, gpu=gpu)
        batches += [WeightBatch(shape, dtype, tuple(part)) for part in _parts(members, size)]
    return sorted(batches, key=batch_cost, reverse=True)


def share(batches: Iterable[WeightBatch], processes: int) -> list[list[WeightBatch]]:
    """Batches, the costliest first, dealt out so that each process has about the same work."""
    shares: list[list[WeightBatch]] = [[] for _ in range(processes)]
    loads = [(0, process) for process in range(processes)]
    for batch in batches:
        load, process = loads[0]
        shares[process].append(batch)
        heapq.heapreplace(loads, (load + batch_cost(batch), process))
    return shares


def parse_batch_size(text: str) -> int | None:
    """The batch size that a text means, None for `auto`. Raises ValueError for anything but that or a number from 1."""
    if text == "auto":
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"a whole number from 1 up is expected, or auto, not {text!r}")
    return int(text)


def matrix_cost(shape: tuple[int, int]) -> int:
    """Work to score one matrix of short side k and long side m, up to a constant: `k^2 m + 2 k^3`.

    That is the Gram matrix and the reduction of it, whose 4/3 k^3 run at about half the rate of a matrix product.
    """
    k, m = sorted(shape)
    return k * k * (m + 2 * k)


def matrices(batches: Iterable[WeightBatch]) -> int:
    """How many matrices batches hold."""
    return sum(len(batch.members) for batch in batches)


def batch_cost(batch: WeightBatch) -> int:
    """Work to score a batch."""
    return len(batch.members) * matrix_cost(batch.matrix)


def batch_bytes(batch: WeightBatch, *, gpu: bool = False) -> int:
    """Memory to score a batch."""
    return call_bytes(len(batch.members), batch.matrix, batch.dtype, gpu=gpu)


def _most_within(budget: int, shape: tuple[int, int], dtype: str, *, gpu: bool) -> int:
    """How many matrices a call of so many bytes takes, at least one."""
    sizes = range(1, _MAX_BATCH + 1)
    return max(1, bisect_right(sizes, budget, key=lambda count: call_bytes(count, shape, dtype, gpu=gpu)))


def _parts(members: Sequence[tuple[LayerWeight, int]], size: int) -> Iterator[Sequence[tuple[LayerWeight, int]]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]
