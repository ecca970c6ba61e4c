"""Which matrices go through one kernel call: same shape and dtype, within a memory budget. Shapes and integers only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from spectrum.layers import LayerWeight, WeightBatch

# Small matrices share a call until it occupies this much: enough to hide the calls' overhead, little on any machine.
MIN_BUDGET = 16 << 20  # bytes

# More in one call saves nothing, and the progress bar should move.
_MAX_BATCH = 256

_ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def plan(weights: Iterable[LayerWeight], batch_size: int | None) -> list[WeightBatch]:
    """Batches in model order of their first matrices. Tied weights are planned once.

    batch_size: matrices a call, or None for as many as fit in the larger of MIN_BUDGET and what the largest single
    matrix needs anyway, so that batching never raises the peak.
    """
    distinct: dict[str, LayerWeight] = {}
    for weight in weights:
        distinct.setdefault(weight.parameter, weight)
    groups: dict[tuple[tuple[int, int], str], list[tuple[LayerWeight, int]]] = {}
    for weight in distinct.values():
        members = groups.setdefault((weight.matrix, weight.dtype), [])
        members.extend((weight, index) for index in range(weight.count))
    budget = max([MIN_BUDGET, *(matrix_bytes(shape, dtype) for shape, dtype in groups)])
    batches = []
    for (shape, dtype), members in groups.items():
        size = batch_size or max(1, min(_MAX_BATCH, budget // matrix_bytes(shape, dtype)))
        batches += [WeightBatch(shape, dtype, tuple(part)) for part in _parts(members, size)]
    order = {parameter: i for i, parameter in enumerate(distinct)}
    return sorted(batches, key=lambda batch: order[batch.members[0][0].parameter])


def parse_batch_size(text: str) -> int | None:
    """The batch size that a text means, None for `auto`. Raises ValueError for anything but that or a number from 1."""
    if text == "auto":
        return None
    if not re.fullmatch(r"0*[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(f"a whole number from 1 up is expected, or auto, not {text!r}")
    return int(text)


def matrix_bytes(shape: tuple[int, int], dtype: str) -> int:
    """Memory to score one matrix: itself as stored, its Gram matrix, and the eigensolver's copy of that."""
    return shape[0] * shape[1] * _ITEMSIZE[dtype] + 2 * 8 * min(shape) ** 2


def _parts(members: Sequence[tuple[LayerWeight, int]], size: int) -> Iterator[Sequence[tuple[LayerWeight, int]]]:
    for start in range(0, len(members), size):
        yield members[start : start + size]
