"""Planning, scoring and putting together, as a scan does them, without its cache and journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from spectrum.compute import executor
from spectrum.compute.batches import plan
from spectrum.compute.devices import batch_budget
from spectrum.records import LayerSnr, LayerWeight, MatrixScore
from spectrum.scanning.assemble import layer_scores


def scan(
    weights: Sequence[LayerWeight],
    read: executor.Reader,
    devices: Sequence[torch.device],
    batch_size: int | None = None,
    warn: Callable[[str], None] = lambda message: None,
) -> Iterator[LayerSnr]:
    """Layers, each as soon as all of its matrices are scored."""
    scores: dict[tuple[str, int], MatrixScore] = {}
    left = list(weights)
    batches = plan(weights, batch_size, batch_budget(devices))
    for batch, values in executor.score(batches, read, devices, warn):
        scores |= zip([(weight.parameter, index) for weight, index in batch.members], values, strict=True)
        for weight in [w for w in left if all((w.parameter, i) in scores for i in range(w.num_matrices))]:
            left.remove(weight)
            yield from layer_scores([weight], scores)
