"""What is said of a selection's cuts: how wide they are, and of layers whose score says little."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from spectrum.records import BulkEdge, LayerSnr
from spectrum.selection import margins
from spectrum.selection.margins import RankedType

SOUND = BulkEdge(num_above=30, num_below=70, nearest=1e-3, sensitivity=0.02)


def layers(*scores: float, edge: BulkEdge | None = SOUND, layer_type: str = "mlp.up_proj") -> list[LayerSnr]:
    return [LayerSnr(f"model.layers.{i}.{layer_type}", layer_type, score, None, edge) for i, score in enumerate(scores)]


def kind(ranked: Sequence[LayerSnr], count: int) -> RankedType:
    return RankedType(ranked[0].layer_type if ranked else "none", tuple(ranked), count)


@pytest.mark.parametrize(
    ("scores", "count", "margin", "cut"),
    [
        ([4, 3, 2, 1], 2, 1 / 3, "33 %"),
        ([4, 3, 2, 1], 1, 1 / 4, "25 %"),
        ([2.0, 1.875], 1, 0.0625, "6.2 %"),
        ([2.0, 1.0], 1, 0.5, "50 %"),
        ([1.0, 0.999], 1, 0.001, "0.1 %"),
        ([1.0, 0.9999], 1, 1e-4, "0.01 %"),
        ([1.0, 1 - 1e-6], 1, 1e-6, "0.0001 %"),
        ([1.0, 1 - 3e-9], 1, 3e-9, "3e-07 %"),
        ([1.0, 0.0], 1, 1.0, "100 %"),
        ([1.0, 0.001], 1, 0.999, "100 %"),
        ([math.inf, 3.0], 1, 1.0, "100 %"),
        # Nothing lies on either side.
        ([4, 3, 2, 1], 0, None, ""),
        ([4, 3, 2, 1], 4, None, ""),
        ([4], 0, None, ""),
        ([], 0, None, ""),
        # The cut goes through layers of one score.
        ([4, 3, 3, 1], 2, 0.0, "tie"),
        ([3, 3, 3, 1], 1, 0.0, "tie"),
        ([4, 0, 0], 2, 0.0, "tie"),
        ([math.inf, math.inf, 1], 1, 0.0, "tie"),
        ([4, 3, 3, 1], 1, 0.25, "25 %"),
        ([4, 3, 3, 1], 3, 2 / 3, "67 %"),
        # Norms.
        ([1, 1, 1, 1], 2, 0.0, "all tie"),
    ],
    ids=str,
)
def test_the_margin_is_how_far_the_first_left_out_is_below_the_last_selected(
    scores: list[float], count: int, margin: float | None, cut: str
) -> None:
    chosen = kind(layers(*scores), count)
    found = chosen.margin
    assert found == (None if margin is None else pytest.approx(margin, rel=1e-7))
    assert chosen.describe_margin() == cut


def test_a_sound_selection_has_no_notes() -> None:
    assert margins.notes([kind(layers(4, 3, 2, 1), 2), kind(layers(4), 0), kind([], 0)]) == []
    # Scans of other tools do not say what lies at the edge.
    assert margins.notes([kind(layers(4, 3, 2, 1, edge=None), 2)]) == []


def test_norms_are_selected_in_model_order() -> None:
    # As a layer has them: one singular value, over an edge of 0.
    ones = layers(1, 1, edge=BulkEdge(1, 0, 1.0, 0.0), layer_type="input_layernorm")
    (note,) = margins.notes([kind(ones, 1), kind(layers(2, 1), 1)])
    assert note.startswith("input_layernorm: all layers have the same score")
    # All or none of them are no matter of order.
    assert margins.notes([kind(ones, 0)]) == margins.notes([kind(ones, 2)]) == []


def test_ties_at_the_cut_are_counted() -> None:
    (note,) = margins.notes([kind(layers(5, 3, 3, 3, 1), 2), kind(layers(5, 3, 3, 1), 1)])
    assert note.startswith("mlp.up_proj (3): ")
    assert margins.notes([kind(layers(5, 3, 3, 1), 3)]) == []


def test_a_layer_without_signal_is_named() -> None:
    stack = LayerSnr("model.layers.7.experts", "experts", 2.0, (2.0, 0.0, 3.0), SOUND)
    (note,) = margins.notes([kind(layers(4, 3, 0, 0), 1), kind([stack], 0)])
    names = "model.layers.2.mlp.up_proj, model.layers.3.mlp.up_proj, 1 of 3 in model.layers.7.experts"
    assert note.startswith(f"{names}: no signal")


def test_a_layer_without_noise_is_named() -> None:
    gate = layers(3, edge=BulkEdge(num_above=8, num_below=0, nearest=0.1, sensitivity=0.0))
    (note,) = margins.notes([kind(gate, 0)])
    assert note.startswith("model.layers.0.mlp.up_proj: no noise")
    assert margins.notes([kind(layers(3, edge=BulkEdge(8, 1, 0.1, 0.0)), 0)]) == []


def test_a_layer_whose_values_crowd_the_edge_is_named() -> None:
    def of(jump: float) -> list[str]:
        return margins.notes([kind(layers(3, edge=SOUND._replace(sensitivity=jump)), 0)])

    (note,) = of(0.26)
    assert note.startswith("model.layers.0.mlp.up_proj: singular values crowd the bulk edge")
    assert "25 percent" in note
    assert of(0.25) == []


def test_of_many_layers_the_first_are_named() -> None:
    (note,) = margins.notes([kind(layers(*[0.0] * 126), 0)])
    assert note.count("model.layers.") == 3
    assert " and 123 more: " in note


def test_each_kind_of_thing_has_a_line() -> None:
    crowded = SOUND._replace(sensitivity=0.5)
    types = [kind(layers(1, 1), 1), kind(layers(3, 2, 2, 0, edge=crowded), 2)]
    starts = ["mlp.up_proj: all", "mlp.up_proj (2): ", "model.layers.3.mlp.up_proj: no signal", "model.layers.0"]
    notes = margins.notes(types)
    assert len(notes) == len(starts)
    for note, start in zip(notes, starts, strict=True):
        assert note.startswith(start)


# Warnings.


@pytest.mark.parametrize(
    ("distance", "warned"), [(1e-9, True), (1.9e-8, True), (2.1e-8, False), (1e-6, False), (0.0, False)]
)
def test_a_cut_that_is_narrower_than_scores_are_accurate_is_warned_of(distance: float, warned: bool) -> None:
    found = list(margins.warnings([kind(layers(2.0, 1.0, 1 - distance, 0.5), 2)]))
    assert len(found) == warned
    for warning in found:
        assert "model.layers.1.mlp.up_proj is selected and model.layers.2.mlp.up_proj is not" in warning


@pytest.mark.parametrize(("gap", "warned"), [(0.0, True), (1e-9, True), (1e-8, True), (1.1e-8, False)])
@pytest.mark.parametrize("place", range(4))
def test_a_singular_value_on_the_edge_is_warned_of_at_the_cut_alone(gap: float, warned: bool, place: int) -> None:
    ranked = layers(4, 3, 2, 1)
    ranked[place] = layers(*[4 - i for i in range(4)], edge=SOUND._replace(nearest=gap))[place]
    found = list(margins.warnings([kind(ranked, 2)]))
    assert len(found) == (warned and place in (1, 2))
    for warning in found:
        assert warning.startswith(f"model.layers.{place}.mlp.up_proj, at the cut of its type")
    # Where there is no cut, nothing hangs on it.
    assert list(margins.warnings([kind(ranked, 0), kind(ranked, 4)])) == []
