"""Weights of models that are made up, to be planned in batches."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from spectrum.compute.batches import BatchBudget
from spectrum.records import LayerWeight

BUDGET = BatchBudget(16 << 20, num_gpus=0)
MATRICES = [(2, 3), (3, 2), (1, 8), (512, 64), (700, 900), (1500, 2000)]
BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

UNTIMED = settings(deadline=None)
BATCH_SIZES = st.none() | st.integers(1, 7)


def weight(
    name: str, matrix: tuple[int, int], count: int = 1, dtype: str = "float32", tied_to: str | None = None
) -> LayerWeight:
    shape = matrix if count == 1 else (count, *matrix)
    return LayerWeight(name, "t", f"{tied_to or name}.weight", shape, matrix, count, dtype)


@st.composite
def models(draw: st.DrawFn) -> list[LayerWeight]:
    """Weights of a few shapes, some of them stacks, some tied to an earlier one."""
    weights: list[LayerWeight] = []
    for i in range(draw(st.integers(0, 12))):
        if weights and draw(st.integers(0, 3)) == 0:
            first = draw(st.sampled_from(weights))
            owner = first.parameter.removesuffix(".weight")
            weights.append(weight(f"w{i}", first.matrix_shape, first.num_matrices, first.dtype, tied_to=owner))
        else:
            matrix, dtype = draw(st.sampled_from(MATRICES)), draw(st.sampled_from(sorted(BYTES)))
            weights.append(weight(f"w{i}", matrix, draw(st.integers(1, 5)), dtype))
    return weights
