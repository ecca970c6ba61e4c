"""Layer types from module paths, their order, what a user's patterns name, and results put together from scores."""

from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from spectrum.errors import LayerTypeError
from spectrum.layer_types import display_order, layer_types, match_types
from spectrum.records import BulkEdge, LayerSnr, LayerWeight, MatrixScore, ScanResult
from spectrum.scanning.assemble import assemble, layer_scores, merge
from tests.helpers.records import PROVENANCE


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.layers.7.mlp.down_proj", "mlp.down_proj"),
        ("model.layers.11.mlp.down_proj", "mlp.down_proj"),
        ("h.0.attn.c_attn", "attn.c_attn"),
        ("lm_head", "lm_head"),
        ("model.embed_tokens", "model.embed_tokens"),
        # Only the first number is the depth; a later one tells experts of one layer apart.
        ("model.layers.3.mlp.experts.5.w1", "mlp.experts.5.w1"),
        # A digit within a name is not a number.
        ("decoder.block1.fc2", "decoder.block1.fc2"),
        ("model.layers.0.mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj"),
        # Nothing follows the number: the stack itself is the type, for it cannot be empty.
        ("heads.0", "heads"),
        ("0", "0"),
    ],
)
def test_layer_type_is_what_follows_the_first_number(path: str, expected: str) -> None:
    assert layer_types([path]) == {path: expected}


def test_towers_that_share_a_suffix_carry_their_paths_and_others_do_not() -> None:
    shared = {
        "model.visual.blocks.0.norm1": "model.visual.blocks.norm1",
        "model.visual.blocks.1.mlp.up_proj": "model.visual.blocks.mlp.up_proj",
        "model.language_model.layers.0.mlp.up_proj": "model.language_model.layers.mlp.up_proj",
        "model.language_model.layers.10.self_attn.q_proj": "model.language_model.layers.self_attn.q_proj",
    }
    alone = {"model.audio.conv.0.kernel": "kernel", "model.audio.conv.0": "model.audio.conv", "lm_head": "lm_head"}
    assert layer_types([*shared, *alone]) == shared | alone


def test_numbers_within_one_stack_make_no_towers() -> None:
    paths = [f"model.layers.{i}.mlp.experts.{e}.w1" for i in range(2) for e in range(2)]
    assert set(layer_types(paths).values()) == {"mlp.experts.0.w1", "mlp.experts.1.w1"}


def test_display_order_is_by_first_component_then_alphabetical() -> None:
    # As plain strings `attn-x` would come before `attn.q`.
    names = ["mlp.up", "attn-x.k", "lm_head", "attn.q", "mlp.down", "attn.q", "attn"]
    assert display_order(names) == ["attn", "attn.q", "attn-x.k", "lm_head", "mlp.down", "mlp.up"]


TYPES = ["lm_head", "mlp.gate", "mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        pytest.param(["mlp.gate"], ["mlp.gate"], id="an exact type is not a prefix"),
        pytest.param(["mlp.gate*"], ["mlp.gate", "mlp.gate_proj"], id="shell pattern"),
        pytest.param(["*_proj"], ["mlp.gate_proj", "mlp.up_proj", "self_attn.q_proj"], id="a star crosses dots"),
        pytest.param(["mlp.[gx]ate"], ["mlp.gate"], id="character set"),
        pytest.param(["self_attn.q_proj", "lm_head"], ["lm_head", "self_attn.q_proj"], id="in the order of the types"),
        pytest.param(["mlp.*", "mlp.gate"], ["mlp.gate", "mlp.gate_proj", "mlp.up_proj"], id="named twice, once"),
        pytest.param(["all"], TYPES, id="all"),
        pytest.param(["lm_head", "all"], TYPES, id="all among others"),
    ],
)
def test_match_types_takes_exact_types_and_shell_patterns(patterns: list[str], expected: list[str]) -> None:
    assert match_types(patterns, TYPES) == expected


def test_match_types_takes_a_type_with_wildcards_in_its_name_exactly() -> None:
    # As a pattern alone, `w[0]` means `w0` and not itself.
    assert match_types(["w[0]"], ["w[0]", "w1"]) == ["w[0]"]


@pytest.mark.parametrize("pattern", ["gate", "mlp", "MLP.*", "mlp.gate_", "conv.*", ""])
def test_match_types_refuses_what_matches_nothing_and_says_which_types_exist(pattern: str) -> None:
    with pytest.raises(LayerTypeError) as refused:
        match_types(["lm_head", pattern], TYPES)
    assert repr(pattern) in str(refused.value)
    for name in TYPES:
        assert name in str(refused.value)


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


def test_a_scan_is_shown_with_a_row_for_each_type() -> None:
    layers = (score("h.0.up", 1.0), score("h.1.up", 4.0), score("h.2.up", 2.5), score("lm_head", inf))
    scan = ScanResult("org/<b>m</b>", layers, ("h.3.up", "h.4.up"), ("up", "lm_head"), PROVENANCE)
    assert repr(scan) == (
        "Scan of org/<b>m</b> (LlamaForCausalLM): 4 layers; 2 left out for NaN or infinity\n"
        "\n"
        "layer type  layers  lowest SNR  median SNR  highest SNR\n"
        "up               3           1         2.5            4\n"
        "lm_head          1         inf         inf          inf"
    )
    shown = scan._repr_html_()
    assert (
        "<p>Scan of org/&lt;b&gt;m&lt;/b&gt; (LlamaForCausalLM): 4 layers; 2 left out for NaN or infinity</p>" in shown
    )
    assert "<b>" not in shown
    assert shown.count("<tr>") == 3
    one = replace(scan, layers=layers[:1], left_out=(), provenance=None)
    assert repr(one).startswith("Scan of org/<b>m</b>: 1 layer\n\n")


def test_by_type_keeps_the_order_of_the_layers() -> None:
    layers = (score("h.0.b", 1.0), score("h.0.a", 2.0), score("h.1.b", 3.0))
    groups = ScanResult("m", layers, (), ("b", "a"), None).by_type()
    assert list(groups.items()) == [("b", [layers[0], layers[2]]), ("a", [layers[1]])]
