"""Layer types from module paths, their order, and what a user's patterns name."""

from __future__ import annotations

import pytest

from spectrum.errors import LayerTypeError
from spectrum.layer_types import display_order, layer_types, match_types, split_patterns


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


@pytest.mark.parametrize(
    ("patterns", "meant"),
    [
        (["mlp"], "'mlp.*'"),
        (["mlp", "self_attn"], "'mlp.*' self_attn.q_proj"),
        (["lm_head", "mlp."], "'mlp.*'"),
        (["mlp", "mlp"], "'mlp.*'"),
        (["up_proj"], "mlp.up_proj"),
        (["_proj"], "'*_proj*'"),
        ([".*mlp.*"], "'mlp.*'"),
        (["mlp.dwon_proj"], "mlp.up_proj"),
        (["mlp.upp_proj"], "mlp.up_proj"),
        (["LM_HEAD"], "lm_head"),
        (["mlp.up_proj.weight"], "mlp.up_proj"),
        (["zebra", "mlp"], None),
        ([""], None),
    ],
)
def test_a_pattern_that_matches_nothing_gets_a_proposal_that_does(patterns: list[str], meant: str | None) -> None:
    types = ["lm_head", "mlp.gate", "mlp.up_proj", "self_attn.q_proj"]
    with pytest.raises(LayerTypeError) as refused:
        match_types(patterns, types)
    hint = "; this" if meant is None else f"; did you mean {meant}? This"
    assert f"{hint} model has: lm_head, " in str(refused.value)
    if meant is not None:
        assert match_types([word.strip("'") for word in meant.split()], types)


@pytest.mark.parametrize(
    ("patterns", "split"),
    [
        (["a,b", "c"], ["a", "b", "c"]),
        (["a, b ,"], ["a", "b"]),
        (["mlp.*,lm_head"], ["mlp.*", "lm_head"]),
        ([","], []),
        ([""], [""]),
        (["x[a,b]", "x{a,b}"], ["x[a,b]", "x{a,b}"]),
    ],
)
def test_patterns_may_have_commas_between_them(patterns: list[str], split: list[str]) -> None:
    assert split_patterns(patterns) == split
