"""Two selections side by side: rank correlation against NumPy, who enters and leaves, what is not compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection import comparison
from spectrum.selection.comparison import Comparison, compare, described, rank_correlation
from spectrum.selection.selection import Selection, top_percent


def oracle(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation of average ranks, which count the values below and half of those that are the same."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    return float(np.corrcoef(ranks(first), ranks(second))[0, 1])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [0.1, 0.01, 0.001], -1.0),
        # 1 - 6 sum d^2 / (n (n^2 - 1)), where nothing ties.
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 1 - 6 * 4 / 120),
        ([1, 2, 3, 4], [4, 1, 2, 3], 1 - 6 * 12 / 60),
        # Ranks 1.5, 1.5, 3 against 1, 2, 3: a covariance of 1.5, and variances of 1.5 and 2.
        ([5, 5, 7], [1, 2, 3], 1.5 / math.sqrt(1.5 * 2)),
        ([5, 5, 7], [1, 1, 2], 1.0),
        ([0.0, math.inf, 1.0], [3, 5, 4], 1.0),
        ([1, 2], [2, 1], -1.0),
        ([], [], None),
        ([1], [2], None),
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2, 3], [2, 2, 2], None),
        ([math.inf, math.inf], [1, 2], None),
    ],
    ids=str,
)
def test_the_rank_correlation_by_hand(first: list[float], second: list[float], expected: float | None) -> None:
    assert rank_correlation(first, second) == (None if expected is None else pytest.approx(expected, abs=1e-12))


# Few values, so that many tie.
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12)


@given(PAIRS)
def test_the_rank_correlation_is_numpys(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(pair[i]) for pair in pairs] for i in (0, 1))
    found = rank_correlation(first, second)
    if len(set(first)) < 2 or len(set(second)) < 2:
        assert found is None
    else:
        assert found is not None
        assert found == pytest.approx(oracle(first, second), abs=1e-12)
        assert -1 <= found <= 1
        assert rank_correlation(second, first) == pytest.approx(found, abs=1e-12)
        # Ranks know no scale.
        assert rank_correlation([math.exp(value) for value in first], second) == found


def scan(model: str, types: Mapping[str, Sequence[float]]) -> ScanResult:
    layers = [
        LayerSnr(f"layers.{i}.{kind}", kind, score) for kind, scores in types.items() for i, score in enumerate(scores)
    ]
    return ScanResult(model, tuple(layers), (), tuple(types), None)


def selected(model: str, percent: str = "50", **types: Sequence[float]) -> Selection:
    return top_percent(scan(model, types), percent)


def compared(first: Selection, second: Selection) -> dict[str, Any]:
    return {
        each.layer_type: (each.num_layers, each.correlation, list(each.enter), list(each.leave))
        for each in compare(first, second).types
    }


def test_layers_enter_and_leave() -> None:
    first = selected("a", up=[4, 3, 2, 1], down=[1, 2, 3, 4])
    second = selected("b", up=[4, 1, 2, 3], down=[1, 2, 4, 3])
    assert compared(first, second) == {
        "up": (4, pytest.approx(1 - 6 * 8 / 60), ["layers.3.up"], ["layers.1.up"]),
        "down": (4, pytest.approx(1 - 6 * 2 / 60), [], []),
    }


def test_the_same_scan_has_the_same_selection() -> None:
    first = selected("a", up=[4, 3, 2, 1], norm=[1, 1])
    assert compared(first, first) == {"up": (4, pytest.approx(1), [], []), "norm": (2, None, [], [])}
    assert "of these types, both select the same layers" in described(compare(first, first))


def test_models_of_other_depths_are_compared_in_what_they_share() -> None:
    first, second = selected("a", up=[1, 2, 3, 4]), selected("b", up=[5, 2, 3, 4, 1, 6])
    # Of the four layers that both have, each selects two.
    assert compared(first, second) == {"up": (4, pytest.approx(-0.2), ["layers.0.up"], ["layers.2.up"])}
    assert compared(second, first) == {"up": (4, pytest.approx(-0.2), ["layers.2.up"], ["layers.0.up"])}


def test_it_is_said_that_depths_differ() -> None:
    first, second = selected("a", up=[1, 2, 3, 4], down=[1, 2]), selected("b", up=[5, 2, 3, 4, 1, 6], down=[1, 2])
    text = described(compare(first, second))
    said = "the depths differ: a has 4 layers of up, b has 6; this comparison selects only among layers that both have"
    assert said in text.splitlines()
    assert "+ layers.0.up\n- layers.2.up" in text
    assert "layers.5" not in text
    deeper = described(compare(first, selected("b", up=[1, 2, 3], down=[1, 2, 3, 4, 5])))
    assert "a has 2 layers of down, b has 5; " in deeper
    assert "depths" not in described(compare(first, first))


def test_a_frozen_embedding_neither_enters_nor_leaves() -> None:
    layers = ("model.layers.0.up", "up"), ("lm_head", "lm_head"), ("model.embed_tokens", "model.embed_tokens")
    results = [
        ScanResult(m, tuple(LayerSnr(*x, snr=1.0 + i) for i, x in enumerate(layers)), (), (), None) for m in "ab"
    ]
    first, second = (
        top_percent(result, percent, embeddings=False) for result, percent in zip(results, ("100", "50"), strict=True)
    )
    assert {each.layer_type: (each.enter, each.leave) for each in compare(first, second).types} == {
        "up": ((), ("model.layers.0.up",)),
        "lm_head": ((), ()),
        "model.embed_tokens": ((), ()),
    }


def test_types_of_one_scan_alone_are_not_compared() -> None:
    first, second = selected("a", up=[1, 2], gate=[1, 2]), selected("b", up=[1, 2], router=[1, 2], experts=[2, 1])
    found = compare(first, second)
    assert [each.layer_type for each in found.types] == ["up"]
    assert (found.only_first, found.only_second) == (("gate",), ("router", "experts"))
    text = described(found)
    assert "only in a: gate" in text
    assert "only in b: router, experts" in text


def test_a_type_of_other_layers_is_in_each_scan_alone() -> None:
    first = top_percent(
        ScanResult("a", (LayerSnr("x.0.up", "up", 1), LayerSnr("h", "h", 1)), (), ("up", "h"), None), "50"
    )
    second = top_percent(
        ScanResult("b", (LayerSnr("y.0.up", "up", 1), LayerSnr("h", "h", 1)), (), ("up", "h"), None), "50"
    )
    found = compare(first, second)
    assert [each.layer_type for each in found.types] == ["h"]
    assert found.only_first == found.only_second == ("up",)


@pytest.mark.parametrize("second", [{"down": [1.0, 2.0]}, {}])
def test_scans_without_a_layer_in_common_are_refused(second: dict[str, list[float]]) -> None:
    with pytest.raises(SelectionError, match=r"^org/a and org/b have no layer in common"):
        compare(selected("org/a", up=[1, 2]), top_percent(scan("org/b", second), "50"))


def rows(found: Comparison) -> list[list[str]]:
    text = described(found).split("\n\n")[1]
    return [line.split() for line in text.splitlines()][1:]


def test_a_comparison_is_a_table_and_the_layers_that_change() -> None:
    first = selected("org/a", up=[4, 3, 2, 1], norm=[1, 1], head=[3])
    second = selected("org/b", up=[1, 3, 2, 4], norm=[1, 1], head=[5])
    found = compare(first, second)
    text = described(found)
    assert text.splitlines()[0].startswith("org/b in place of org/a, top 50 percent")
    assert rows(found) == [["up", "4", "-0.800", "1", "1"], ["norm", "2", "0", "0"], ["head", "1", "0", "0"]]
    assert text.splitlines()[-2:] == ["+ layers.3.up", "- layers.0.up"]
    assert "the same" not in text


def test_no_correlation_is_not_written_as_a_negative_one() -> None:
    first = selected("a", up=[1, 2, 3])
    found = Comparison(first, first, (comparison.TypeComparison("up", 3, 3, 3, -1e-17, (), ()),), (), ())
    assert rows(found)[0][2] == "0.000"
