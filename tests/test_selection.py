"""The top percent of each layer type: how many, which ones, and what a tie, infinity or NaN does."""

from __future__ import annotations

import re
from fractions import Fraction
from math import inf, isnan, nan

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum.layers import LayerSnr, ScanResult
from spectrum.selection import top_percent


def result(*snrs: float, kind: str = "t") -> ScanResult:
    """A scan of one type, whose layers are named by their place in the model."""
    return ScanResult("m", tuple(LayerSnr(str(i), kind, snr) for i, snr in enumerate(snrs)), (), (kind,), None)


def selected(scan: ScanResult, percent: str) -> list[str]:
    (kind,) = top_percent(scan, percent).types
    return [layer.name for layer in kind.selected]


@pytest.mark.parametrize(
    ("percent", "layers", "expected"),
    [
        ("50", 3, 1),
        ("25", 32, 8),
        ("100", 7, 7),
        ("1", 99, 0),
        ("1", 100, 1),
        (".5", 200, 1),
        ("33.333", 3, 0),
        # As a binary float this is 122.99999999999999 layers.
        ("12.3", 1000, 123),
        ("0.07", 10000, 7),
        # Just under a whole layer is no layer, however many digits say so.
        ("99." + "9" * 40, 1, 0),
    ],
)
def test_the_count_is_the_exact_floor_of_the_percentage(percent: str, layers: int, expected: int) -> None:
    assert len(selected(result(*[1.0] * layers), percent)) == expected


def test_each_type_has_its_own_share_and_the_percent_stays_as_typed() -> None:
    layers = [
        LayerSnr(f"{kind}{i}", kind, float(i)) for kind, count in (("b", 5), ("a", 2), ("c", 1)) for i in range(count)
    ]
    selection = top_percent(ScanResult("m", tuple(layers), (), ("b", "a", "c"), None), "50.0")
    assert selection.percent == "50.0"
    assert [(kind.layer_type, [layer.name for layer in kind.selected]) for kind in selection.types] == [
        ("b", ["b4", "b3"]),
        ("a", ["a1"]),
        ("c", []),
    ]


def test_ties_go_in_model_order() -> None:
    assert selected(result(1.0, 2.0, 1.0, 2.0, 1.0, 2.0), "100") == ["1", "3", "5", "0", "2", "4"]
    assert selected(result(*[1.0] * 12), "25") == ["0", "1", "2"]


def test_infinity_comes_first() -> None:
    assert selected(result(5.0, inf, 7.0, inf), "75") == ["1", "3", "2"]


def test_nan_is_neither_counted_nor_selected() -> None:
    scan = result(nan, 1.0, nan, 2.0, nan, 3.0)
    assert selected(scan, "100") == ["5", "3", "1"]
    # Of three layers, not of six.
    assert selected(scan, "50") == ["5"]
    assert selected(result(nan, nan), "100") == []


@pytest.mark.parametrize("percent", ["0", "-1", "100.0000001", "101", "1e3", "inf", "nan"])
def test_a_percentage_outside_its_range_is_refused(percent: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(percent))):
        top_percent(result(1.0), percent)


@settings(deadline=None)
@given(
    st.lists(st.floats(min_value=0) | st.sampled_from([nan, inf, 0.0, 1.0])),
    st.decimals(0, 100, places=3).filter(lambda percent: percent > 0),
)
def test_no_selected_layer_has_a_lower_snr_than_one_left_behind(snrs: list[float], percent: object) -> None:
    scan = result(*snrs)
    for kind in top_percent(scan, str(percent)).types:
        behind = [layer for layer in scan.layers if layer not in kind.selected and not isnan(layer.snr)]
        assert not any(isnan(layer.snr) for layer in kind.selected)
        assert len(kind.selected) == (len(behind) + len(kind.selected)) * Fraction(str(percent)) // 100
        assert sorted(kind.selected, key=lambda layer: -layer.snr) == list(kind.selected)
        if kind.selected and behind:
            assert min(layer.snr for layer in kind.selected) >= max(layer.snr for layer in behind)
