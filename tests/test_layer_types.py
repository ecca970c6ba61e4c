"""Layer types from module paths, their order, and what a user's patterns name."""

from __future__ import annotations

import pytest

from spectrum.errors import LayerTypeError
from spectrum.layer_types import display_order, layer_number, layer_types, match_types, split_patterns


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
    assert match_types(patterns, dict.fromkeys(TYPES, ())) == expected


def test_match_types_takes_a_type_with_wildcards_in_its_name_exactly() -> None:
    # As a pattern alone, `w[0]` means `w0` and not itself.
    assert match_types(["w[0]"], {"w[0]": (), "w1": ()}) == ["w[0]"]


@pytest.mark.parametrize("pattern", ["gate", "mlp", "MLP.*", "mlp.gate_", "conv.*", ""])
def test_match_types_refuses_what_matches_nothing_and_says_which_types_exist(pattern: str) -> None:
    with pytest.raises(LayerTypeError) as refused:
        match_types(["lm_head", pattern], dict.fromkeys(TYPES, ()))
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
    types = dict.fromkeys(["lm_head", "mlp.gate", "mlp.up_proj", "self_attn.q_proj"], ())
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


# What a multimodal model has whose towers share no type, so that no type has a path.
LAYERS = {
    "attn.qkv": ["model.visual.blocks.0.attn.qkv", "model.visual.blocks.1.attn.qkv"],
    "mlp.up_proj": ["model.language_model.layers.0.mlp.up_proj", "model.language_model.layers.1.mlp.up_proj"],
    "model.language_model.norm": ["model.language_model.norm"],
    "not.known": [],
}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model.language_model.*", ["mlp.up_proj", "model.language_model.norm"]),
        ("model.visual.*", ["attn.qkv"]),
        ("*.blocks.*", ["attn.qkv"]),
        ("model.*", ["attn.qkv", "mlp.up_proj", "model.language_model.norm"]),
        ("*.up_proj", ["mlp.up_proj"]),
    ],
)
def test_a_pattern_chooses_a_type_by_the_paths_of_all_its_layers(pattern: str, expected: list[str]) -> None:
    assert match_types([pattern], LAYERS) == expected


@pytest.mark.parametrize("pattern", ["model.language_model.layers.1.*", "*.layers.0.mlp.up_proj", "*.layers.[1-9].*"])
def test_a_pattern_that_matches_some_layers_of_a_type_is_told_to_give_the_type(pattern: str) -> None:
    with pytest.raises(LayerTypeError, match=r"ranked within their whole type; give the type itself: mlp\.up_proj$"):
        match_types([pattern], LAYERS)


def test_a_pattern_that_also_matches_some_layers_of_another_type_chooses_what_it_matches_whole() -> None:
    layers = {"a": ["m.0.a"], "b": ["m.0.b", "m.1.b"]}
    assert match_types(["m.0.*"], layers) == ["a"]


def stages(path: str, *depths: int) -> list[str]:
    """Paths of the blocks of several stages. `{}` stands for the number of the stage, then that of the block."""
    return [path.format(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ("swin.encoder.layers.{}.blocks.{}.attention.query", "swin.encoder.layers.1.blocks.attention.query"),
        ("resnet.encoder.stages.{}.layers.{}.layer.0.conv", "resnet.encoder.stages.1.layers.layer.0.conv"),
        ("segformer.stages.{}.blocks.{}.mlp.dense1", "segformer.stages.1.blocks.mlp.dense1"),
        ("vit.encoder.layer.{}.transformer.layer.{}.query", "vit.encoder.layer.1.transformer.layer.query"),
        # The number of the block follows that of the stage.
        ("funnel.encoder.blocks.{}.{}.attention.q_head", "funnel.encoder.blocks.1.attention.q_head"),
        ("{}.{}.fc", "1.fc"),
    ],
)
def test_blocks_of_a_stage_are_ranked_among_each_other(blocks: str, expected: str) -> None:
    types = layer_types(stages(blocks, 2, 3, 1))
    assert [types[blocks.format(1, block)] for block in range(3)] == [expected] * 3
    assert len(set(types.values())) == 3
    assert [layer_number(blocks.format(1, block), expected) for block in range(3)] == ["0", "1", "2"]


def test_what_is_beside_the_blocks_of_a_stage_is_ranked_among_stages() -> None:
    merging = [f"swin.layers.{stage}.downsample.reduction" for stage in range(3)]
    types = layer_types([*stages("swin.layers.{}.blocks.{}.fc", 2, 2, 2), *merging])
    assert {types[path] for path in merging} == {"downsample.reduction"}
    assert [layer_number(path, types[path]) for path in merging] == ["0", "1", "2"]


def test_blocks_of_a_stage_may_differ_if_two_are_alike() -> None:
    # The first block of a stage also widens its input, or some of the blocks have attention.
    stage = [f"stages.{s}.blocks.{b}.conv" for s in range(2) for b in range(3)]
    types = layer_types([*stage, "stages.0.blocks.0.shortcut", "stages.1.blocks.0.shortcut"])
    assert types["stages.1.blocks.2.conv"] == types["stages.1.blocks.0.conv"] == "stages.1.blocks.conv"
    assert types["stages.1.blocks.0.shortcut"] == "stages.1.blocks.shortcut"


@pytest.mark.parametrize("wider", [0, 1])
def test_of_two_blocks_one_may_have_all_that_the_other_has_and_more(wider: int) -> None:
    types = layer_types([*stages("stages.{}.blocks.{}.conv", 2, 2), *stages(f"stages.{{}}.blocks.{wider}.wide", 1, 1)])
    assert set(types.values()) == {f"stages.{s}.blocks.{name}" for s in range(2) for name in ("conv", "wide")}


@pytest.mark.parametrize("norm", ["norm", "layer_norm", "LayerNorm", "ln", "ln_1", "bn2", "norm1.scale", "batchnorm"])
def test_sublayers_that_share_a_norm_alone_are_no_blocks(norm: str) -> None:
    ends = (f"0.{norm}", f"1.{norm}", "1.mixer.q", "1.mixer.out")
    types = layer_types(f"model.layers.{i}.block.{end}" for i in range(3) for end in ends)
    assert {types[f"model.layers.{i}.block.1.mixer.q"] for i in range(3)} == {"block.1.mixer.q"}
    assert len(set(types.values())) == 4


@pytest.mark.parametrize("name", ["final.ln_proj", "lnear", "mbn.fc"])
def test_other_names_are_no_norms(name: str) -> None:
    types = layer_types(stages(f"model.layers.{{}}.block.{{}}.{name}", 2, 2))
    assert types[f"model.layers.1.block.0.{name}"] == f"model.layers.1.block.{name}"


@pytest.mark.parametrize(
    ("paths", "path", "expected"),
    [
        pytest.param(
            [
                f"encoder.block.{i}.layer.{end}"
                for i in range(3)
                for end in ("0.SelfAttention.q", "0.layer_norm", "1.DenseReluDense.wi", "1.layer_norm")
            ],
            "encoder.block.2.layer.0.SelfAttention.q",
            "layer.0.SelfAttention.q",
            id="sublayers of T5, of two kinds",
        ),
        pytest.param(
            stages("model.layers.{}.mlp.experts.{}.w1", 4, 4),
            "model.layers.1.mlp.experts.3.w1",
            "mlp.experts.3.w1",
            id="experts",
        ),
        pytest.param(
            stages("encoder.layer.{}.ffn.{}.dense", 4, 4),
            "encoder.layer.1.ffn.2.dense",
            "ffn.2.dense",
            id="several networks in a layer",
        ),
        pytest.param(
            [f"encoder.layers.{i}.block.{j}.conv" for i in range(3) for j in (1, 3)],
            "encoder.layers.2.block.3.conv",
            "block.3.conv",
            id="convolutions between activations",
        ),
        pytest.param(
            stages("bbox.{}.layers.{}", 3, 3, 3), "bbox.2.layers.1", "layers.1", id="nothing below the number"
        ),
        pytest.param(
            stages("h.{}.layers.{}.fc", 1, 1, 1), "h.2.layers.0.fc", "layers.0.fc", id="one block in each layer"
        ),
    ],
)
def test_a_second_number_that_counts_no_blocks_stays_in_the_type(paths: list[str], path: str, expected: str) -> None:
    types = layer_types(paths)
    assert types[path] == expected
    assert layer_number(path, expected) == path.split(".")[2 if path[0] != "b" and path[0] != "h" else 1]


def test_no_type_begins_with_a_number() -> None:
    # Sublayers of different kinds, numbered: attention, then a network.
    paths = [f"resampler.layers.{i}.{end}" for i in range(2) for end in ("0.to_q", "0.norm", "1.0", "1.1")]
    assert set(layer_types(paths).values()) == {f"resampler.layers.{end}" for end in ("0.to_q", "0.norm", "1.0", "1.1")}
    assert layer_number("resampler.layers.1.0.to_q", "resampler.layers.0.to_q") == "1"


@pytest.mark.parametrize(
    ("path", "layer_type", "number"),
    [
        ("model.layers.7.mlp.experts.3.w1", "mlp.experts.3.w1", "7"),
        ("model.visual.blocks.4.attn", "model.visual.blocks.attn", "4"),
        ("heads.3", "heads", "3"),
        ("lm_head", "lm_head", None),
        # Another tool's type says nothing about the number.
        ("model.layers.7.mlp.experts.3.w1", "experts", "7"),
    ],
)
def test_the_number_of_a_layer_is_the_one_that_its_type_lacks(path: str, layer_type: str, number: str | None) -> None:
    assert layer_number(path, layer_type) == number
