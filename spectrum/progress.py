"""A bar that moves by the work done: weights differ in that by orders of magnitude."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spectrum import scans
from spectrum.batching import batch_cost, matrices
from spectrum.layers import WeightBatch

_FORM = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"


def shown(
    scored: scans.Scored, batches: Sequence[WeightBatch], bar: Callable[..., Any], unit: str = "weights"
) -> scans.Scored:
    """Scores as they come, under a bar of tqdm's, which is made of its arguments by `bar`."""
    count = matrices(batches)
    done = 0
    with bar(total=sum(map(batch_cost, batches)), bar_format=_FORM) as drawn:
        drawn.set_description_str(f"0/{count} {unit}")
        for batch, values in scored:
            done += len(values)
            drawn.set_description_str(f"{done}/{count} {unit}, {batch.members[0][0].layer_type}", refresh=False)
            drawn.update(batch_cost(batch))
            yield batch, values
        drawn.set_description_str(f"{count}/{count} {unit}", refresh=False)
