"""Controls: as many layers of each type from the other end or by lot, and what is said of such a selection."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from random import Random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum.errors import SelectionError
from spectrum.records import BulkEdge, LayerSnr, ModelInfo, Parameter, ScanResult
from spectrum.selection import comparison, margins
from spectrum.selection.margins import RankedType
from spectrum.selection.order import parse_order
from spectrum.selection.selection import Selection, top_params, top_percent
from tests.helpers.records import PROVENANCE

ORDERS = ("highest", "lowest", "random:0", "random:9223372036854775807")

SCORES = st.lists(st.floats(min_value=0) | st.sampled_from([math.inf, 0.0, 1.0]), max_size=40)
PERCENTS = st.decimals(0, 100, places=2).filter(lambda percent: percent > 0).map(str)
SEEDS = st.integers(0, 2**63 - 1)


def scan(scores: Sequence[float], *others: LayerSnr, layer_type: str = "mlp.up") -> ScanResult:
    own = (LayerSnr(f"h.{i}.{layer_type}", layer_type, score) for i, score in enumerate(scores))
    return ScanResult("org/m", (*own, *others), (), (layer_type,), None)


def selected(result: ScanResult, percent: str, order: str, layer_type: str = "mlp.up") -> list[str]:
    chosen = top_percent(result, percent, order=order)
    return [layer.name for ranked in chosen.types if ranked.layer_type == layer_type for layer in ranked.selected]


def by_lot(names: Sequence[str], seed: int) -> list[str]:
    """Names by the SHA-256 of "SEED:NAME", as the docstring of `ordered` has it."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())


# Which layers.


@settings(deadline=None)
@given(SCORES, PERCENTS, st.sampled_from(ORDERS))
def test_as_many_of_each_type_are_selected_in_any_order(scores: list[float], percent: str, order: str) -> None:
    other = [LayerSnr(f"h.{i}.norm", "norm", 1.0) for i in range(7)]
    result = scan(scores, *other)
    chosen, highest = (top_percent(result, percent, order=which) for which in (order, "highest"))
    assert [(kind.layer_type, kind.num_selected) for kind in chosen.types] == [
        (kind.layer_type, kind.num_selected) for kind in highest.types
    ]
    for kind, others in zip(chosen.types, highest.types, strict=True):
        assert len(set(kind.layers)) == len(kind.layers)
        assert set(kind.layers) == set(others.layers)
    assert chosen.embedding_parameters() == highest.embedding_parameters()


@settings(deadline=None)
@given(SCORES, PERCENTS, PERCENTS, st.sampled_from(ORDERS))
def test_a_smaller_selection_is_the_beginning_of_a_larger_one(
    scores: list[float], one: str, other: str, order: str
) -> None:
    less, more = sorted((one, other), key=Fraction)
    small, large = (selected(scan(scores), percent, order) for percent in (less, more))
    assert large[: len(small)] == small


@settings(deadline=None)
@given(SCORES, PERCENTS)
def test_the_lowest_are_those_of_lowest_score_in_model_order_at_ties(scores: list[float], percent: str) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    count = math.floor(len(scores) * Fraction(percent) / 100)
    assert selected(scan(scores), percent, "lowest") == [f"h.{i}.mlp.up" for i in expected[:count]]


@pytest.mark.parametrize("order", ["highest", "lowest"])
def test_ties_go_in_model_order_at_both_ends(order: str) -> None:
    assert selected(scan([1.0] * 24), "50", order) == [f"h.{i}.mlp.up" for i in range(12)]
    assert selected(scan([2, 1] * 12), "100", order) == [
        f"h.{i}.mlp.up" for start in ((0, 1) if order == "highest" else (1, 0)) for i in range(start, 24, 2)
    ]


@settings(deadline=None)
@given(SCORES, PERCENTS, SEEDS)
def test_a_lot_is_the_hash_of_seed_and_name(scores: list[float], percent: str, seed: int) -> None:
    expected = by_lot([f"h.{i}.mlp.up" for i in range(len(scores))], seed)
    count = math.floor(len(scores) * Fraction(percent) / 100)
    assert selected(scan(scores), percent, f"random:{seed}") == expected[:count]


@settings(deadline=None)
@given(SCORES, SEEDS, st.randoms(use_true_random=False))
def test_a_lot_depends_on_neither_scores_nor_places_nor_other_types(
    scores: list[float], seed: int, chance: Random
) -> None:
    layers = list(scan(scores).layers)
    other = LayerSnr("h.0.mlp.down", "mlp.down", 3.0)
    shuffled = [replace(layer, snr=1.0) for layer in layers] + [other]
    chance.shuffle(shuffled)
    order = f"random:{seed}"
    moved = ScanResult("other/name", tuple(shuffled), (), ("mlp.down", "mlp.up"), PROVENANCE)
    assert selected(moved, "100", order) == selected(scan(scores), "100", order)


def test_a_lot_is_the_same_on_every_machine() -> None:
    # Literals, from coreutils' sha256sum: what a seed draws is part of what users publish.
    assert selected(scan([1.0] * 8), "50", "random:7") == [f"h.{i}.mlp.up" for i in (5, 6, 1, 0)]
    assert selected(scan([1.0] * 8), "50", "random:8") == [f"h.{i}.mlp.up" for i in (6, 4, 0, 2)]


def test_seeds_and_types_draw_different_layers() -> None:
    drawn = {tuple(selected(scan([1.0] * 20), "50", f"random:{seed}")) for seed in range(50)}
    assert len(drawn) == 50
    places = {
        tuple(name.split(".")[1] for name in selected(scan([1.0] * 20, layer_type=kind), "50", "random:0", kind))
        for kind in ("mlp.up", "mlp.down", "mlp.gate")
    }
    assert len(places) == 3


def test_over_many_seeds_each_layer_is_drawn_as_often() -> None:
    counts = dict.fromkeys((f"h.{i}.mlp.up" for i in range(8)), 0)
    for seed in range(2000):
        for name in selected(scan([1.0] * 8), "25", f"random:{seed}"):
            counts[name] += 1
    # 500 each is expected, with a standard deviation of 19.
    assert all(400 < count < 600 for count in counts.values()), counts


def test_a_name_that_is_no_unicode_takes_part_in_a_lot() -> None:
    layers = tuple(LayerSnr(f"h.0.\ud800{i}", "t", 1.0) for i in range(4))
    chosen = top_percent(ScanResult("m", layers, (), ("t",), None), "50", order="random:1")
    assert len(chosen.types[0].selected) == 2


def test_a_layer_without_score_takes_no_part() -> None:
    for order in ORDERS:
        names = selected(scan([math.nan, 1.0, math.nan, 2.0]), "100", order)
        assert sorted(names) == ["h.1.mlp.up", "h.3.mlp.up"]


# A share of all parameters.


def sized(sizes: Sequence[int]) -> ScanResult:
    """A scan of layers of these sizes, the first of which scores highest."""
    layers = tuple(LayerSnr(f"h.{i}.up", "up", float(len(sizes) - i)) for i in range(len(sizes)))
    parameters = {f"h.{i}.up.weight": Parameter((size,), "float32") for i, size in enumerate(sizes)}
    info = ModelInfo("Toy", parameters, ("up",), None, None)
    return ScanResult("m", layers, (), ("up",), replace(PROVENANCE, info=info))


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 100), st.sampled_from(ORDERS))
def test_a_share_of_parameters_is_filled_in_any_order(sizes: list[int], percent: int, order: str) -> None:
    result = sized(sizes)
    size = {f"h.{i}.up": size for i, size in enumerate(sizes)}
    allowed = Fraction(percent * sum(sizes), 100)
    names = selected(result, "100", order, "up")
    expected = max((n for n in range(len(sizes) + 1) if sum(size[name] for name in names[:n]) <= allowed), default=0)
    if expected == 0:
        with pytest.raises(SelectionError, match="smallest selection"):
            top_params(result, str(percent), order=order)
        return
    chosen = top_params(result, str(percent), order=order)
    assert [layer.name for layer in chosen.types[0].selected] == names[:expected]
    assert chosen.order == order
    assert top_percent(result, chosen.percent, order=order) == chosen


# Orders as they are typed.


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("highest", "highest"),
        ("lowest", "lowest"),
        ("random:0", "random:0"),
        ("random:007", "random:7"),
        ("random:9223372036854775807", "random:9223372036854775807"),
    ],
)
def test_an_order_is_kept_without_leading_zeros(text: str, order: str) -> None:
    assert parse_order(text) == order
    assert top_percent(scan([1, 2]), "50", order=text).order == order


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("random", "random needs a seed, so that the same layers can be drawn again, such as random:1, not 'random'"),
        ("random:", "random needs a SEED from 0 to 9223372036854775807, such as random:1, not 'random:'"),
        ("random:-1", "such as random:1, not 'random:-1'"),
        ("random:1.5", "such as random:1, not 'random:1.5'"),
        ("random:1e3", "such as random:1, not 'random:1e3'"),
        ("random: 7", "such as random:1, not 'random: 7'"),
        ("random:7\n", "such as random:1, not"),
        ("random:\u0667", "such as random:1, not"),  # a digit, but not of ours
        ("random:9223372036854775808", "a SEED from 0 to 9223372036854775807"),
        ("random:" + "9" * 5000, "a SEED from 0 to 9223372036854775807"),
        ("Lowest", "highest, lowest or random:SEED is expected, not 'Lowest'; did you mean lowest?"),
        ("highst", "did you mean highest?"),
        ("randm:3", "did you mean random:1?"),
        ("bottom", "highest, lowest or random:SEED is expected, not 'bottom'"),
        ("", "highest, lowest or random:SEED is expected, not ''"),
        (7, "highest, lowest or random:SEED is expected, not 7"),
        (None, "highest, lowest or random:SEED is expected, not None"),
    ],
)
def test_what_is_no_order_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_order(wrong)


# What is said of it.

SOUND = BulkEdge(num_above=30, num_below=70, nearest=1e-3, sensitivity=0.02)


def ranked(order: str, count: int, *scores: float, edge: BulkEdge = SOUND) -> RankedType:
    layers = tuple(LayerSnr(f"h.{i}.up", "up", score, None, edge) for i, score in enumerate(scores))
    return RankedType("up", layers, count, order)


@pytest.mark.parametrize(
    ("scores", "count", "margin", "cut"),
    [
        ([1, 2, 3, 4], 1, 0.5, "50 %"),
        ([1, 2, 3, 4], 3, 0.25, "25 %"),
        ([0.0, 1.0], 1, 1.0, "100 %"),
        ([0.0, 0.0, 1.0], 1, 0.0, "tie"),
        ([2.0, math.inf], 1, 1.0, "100 %"),
        ([1.0, math.inf, math.inf], 2, 0.0, "tie"),
        ([1, 1], 1, 0.0, "all tie"),
        ([1, 2], 2, None, ""),
        ([1, 2], 0, None, ""),
    ],
    ids=str,
)
def test_the_margin_of_the_lowest_is_at_their_own_end(
    scores: list[float], count: int, margin: float | None, cut: str
) -> None:
    kind = ranked("lowest", count, *scores)
    assert kind.margin == (None if margin is None else pytest.approx(margin))
    assert kind.describe_margin() == cut


def test_a_lot_has_no_margin_no_ties_and_no_notes() -> None:
    crowded = SOUND._replace(nearest=0.0, sensitivity=0.9)
    kinds = [ranked("random:1", 2, 1, 1, 1, 1), ranked("random:1", 1, 0, 1 - 1e-9, 1, edge=crowded)]
    assert [(kind.cut, kind.margin, kind.num_tied, kind.describe_margin()) for kind in kinds] == [
        (None, None, 0, ""),
        (None, None, 0, ""),
    ]
    assert margins.notes(kinds) == []
    assert list(margins.warnings(kinds)) == []
    assert margins.legend(kinds) == ""


def test_notes_and_warnings_of_the_lowest_are_of_their_cut() -> None:
    near = ranked("lowest", 1, 1 - 1e-9, 1, 2)
    (warning,) = margins.warnings([near])
    assert warning == "h.0.up is selected and h.1.up is not, but their scores are equal within rounding"
    assert list(margins.warnings([ranked("lowest", 2, 1 - 1e-9, 1, 2)])) == []
    (note,) = margins.notes([ranked("lowest", 1, 2, 2, 3)])
    assert note.startswith("up (2): a tie")


@pytest.mark.parametrize(
    ("order", "title", "legend"),
    [
        (
            "highest",
            "Top 50 percent of",
            "how far the best layer left out scores below the lowest one selected",
        ),
        (
            "lowest",
            "Lowest 50 percent of",
            "how far the best layer selected scores below the lowest one left out",
        ),
        ("random:7", "Random 50 percent (seed 7) of", ""),
    ],
)
def test_a_selection_says_its_order(order: str, title: str, legend: str) -> None:
    chosen = top_percent(scan([1, 2, 4, 3]), "50", order=order)
    for shown in (repr(chosen), chosen._repr_html_()):
        assert f"{title} org/m, with input embedding and output head" in shown
        assert ("margin" in shown) == (order != "random:7")
        assert legend in shown
    # Lowest and highest are of all layers of the type, whichever are selected.
    head, row, _ = chosen.rows()
    assert head[2:4] == ("lowest SNR", "highest SNR")
    assert row[:4] == ("mlp.up", "2 of 4", "1", "4")
    assert {len(row) for row in chosen.rows()} == {len(head)}


@pytest.mark.parametrize(
    ("order", "comment"),
    [
        ("highest", None),
        ("lowest", "# control: lowest 50 percent of each layer type"),
        ("random:7", "# control: random 50 percent (seed 7) of each layer type"),
    ],
)
def test_the_list_of_a_control_says_so_in_a_comment(order: str, comment: str | None) -> None:
    chosen = top_percent(scan([1, 2, 4, 3]), "50", order=order)
    text = chosen.yaml()
    key, second, *_ = text.splitlines()
    assert key == "unfrozen_parameters:"
    assert second == (comment or "- ^lm_head.weight$")
    # Whoever reads lines, and whoever reads YAML, has the same entries: the two that are always there, and the layers.
    entries = [line[2:] for line in text.splitlines() if line.startswith("- ")]
    assert entries == yaml.safe_load(text)["unfrozen_parameters"]
    assert entries[2:] == chosen.layers()["mlp.up"]


def test_both_sides_of_a_comparison_have_the_order() -> None:
    def of(model: str, scores: Sequence[float], order: str) -> Selection:
        return top_percent(replace(scan(scores), model=model), "25", order=order)

    found = comparison.compare(of("a", [1, 2, 3, 4], "lowest"), of("b", [4, 3, 2, 1], "lowest"))
    assert [(kind.enter, kind.leave) for kind in found.types] == [(("h.3.mlp.up",), ("h.0.mlp.up",))]
    assert comparison.described(found).startswith("b in place of a, lowest 25 percent of each layer type:")
    # Layers of the same names: the same lot.
    found = comparison.compare(of("a", [1, 2, 3, 4], "random:7"), of("b", [4, 3, 2, 1], "random:7"))
    assert [(kind.enter, kind.leave) for kind in found.types] == [((), ())]
    assert "random 25 percent (seed 7) of each" in comparison.described(found)
