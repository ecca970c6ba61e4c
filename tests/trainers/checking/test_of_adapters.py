"""Lists of what gets an adapter: what is wrong with them, by PEFT's rule and the trainers' own settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectrum.records import ModelInfo
from spectrum.trainers.checking.any_list import check_any
from spectrum.trainers.checking.report import CheckReport
from spectrum.trainers.readers.files import read_any
from tests.helpers.models import model_of

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NAMES = [
    EMBEDDING,
    *(f"model.layers.{i}.self_attn.{own}.weight" for i in range(3) for own in ("q_proj", "o_proj")),
    *(f"model.layers.{i}.mlp.experts.{own}" for i in range(3) for own in ("gate_up_proj", "down_proj")),
    *(f"model.layers.{i}.norm.weight" for i in range(3)),
    *(f"tower.model.layers.{i}.self_attn.q_proj.weight" for i in range(2)),
    "tower.conv.weight",
    "scale",
    HEAD,
]
CLASSES = {"q_proj.weight": "Linear", "o_proj.weight": "Linear", HEAD: "Linear", "norm.weight": "LayerNorm"}
CLASSES |= {EMBEDDING: "Embedding", "conv.weight": "grouped Conv2d"}
SHAPES = {"norm.weight": (8,), "experts.gate_up_proj": (4, 8, 8), "experts.down_proj": (4, 8, 8)}
MODEL = model_of(NAMES, head=HEAD, embedding=EMBEDDING, classes=CLASSES, shapes=SHAPES)
VISION = model_of(
    [name.replace("tower.", "model.vision_tower.") for name in NAMES],
    head=HEAD,
    embedding=EMBEDDING,
    classes=CLASSES,
    shapes=SHAPES,
    model_class="LlavaForConditionalGeneration",
)
FORMER = model_of(
    NAMES, head=HEAD, embedding=EMBEDDING, classes=CLASSES, shapes=SHAPES, model_class="Qwen3MoeForCausalLM"
)

Q, WHOLE = "model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.o_proj"
EXPERTS = "model.layers.1.mlp.experts.down_proj"
TRL = "use_peft: true\nmodel_name_or_path: org/model\n"


def check(directory: Path, text: str, model: ModelInfo = MODEL) -> CheckReport:
    path = directory / "config.yaml"
    path.write_text(text)
    return check_any(read_any(path), model)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            f"target_modules: [{WHOLE}, model.layers.7.self_attn.q_proj]",
            ["matches nothing", "only model.layers.0 to 2"],
        ),
        (f"target_modules: [{WHOLE}.weight]", ["it is a parameter", f"write {WHOLE}"]),
        (f"target_modules: [{EXPERTS}]", ["it is a parameter; list it as a target parameter"]),
        (f"target_modules: []\ntarget_parameters: [{WHOLE}]", ["it is a module", f"or write {WHOLE}.weight"]),
        (f"target_modules: []\ntarget_parameters: [{EXPERTS}, experts.up_proj]", ["experts.up_proj matches nothing"]),
        (f"target_modules: [{Q}]", [f"{Q} also adapts tower.{Q}", "regular expression"]),
        ("target_modules: [norm]", ["norm", "cannot be adapted", "it is a LayerNorm"]),
        ("target_modules: [q_proj, mlp]", ["it has no weight of its own", "PEFT stops"]),
        ("target_modules: [conv]", ["convolution in groups"]),
        ("target_modules: []\ntarget_parameters: [norm.weight]", ["it has 1 dimension"]),
        ("target_modules: .*k_proj", [".*k_proj matches nothing", "nothing that is listed gets an adapter"]),
        ("target_modules: self_attn.o_proj", [r"for whole paths; write (.*\.)?self_attn.o_proj, or a list"]),
        (f"target_modules: [{Q}, lm_head]\ntarget_parameters: [lm_head.weight]", ["its module gets an adapter too"]),
        ("target_modules: []\ntarget_parameters: [scale]", ["scale cannot be adapted", "it is in no module"]),
        (f"target_parameters: [{EXPERTS}]", ["target_modules is missing"]),
        (f"target_modules: [o_proj]\nlora_dropout: 0.1\ntarget_parameters: [{EXPERTS}]", ["lora_dropout must be 0"]),
        ("base_model: x\nlora_target_modules: [o_proj]", ["adapter is not set", "trains the whole model"]),
        ("adapter: lora\nlora_target_linear: true\nlora_target_modules: [o_proj]", ["all linear layers"]),
        (f"adapter: lora\nlora_dropout: 0.05\nlora_target_parameters: [{EXPERTS}]", ["lora_dropout must be 0"]),
        ("model_name_or_path: x\nlora_target_modules: [q_proj, o_proj]", ["use_peft is not set"]),
        (f"{TRL}lora_target_modules: [q_proj]", ["q_proj matches nothing"]),
        (f"{TRL}lora_target_modules: [q_proj, o_proj]\nlora_target_parameters: [{EXPERTS}]", ["0.05 by default"]),
        ("--lora_target_modules q_proj o_proj", ["use_peft is not set"]),
        ("finetuning_type: full\nlora_target: q_proj,o_proj", ["finetuning_type is 'full'"]),
        ("lora_target: q_proj,k_proj", ["k_proj matches nothing"]),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_what_to_write(text: str, words: list[str], tmp_path: Path) -> None:
    problems = "\n".join(check(tmp_path, text).problems)
    for word in words:
        assert word in problems


@pytest.mark.parametrize(
    ("text", "adapters"),
    [
        (f"target_modules: [{WHOLE}, embed_tokens]", {WHOLE, "model.embed_tokens"}),
        (
            r"target_modules: model\.layers\.[01]\.self_attn\.o_proj",
            {f"model.layers.{i}.self_attn.o_proj" for i in (0, 1)},
        ),
        (f"target_modules: $^\ntarget_parameters: [{EXPERTS}]", {EXPERTS}),
        ("peft_type: LORA\ntarget_modules: [o_proj]", {f"model.layers.{i}.self_attn.o_proj" for i in range(3)}),
        (f"adapter: qlora\nlora_target_parameters: [{EXPERTS}]", {EXPERTS}),
        (rf"{TRL}lora_target_modules: ['{WHOLE}']", {WHOLE}),
        (f"--use_peft --lora_target_modules {WHOLE} lm_head --lora_dropout 0", {WHOLE, "lm_head"}),
        (f"finetuning_type: lora\nlora_target: {WHOLE}, lm_head", {WHOLE, "lm_head"}),
    ],
)
def test_what_is_right_has_no_problem(text: str, adapters: set[str], tmp_path: Path) -> None:
    found = check(tmp_path, text)
    assert found.problems == ()
    (trained,) = found.trained.values()
    assert trained == {name if name in MODEL.parameters else f"{name}.weight" for name in adapters}
    assert f"{len(adapters - MODEL.parameters.keys())} module" in found.notes[-1]


def test_all_linear_leaves_the_head_out(tmp_path: Path) -> None:
    (by_peft,) = check(tmp_path, "target_modules: all-linear").trained.values()
    assert by_peft == {name for name in NAMES if CLASSES.get(name.split(".", 4)[-1]) == "Linear" or "_proj.w" in name}
    (by_axolotl,) = check(tmp_path, "adapter: lora\nlora_target_linear: true").trained.values()
    assert by_axolotl == by_peft
    (by_factory,) = check(tmp_path, "lora_target: all").trained.values()
    assert by_factory == by_peft


def test_all_linear_is_pefts_word_in_axolotl_too_unless_axolotl_makes_a_list(tmp_path: Path) -> None:
    peft = check(tmp_path, "target_modules: all-linear")
    axolotl = check(tmp_path, "adapter: lora\nlora_target_modules: all-linear")
    assert axolotl.problems == ()
    assert list(axolotl.trained.values()) == list(peft.trained.values())
    for word in ("all-linear", ".*o_proj"):
        text = f"adapter: lora\nlora_target_linear: true\nlora_target_modules: {word}"
        problems = "\n".join(check(tmp_path, text).problems)
        assert f"{word} matches nothing" in problems


@pytest.mark.parametrize("text", ["target_modules: []", "adapter: lora\nlora_target_modules: []"])
def test_an_empty_list_is_a_problem(text: str, tmp_path: Path) -> None:
    assert check(tmp_path, text).problems == ("nothing that is listed gets an adapter",)


@pytest.mark.parametrize("key", ["target_modules", "lora_target", "lora_target_modules"])
def test_a_key_that_stands_twice_is_a_problem(key: str, tmp_path: Path) -> None:
    problems = check(tmp_path, f"{key}: [q_proj, o_proj]\n{key}: [lm_head, o_proj]").problems
    assert problems == (f"{key} stands in lines 1 and 2, and only the last counts; merge them",)


def test_an_entry_without_effect_is_silent_only_beside_others(tmp_path: Path) -> None:
    assert "which PEFT does not tell" in check(tmp_path, "target_modules: [k_proj, o_proj]").problems[0]
    assert "which PEFT does not tell" not in check(tmp_path, "target_modules: [k_proj]").problems[0]


@pytest.mark.parametrize(
    ("text", "ignored"),
    [
        ("lora_target: o_proj\nlora_target_modules: [q_proj]", "lora_target_modules"),
        ("lora_target: o_proj\ntarget_modules: [q_proj]", "target_modules"),
        ("adapter: lora\nlora_target_modules: [o_proj]\ntarget_modules: [q_proj]", "target_modules"),
        (f"{TRL}lora_target_modules: [o_proj, lm_head]\ntarget_parameters: [q_proj]", "target_parameters"),
    ],
)
def test_keys_of_another_reader_are_named(text: str, ignored: str, tmp_path: Path) -> None:
    found = check(tmp_path, text)
    assert found.problems == ()
    assert f"{ignored} is set, which is not applied here" in found.notes


def test_only_peft_counts_conv1d_among_linear_layers(tmp_path: Path) -> None:
    model = model_of(["a.weight", "b.weight"], head="a.weight", embedding="a.weight", classes={"b.weight": "Conv1D"})
    (by_peft,) = check(tmp_path, "target_modules: all-linear", model).trained.values()
    assert by_peft == {"b.weight"}
    for text in ("adapter: lora\nlora_target_linear: true", "lora_target: all"):
        (by_others,) = check(tmp_path, text, model).trained.values()
        assert by_others == frozenset()


def test_llamafactory_searches_names_in_models_with_towers_and_leaves_the_towers_out(tmp_path: Path) -> None:
    text = f"lora_target: {Q}"
    (trained,) = check(tmp_path, text, VISION).trained.values()
    assert trained == {f"{Q}.weight"}
    (trained,) = check(tmp_path, f"{text}\nfreeze_vision_tower: false", VISION).trained.values()
    assert trained == {f"{Q}.weight", f"model.vision_tower.{Q}.weight"}


def test_names_of_single_experts_stand_for_the_fused_ones_of_all_layers(tmp_path: Path) -> None:
    found = check(tmp_path, "target_modules: [o_proj, model.layers.0.mlp.experts.1.down_proj]", FORMER)
    assert found.problems == ()
    assert any("fused experts or routers of all layers" in note for note in found.notes)
    (trained,) = found.trained.values()
    assert {name for name in trained if "experts" in name} == {
        f"model.layers.{i}.mlp.experts.down_proj" for i in range(3)
    }
    half = check(tmp_path, "target_modules: [gate_proj]", FORMER)
    assert any("PEFT stops unless both are listed" in problem for problem in half.problems)


def test_a_regular_expression_loses_its_layers_where_names_are_fused(tmp_path: Path) -> None:
    text = r"target_modules: model\.layers\.1\.self_attn\.o_proj"
    assert check(tmp_path, text).problems == ()
    (problem,) = check(tmp_path, text, FORMER).problems
    assert "takes only the ends of the names" in problem
    assert "get an adapter too: model.layers.0.self_attn.o_proj, model.layers.2.self_attn.o_proj" in problem
