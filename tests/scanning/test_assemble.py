"""Results put together from the scores of matrices, and merged with those of an earlier scan."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from spectrum.layer_types import layer_types
from spectrum.records import BulkEdge, LayerSnr, LayerWeight, MatrixScore, ScanResult
from spectrum.scanning.assemble import assemble, layer_scores, merge
from tests.helpers.records import PROVENANCE


def weight(name: str) -> LayerWeight:
    return LayerWeight(name, layer_types([name])[name], f"{name}.weight", (4, 4), (4, 4), 1, "float32")


def score(name: str, snr: float, kind: str | None = None) -> LayerSnr:
    return LayerSnr(name, kind or layer_types([name])[name], snr)


def test_assemble_orders_by_type_then_by_model_whatever_the_order_of_the_scores() -> None:
    model_order = ["model.embed_tokens", "h.0.mlp.up", "h.0.mlp.down", "h.2.mlp.up", "h.2.mlp.down", "h.10.mlp.up"]
    scores = [score(name, snr) for snr, name in enumerate(sorted(model_order, reverse=True))]

    result = assemble("org/model", [weight(name) for name in model_order], scores, PROVENANCE)

    assert [layer.name for layer in result.layers] == [
        *("h.0.mlp.down", "h.2.mlp.down"),
        *("h.0.mlp.up", "h.2.mlp.up", "h.10.mlp.up"),
        "model.embed_tokens",
    ]
    assert set(result.layers) == set(scores)
    assert result.scanned == ("mlp.down", "mlp.up", "model.embed_tokens")
    assert (result.model, result.left_out, result.provenance) == ("org/model", (), PROVENANCE)


def test_assemble_leaves_out_nan_but_keeps_infinity() -> None:
    names = ["h.0.mlp.up", "h.1.mlp.up", "h.0.attn.q"]
    scores = [score("h.0.mlp.up", nan), score("h.1.mlp.up", inf), score("h.0.attn.q", nan)]

    result = assemble("m", [weight(name) for name in names], scores, PROVENANCE)

    assert result.layers == (score("h.1.mlp.up", inf),)
    assert result.left_out == ("h.0.attn.q", "h.0.mlp.up")
    # A type of which nothing is left was scanned all the same, or the next run would scan it again.
    assert result.scanned == ("attn.q", "mlp.up")


def test_merge_puts_new_types_in_display_order_and_replaces_old_scores_of_the_same_type() -> None:
    newer = replace(PROVENANCE, commit="decaf")
    old = ScanResult(
        "m",
        (score("h.0.mlp.up", 1.0), score("h.1.mlp.up", 2.0), score("lm_head", 3.0)),
        ("h.2.mlp.up",),
        ("mlp.up", "lm_head"),
        PROVENANCE,
    )
    new = ScanResult(
        "m", (score("h.0.attn.q", 4.0), score("lm_head", 5.0)), ("h.1.attn.q",), ("attn.q", "lm_head"), newer
    )

    assert merge(old, new) == ScanResult(
        "m",
        (score("h.0.attn.q", 4.0), score("lm_head", 5.0), score("h.0.mlp.up", 1.0), score("h.1.mlp.up", 2.0)),
        ("h.2.mlp.up", "h.1.attn.q"),
        ("attn.q", "lm_head", "mlp.up"),
        newer,
    )


def test_merge_forgets_that_a_layer_was_left_out_once_it_has_a_score() -> None:
    old = ScanResult("m", (score("h.0.mlp.up", 1.0),), ("h.1.mlp.up",), ("mlp.up",), PROVENANCE)
    new = ScanResult("m", (score("h.0.mlp.up", 1.0), score("h.1.mlp.up", 2.0)), (), ("mlp.up",), PROVENANCE)
    assert merge(old, new).left_out == ()


def matrix_scores(*snrs: float) -> dict[tuple[str, int], MatrixScore]:
    """Scores of a stack's matrices, each with an edge of its own."""
    edges = [BulkEdge(1, 9, 0.5, 0.1), BulkEdge(2, 7, 0.125, 0.4), BulkEdge(4, 6, 0.25, 0.2), BulkEdge(8, 0, 1.0, 0.0)]
    return {("w", i): MatrixScore(snr, edge) for i, (snr, edge) in enumerate(zip(snrs, edges, strict=False))}


def stack(count: int) -> LayerWeight:
    return LayerWeight("h.0.experts", "experts", "w", (count, 4, 4), (4, 4), count, "float32")


def test_a_layer_of_one_matrix_has_its_score_and_edge() -> None:
    (layer,) = layer_scores([stack(1)], matrix_scores(2.5))
    assert layer == LayerSnr("h.0.experts", "experts", 2.5, None, BulkEdge(1, 9, 0.5, 0.1))


@pytest.mark.parametrize(
    ("snrs", "median", "edge"),
    [
        ((3.0, 1.0), 2.0, BulkEdge(3, 16, 0.125, 0.25)),
        ((3.0, 1.0, 2.0), 2.0, BulkEdge(7, 22, 0.125, 0.2)),
        ((3.0, 1.0, 2.0, 7.0), 2.5, BulkEdge(15, 22, 0.125, 0.15)),
    ],
    ids=str,
)
def test_a_stack_has_the_median_of_scores_and_jumps_all_counts_and_the_smallest_gap(
    snrs: tuple[float, ...], median: float, edge: BulkEdge
) -> None:
    (layer,) = layer_scores([stack(len(snrs))], matrix_scores(*snrs))
    assert (layer.snr, layer.experts) == (median, snrs)
    assert layer.edge == pytest.approx(edge)


def test_tied_weights_have_one_score_under_each_name() -> None:
    weights = [replace(stack(1), name="a"), replace(stack(1), name="b")]
    first, second = layer_scores(weights, matrix_scores(2.5))
    assert replace(first, name="b") == second
