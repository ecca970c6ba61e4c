"""The comparison of two parts, against NumPy, and to the last bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spectrum.verification import comparison
from spectrum.verification.comparison import compare, holds_all, moved_rows, rounded_on_the_way
from tests.helpers.trained import nudged

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (2, 3, 4), (0, 3)])
def test_a_part_equals_itself(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    part = values(*shape, dtype=dtype)
    found = compare(part, part.clone())
    assert (found.moved, found.finite, found.base_finite, found.squared_change) == (False, True, None, 0.0)
    assert found.squared_norm == pytest.approx(np.square(part.double().numpy()).sum(), rel=1e-5)


def test_the_norm_of_a_whole_parameter_that_did_not_move_is_not_computed() -> None:
    part = values(30)
    assert compare(part, part.clone(), is_whole=True).squared_norm == 0.0
    moved, as_part = (compare(part, part * 2, is_whole=is_whole) for is_whole in (True, False))
    assert moved == as_part


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (4,), (5, 7), (3, 1000)])
def test_one_bit_of_one_element_is_a_move(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    part = values(*shape, dtype=dtype)
    found = compare(part, nudged(part))
    expected = np.square(nudged(part).double().numpy() - part.double().numpy()).sum()
    assert found.moved
    assert found.squared_change == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("after", DTYPES)
@pytest.mark.parametrize("before", DTYPES)
def test_norms_are_those_of_numpy_in_the_dtype_after_training(
    before: torch.dtype, after: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "_CHUNK", 64)  # of which there are several, and a rest
    base, trained = values(17, 23, dtype=before), values(17, 23, dtype=after, seed=1)
    found = compare(base, trained)
    own, other = base.to(after).double().numpy(), trained.double().numpy()
    assert found.squared_change == pytest.approx(np.square(other - own).sum(), rel=1e-5)
    assert found.squared_norm == pytest.approx(np.square(own).sum(), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e25])
def test_norms_that_float32_cannot_square_are_right(scale: float) -> None:
    base = values(40) * scale
    for trained in (nudged(base), base * 1.5):
        found = compare(base, trained)
        change = np.square(trained.double().numpy() - base.double().numpy()).sum()
        assert found.squared_change == pytest.approx(change, rel=1e-5)
        assert found.squared_norm == pytest.approx(np.square(base.double().numpy()).sum(), rel=1e-5)


def test_a_transposed_part_is_compared_element_by_element() -> None:
    part = values(6, 4)
    assert not compare(part.T, part.T.contiguous()).moved
    assert compare(part.T, part.reshape(4, 6)).moved


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("start", range(5))
def test_rows_of_a_larger_tensor_are_compared_wherever_they_begin(dtype: torch.dtype, start: int) -> None:
    whole = values(9, dtype=dtype)
    assert not compare(whole[start : start + 4], whole.clone()[start : start + 4]).moved
    assert compare(whole[start : start + 4], nudged(whole[start : start + 4])).moved


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_nan_did_not_move_but_is_not_finite(dtype: torch.dtype) -> None:
    part = values(30, dtype=dtype)
    for wrong in (math.nan, math.inf, -math.inf):
        broken = part.clone()
        broken[7] = wrong
        same, new = compare(broken, broken.clone()), compare(part, broken)
        assert (same.moved, same.finite, same.base_finite) == (False, False, False)
        assert (new.moved, new.finite, new.base_finite) == (True, False, True)
        assert compare(broken, part).finite


def test_a_sign_of_zero_is_a_bit_too() -> None:
    assert compare(torch.zeros(4), -torch.zeros(4)).moved


def test_equal_bits_of_two_dtypes_are_not_equal_numbers() -> None:
    base = values(50, 3).half()
    assert compare(base, base.view(torch.bfloat16)).moved


def test_a_coarser_dtype_is_compared_after_rounding() -> None:
    base = values(50, 3)
    assert not compare(base, base.bfloat16()).moved
    assert not compare(base.bfloat16(), base.bfloat16().float()).moved  # exact
    assert compare(base, nudged(base.bfloat16())).moved


def test_values_that_were_rounded_on_the_way_are_told() -> None:
    asked = rounded_on_the_way(torch.float32, torch.float32)
    assert asked == {torch.bfloat16, torch.float16}
    base = values(300)
    found = compare(base, base.bfloat16().float(), asked)
    assert found.moved
    assert found.rounded_to == {torch.bfloat16}
    assert compare(base, nudged(base.bfloat16()).float(), asked).rounded_to == frozenset()
    assert compare(base, base.clone(), asked).rounded_to == asked  # other parts decide


def test_a_dtype_that_holds_all_numbers_of_the_base_rounds_nothing() -> None:
    assert rounded_on_the_way(torch.bfloat16, torch.float32) == {torch.float16}
    assert rounded_on_the_way(torch.bfloat16, torch.float16) == frozenset()
    assert rounded_on_the_way(torch.float32, torch.bfloat16) == {torch.float16}
    held = {(a, b) for a in DTYPES for b in DTYPES if holds_all(a, b)}
    wider = {(torch.float64, other) for other in DTYPES} | {
        (torch.float32, other) for other in (torch.bfloat16, torch.float16)
    }
    assert held == wider | {(dtype, dtype) for dtype in DTYPES}


def test_rows_that_moved_are_told_apart() -> None:
    base = values(5, 3)
    trained = base.clone()
    trained[1], trained[4] = trained[1] * 2, nudged(trained[4])
    none = frozenset[torch.dtype]()
    assert moved_rows(base, trained, none) == [False, True, False, False, True]
    assert moved_rows(base, trained.bfloat16(), none) == [False, True, False, False, False]
    assert moved_rows(base[:, 0], trained[:, 0], none) == [False, True, False, False, False]


def test_rows_that_were_only_rounded_did_not_move() -> None:
    base = values(5, 3)
    trained = base.bfloat16().float()
    trained[1] *= 2
    rounded = frozenset({torch.bfloat16, torch.float16})
    assert moved_rows(base, trained, frozenset()) == [True] * 5
    assert moved_rows(base, trained, rounded) == [False, True, False, False, False]
