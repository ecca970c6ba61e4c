"""Adapters as each trainer spells them. What PEFT makes of those is in test_peft and test_readers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from torch import nn

from spectrum.errors import SelectionError
from spectrum.records import Parameter, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers.formats.export import Export
from spectrum.trainers.formats.lora import axolotl_lora, llamafactory, peft, trl_lora
from tests.helpers.adapters import adapted, names_of
from tests.helpers.architectures import built
from tests.helpers.records import scan_of

LINEAR = Parameter((4, 4), "bfloat16", module="Linear")
STACK = Parameter((2, 4, 4), "bfloat16")


def everything(result: ScanResult) -> Selection:
    return top_percent(result, "100")


def test_axolotl_takes_no_dropout_where_parameters_are_adapted() -> None:
    modules = axolotl_lora(everything(scan_of({"x.q.weight": LINEAR}, "x.q"))).text
    assert modules == "adapter: lora\nlora_target_modules:\n- x.q\n"
    both = scan_of({"x.q.weight": LINEAR, "x.experts.down": STACK}, "x.q", "x.experts.down")
    assert axolotl_lora(everything(both)).text == (
        f"{modules}lora_target_parameters:\n- x.experts.down\nlora_dropout: 0\n"
    )


def test_a_name_that_ends_anothers_is_a_pattern() -> None:
    result = scan_of({"x.q.weight": LINEAR, "tower.x.q.weight": LINEAR}, "x.q")
    assert yaml.safe_load(axolotl_lora(everything(result)).text)["lora_target_modules"] == r"x\.q"
    assert "--lora_target_modules x\\.q\n" in trl_lora(everything(result)).text
    with pytest.raises(SelectionError, match=r"cannot adapt x\.q without tower\.x\.q"):
        llamafactory(everything(result))
    # It may be the path of a module that holds others.
    holder = scan_of({"x.weight": LINEAR, "tower.x.inner.weight": LINEAR}, "x")
    assert yaml.safe_load(axolotl_lora(everything(holder)).text)["lora_target_modules"] == "x"


def test_trl_is_given_words_for_a_shell() -> None:
    result = scan_of(
        {"x.q.weight": LINEAR, "x.v.weight": LINEAR, "x.experts.down": STACK}, "x.q", "x.v", "x.experts.down"
    )
    assert trl_lora(everything(result)).text == (
        "--use_peft\n--lora_target_modules x.q x.v\n--lora_target_parameters x.experts.down\n--lora_dropout 0\n"
    )


def test_trl_is_given_one_module_twice() -> None:
    # It makes a pattern of one name, in which a dot is any letter.
    one = trl_lora(everything(scan_of({"x.q.weight": LINEAR, "x.v.weight": LINEAR}, "x.q"))).text
    assert one == "--use_peft\n--lora_target_modules x.q x.q\n"


@pytest.mark.parametrize("render", [peft, axolotl_lora, trl_lora])
def test_no_pattern_is_written_where_experts_are_fused(render: Callable[[Selection], Export]) -> None:
    parameters = {"x.q.weight": LINEAR, "tower.x.q.weight": LINEAR, "x.experts.down": STACK}
    with pytest.raises(SelectionError, match=r"cannot adapt x\.q without tower\.x\.q.* in a model with fused experts"):
        render(everything(scan_of(parameters, "x.q")))
    render(everything(scan_of(parameters, "x.q", "tower.x.q")))


def trl_config(text: str) -> LoraConfig:
    """What TRL makes of its arguments."""
    from trl.scripts.utils import TrlParser
    from trl.trainer.model_config import ModelConfig
    from trl.trainer.utils import get_peft_config

    kinds: Any = [ModelConfig]
    (arguments,) = TrlParser(kinds).parse_args_and_config(text.split())
    config = get_peft_config(arguments)
    assert isinstance(config, LoraConfig)
    return config


def with_trl(text: str) -> Any:
    """The modules and the parameters of a small model that get adapters."""
    config = trl_config(text)
    model = built("llama")
    model.model.layers[0].experts = nn.Module()
    model.model.layers[0].experts.down = nn.Parameter(model.lm_head.weight.detach().expand(2, -1, -1).clone())
    names = names_of(model)
    return adapted(get_peft_model(model, config), names)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:target_modules=.* were set but no module was matched:RuntimeWarning")
def test_trl_adapts_experts_alone() -> None:
    name = "model.layers.0.experts.down"
    text = trl_lora(everything(scan_of({name: STACK, "lm_head.weight": LINEAR}, name))).text
    assert shlex.split(text)[2] == "$^"
    assert with_trl(text) == (set(), {name})
    # Without the pattern that matches nothing, PEFT adapts what it usually does.
    modules, _ = with_trl(text.replace("--lora_target_modules $^", ""))
    assert "model.layers.0.self_attn.q_proj" in modules


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3-moe"])
def test_trl_adapts_one_module_of_a_mixture(architecture: str) -> None:
    # In these models, PEFT would adapt all modules whose names end as that which a pattern matches.
    model = built(architecture)
    name = "model.layers.1.self_attn.q_proj"
    text = trl_lora(everything(scan_of({f"{name}.weight": LINEAR}, name))).text
    names = names_of(model)
    assert adapted(get_peft_model(model, trl_config(text)), names) == ({name}, set())


def test_a_convolution_with_the_name_of_experts_gets_no_adapter_beside_fused_experts() -> None:
    # PEFT would take the name for the experts', and adapts no parameter of four dimensions.
    convolution = Parameter((4, 3, 2, 2), "bfloat16", module="Conv2d")
    result = scan_of({"x.experts.down": STACK, "x.gate.weight": convolution}, "x.experts.down", "x.gate")
    rendered = peft(everything(result))
    assert yaml.safe_load(rendered.text) == {"target_modules": [], "target_parameters": ["x.experts.down"]}
    assert any("x.gate" in note for note in rendered.notes)
    alone = scan_of({"x.gate.weight": convolution}, "x.gate")
    assert yaml.safe_load(peft(everything(alone)).text) == {"target_modules": ["x.gate"]}


def test_the_matrices_of_torchs_attention_get_no_adapter() -> None:
    inside = {"x.in_proj_weight": Parameter((12, 4), "bfloat16"), "x.q_proj_weight": Parameter((4, 4), "bfloat16")}
    result = scan_of({**inside, "y.weight": LINEAR}, *inside, "y")
    assert yaml.safe_load(peft(everything(result)).text) == {"target_modules": ["y"]}


def test_llamafactory_is_given_names_with_commas() -> None:
    result = scan_of({"x.q.weight": LINEAR, "x.v.weight": LINEAR}, "x.q", "x.v")
    assert llamafactory(everything(result)).text == "finetuning_type: lora\nlora_target: x.q,x.v\n"


def test_llamafactory_takes_no_parameters() -> None:
    result = scan_of({"x.q.weight": LINEAR, "x.experts.down": STACK}, "x.q", "x.experts.down")
    with pytest.raises(SelectionError, match=r"are parameters to PEFT: x\.experts\.down; choose"):
        llamafactory(everything(result))


def of_towers(*layers: str) -> Selection:
    """Layers of a model that sees: a language model, and a tower beside it."""
    names = ("text.embed", "text.q", "text.q_global", "visual.patch_embed.proj", "visual.q", "head")
    parameters = {f"{name}.weight": LINEAR for name in names}
    return everything(scan_of(parameters, *layers, embedding="text.embed.weight", head="head.weight"))


def test_llamafactory_keeps_towers_frozen_unless_they_are_adapted() -> None:
    towers = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
    target = {"finetuning_type": "lora", "lora_target": "visual.q,head"}
    assert yaml.safe_load(llamafactory(of_towers("visual.q", "head")).text) == towers | target
    text = llamafactory(of_towers("text.q_global", "head")).text
    assert yaml.safe_load(text) == {"finetuning_type": "lora", "lora_target": "text.q_global,head"}


def test_llamafactory_finds_names_inside_others_where_there_are_towers() -> None:
    with pytest.raises(SelectionError, match=r"cannot adapt text\.q without text\.q_global, in which that name occurs"):
        llamafactory(of_towers("text.q"))
    both = llamafactory(of_towers("text.q", "text.q_global")).text
    assert yaml.safe_load(both)["lora_target"] == "text.q,text.q_global"
    alone = scan_of({"text.q.weight": LINEAR, "text.q_global.weight": LINEAR}, "text.q")
    assert yaml.safe_load(llamafactory(everything(alone)).text)["lora_target"] == "text.q"


def test_what_llamafactory_adapts_in_some_models_only_is_left_out_and_named() -> None:
    rendered = llamafactory(of_towers("visual.patch_embed.proj", "visual.q"))
    assert yaml.safe_load(rendered.text)["lora_target"] == "visual.q"
    assert any(note.endswith("left out: visual.patch_embed.proj") for note in rendered.notes)
    with pytest.raises(SelectionError, match="no selected layer takes an adapter of LLaMA-Factory"):
        llamafactory(of_towers("visual.patch_embed.proj"))


LETTERS = "qwertyuiop"  # in no order that sets might have


def test_a_refusal_names_the_first_clash_in_the_model() -> None:
    ends = {f"{tower}{letter}.weight": LINEAR for tower in ("", "b.", "a.") for letter in LETTERS}
    with pytest.raises(SelectionError, match=r"cannot adapt q without b\.q, in which"):
        llamafactory(everything(scan_of(ends, *LETTERS)))
    stacks = {f"{tower}{letter}": STACK for tower in ("", "b.", "a.") for letter in LETTERS}
    with pytest.raises(SelectionError, match=r"cannot adapt q without b\.q, which ends"):
        peft(everything(scan_of({**stacks, "x.q.weight": LINEAR}, *LETTERS)))
    inside = {f"text.{letter}{more}.weight": LINEAR for more in ("", "_b", "_a") for letter in LETTERS}
    result = scan_of(
        {"text.emb.weight": LINEAR, "visual.q.weight": LINEAR, **inside},
        *(f"text.{letter}" for letter in LETTERS),
        embedding="text.emb.weight",
    )
    with pytest.raises(SelectionError, match=r"cannot adapt text\.q without text\.q_b, in which"):
        llamafactory(everything(result))
