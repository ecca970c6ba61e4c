"""In which parts are parameters read?"""

from __future__ import annotations

import math

import pytest

from spectrum.records import ModelInfo, Parameter
from spectrum.verification import parts
from spectrum.verification.opening import OpenModel
from spectrum.verification.parts import Pair, pair_of
from tests.helpers.values import InMemory


class AsWhole(InMemory):
    def reads_rows(self, parameter: str) -> bool:
        return False


def pair(
    shape: tuple[int, ...],
    trained: tuple[int, ...] | None = None,
    dtypes: tuple[str, str] = ("bfloat16", "bfloat16"),
    *,
    in_rows: bool = True,
) -> Pair:
    values = InMemory({}) if in_rows else AsWhole({})
    models = [
        OpenModel("m", ModelInfo("M", {"w": Parameter(own, dtype)}, (), None, None), values)
        for own, dtype in zip((shape, trained or shape), dtypes, strict=True)
    ]
    return pair_of(models[0], models[1], "w", "w")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", 1000)


@pytest.mark.parametrize("shape", [(), (0, 4), (500,), (10, 50), (2, 5, 50)], ids=str)
def test_what_is_small_is_read_whole(shape: tuple[int, ...]) -> None:
    assert pair(shape).parts == (None,)
    assert pair(shape, in_rows=False).parts == (None,)


@pytest.mark.parametrize("shape", [(501,), (100, 50), (7, 400), (3, 3000), (9, 4, 5, 10)], ids=str)
@pytest.mark.parametrize("dtypes", [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float64", "bfloat16")])
def test_rows_are_read_once_and_few_at_a_time(shape: tuple[int, ...], dtypes: tuple[str, str]) -> None:
    found = pair(shape, dtypes=dtypes)
    assert [row for part in found.parts for row in found.rows_of(part)] == list(range(shape[0]))
    row_bytes = math.prod(shape[1:]) * max({"bfloat16": 2, "float32": 4, "float64": 8}[dtype] for dtype in dtypes)
    assert found.num_bytes == shape[0] * row_bytes
    for part in found.parts:
        assert isinstance(part, slice)
        assert len(found.rows_of(part)) in (1, *range(1, 1000 // row_bytes + 1))


def test_a_stack_is_read_matrix_by_matrix_even_if_it_is_converted() -> None:
    for in_rows in (True, False):
        found = pair((6, 10, 50), in_rows=in_rows)
        assert found.parts == (0, 1, 2, 3, 4, 5)
        assert list(found.rows_of(4)) == [4]


def test_what_cannot_be_read_in_rows_in_one_of_the_models_is_read_whole() -> None:
    for values in ((InMemory({}), AsWhole({})), (AsWhole({}), InMemory({}))):
        models = [
            OpenModel("m", ModelInfo("M", {"w": Parameter((100, 50), "bfloat16")}, (), None, None), own)
            for own in values
        ]
        assert pair_of(models[0], models[1], "w", "w").parts == (None,)


def test_what_cannot_be_read_in_rows_is_read_whole() -> None:
    assert pair((100, 50), in_rows=False).parts == (None,)


@pytest.mark.parametrize(("before", "after"), [(100, 120), (120, 100), (8, 9)])
def test_of_a_resized_parameter_the_rows_that_both_have_are_read(before: int, after: int) -> None:
    found = pair((before, 50), (after, 50))
    assert [row for part in found.parts for row in found.rows_of(part)] == list(range(min(before, after)))
    assert found.num_rows == min(before, after)
    whole = pair((before, 50), (after, 50), in_rows=False)
    assert whole.parts == (None,)
    assert list(whole.rows_of(None)) == list(range(min(before, after)))
