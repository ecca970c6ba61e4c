"""Which changes look like a merged adapter's, and which do not?"""

from __future__ import annotations

import pytest
import torch

from spectrum.records import ModelInfo, Parameter
from spectrum.verification import low_rank
from spectrum.verification.compared import ComparedParameter, LowRank
from spectrum.verification.low_rank import low_rank_changes
from spectrum.verification.opening import OpenModel
from tests.helpers.values import InMemory

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def product(rows: int, columns: int, rank: int, seed: int = 1) -> torch.Tensor:
    return torch.mm(normal(rows, rank, seed=seed), normal(rank, columns, seed=seed + 100)).div(rank**0.5)


def found(pairs: list[tuple[torch.Tensor, torch.Tensor]], embedding: str | None = None) -> LowRank | None:
    """What is found where each pair is a matrix of its own layer type: before, and after."""
    names = [f"layers.0.m{i}.weight" for i in range(len(pairs))]
    models = []
    for side in range(2):
        tensors = {name: pair[side] for name, pair in zip(names, pairs, strict=True)}
        parameters = {
            name: Parameter(tuple(value.shape), str(value.dtype).removeprefix("torch."))
            for name, value in tensors.items()
        }
        models.append(OpenModel("m", ModelInfo("M", parameters, (), None, embedding), InMemory(tensors)))
    compared = [
        ComparedParameter(
            name=name,
            layer_type=name,
            listed=True,
            shape=tuple(before.shape),
            trained_shape=tuple(after.shape),
            dtype="float32",
            trained_dtype="float32",
            is_tied=False,
            compared=True,
            moved=not torch.equal(before.double(), after.double()),
            relative_change=0.1,
        )
        for name, (before, after) in zip(names, pairs, strict=True)
    ]
    return low_rank_changes(models[0], models[1], dict(zip(names, names, strict=True)), compared)


def merged(rows: int, columns: int, rank: int, dtype: torch.dtype, size: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix, and what is left of it when a product of a rank is added, of a size relative to it, and is rounded."""
    base = normal(rows, columns, seed=0).to(dtype)
    return base, (base.double() + size * product(rows, columns, rank)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "rank"), [(64, 64, 4), (300, 120, 8), (96, 700, 16), (600, 600, 128)])
def test_a_merged_product_has_its_rank(rows: int, columns: int, rank: int, dtype: torch.dtype) -> None:
    low = found([merged(rows, columns, rank, dtype, 0.1)])
    assert low is not None
    assert (low.rank, low.precision) == (rank, str(dtype).removeprefix("torch."))


def test_a_small_product_in_float32_is_enough() -> None:
    low = found([merged(200, 200, 8, torch.float32, 1e-4)])
    assert low is not None
    assert low.rank == 8


@pytest.mark.parametrize("size", [3e-4, 2e-3])  # all of it, and enough that the rest is no small part
def test_a_product_that_rounding_hides_is_no_claim(size: float) -> None:
    assert found([merged(200, 200, 8, torch.bfloat16, size)]) is None


def test_values_that_were_rounded_before_they_were_saved_wider_are_known() -> None:
    before, after = merged(200, 150, 8, torch.bfloat16, 0.1)
    low = found([(before.float(), after.float())])
    assert low is not None
    assert (low.rank, low.precision) == (8, "bfloat16")


def test_a_base_in_float32_may_be_rounded_with_the_product() -> None:
    base = normal(200, 150, seed=0).float()
    low = found([(base, (base.double() + 0.1 * product(200, 150, 8)).bfloat16())])
    assert low is not None
    assert (low.rank, low.precision) == (8, "bfloat16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 0.1])
def test_a_full_change_is_none(dtype: torch.dtype, size: float) -> None:
    base = normal(200, 150, seed=0).to(dtype)
    assert found([(base, (base.double() + size * normal(200, 150, seed=1)).to(dtype))]) is None


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_single_steps_of_the_dtype_here_and_there_are_none(share: float) -> None:
    # A full training in bfloat16 with a small learning rate moves few elements, each to the next number.
    base = normal(200, 150, seed=0).bfloat16()
    steps = torch.rand(200, 150, generator=torch.Generator().manual_seed(2)) < share
    bits = base.view(torch.int16) + steps.to(torch.int16)
    assert found([(base, bits.view(torch.bfloat16))]) is None


def test_a_low_rank_besides_a_full_change_is_none() -> None:
    base = normal(200, 150, seed=0).float()
    after = base.double() + 0.1 * product(200, 150, 4) + 0.01 * normal(200, 150, seed=3)
    assert found([(base, after.float())]) is None


def test_a_few_rows_or_columns_are_none() -> None:
    base = normal(200, 150, seed=0).float()
    in_rows, in_columns = base.clone(), base.clone()
    in_rows[[3, 50, 90]] += normal(3, 150, seed=1).float()
    in_columns[:, [3, 50, 90]] += normal(200, 3, seed=1).float()
    assert found([(base, in_rows)]) is None
    assert found([(base, in_columns)]) is None


def test_all_matrices_must_agree() -> None:
    low, base = merged(64, 64, 4, torch.float32, 0.1), normal(80, 80, seed=0).float()
    full = base, base + normal(80, 80, seed=1).float()
    both = found([low, merged(100, 64, 6, torch.float32, 0.1)])
    assert both is not None
    assert (both.rank, len(both.names)) == (6, 2)
    assert found([low, full]) is None


def test_small_matrices_embeddings_and_what_did_not_move_tell_nothing() -> None:
    assert found([merged(31, 400, 1, torch.float32, 0.1)]) is None
    assert found([merged(64, 64, 4, torch.float32, 0.1)], embedding="layers.0.m0.weight") is None
    same = normal(64, 64, seed=0).float()
    assert found([(same, same.clone())]) is None
    assert found([]) is None


def test_a_rank_above_a_quarter_of_the_short_side_is_not_low() -> None:
    assert found([merged(64, 64, 16, torch.float32, 0.1)]) is not None
    assert found([merged(64, 64, 17, torch.float32, 0.1)]) is None


def test_a_part_of_a_large_matrix_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank, "_MAX_ROWS", 60)
    monkeypatch.setattr(low_rank, "_MAX_ELEMENTS", 60 * 50)
    seen = []

    def precision(values: torch.Tensor) -> torch.dtype:
        seen.append(tuple(values.shape))
        return values.dtype

    monkeypatch.setattr(low_rank, "_precision", precision)
    for rows, columns in ((300, 200), (40, 300), (300, 40)):
        low = found([merged(rows, columns, 4, torch.float32, 0.1)])
        assert low is not None
        assert low.rank == 4
    assert seen == [(60, 50), (40, 75), (60, 40)]


def test_the_smallest_four_are_read() -> None:
    low = found([merged(200 - 10 * i, 64, 4, torch.float32, 0.1) for i in range(6)])
    assert low is not None
    assert low.names == tuple(f"layers.0.m{i}.weight" for i in (5, 4, 3, 2))
