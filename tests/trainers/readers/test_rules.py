"""What each reader's own rule makes of lists by hand: those readers' code, or their loops as their source has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from spectrum.checkpoint.reader import of_model
from spectrum.errors import SelectionError
from spectrum.records import ModelInfo
from spectrum.trainers.readers import rules
from spectrum.trainers.readers.adapter_lists import AdapterList
from spectrum.trainers.readers.adapters import adapted as adapted_by_rule
from spectrum.trainers.readers.files import read_any, trained_by
from tests.helpers import readers
from tests.helpers.adapters import adapted, names_of, weights
from tests.helpers.architectures import ARCHITECTURES
from tests.helpers.axolotl import install
from tests.helpers.models import model_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model .*has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to (True|False):UserWarning"),
    pytest.mark.filterwarnings("ignore:target_.*=.* were set but no .* was matched:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning"),
]


def info_of(model: torch.nn.Module) -> ModelInfo:
    return of_model(model, "m").provenance.info


def said(directory: Path, config: object) -> Any:
    path = directory / "config.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return read_any(path)


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# Lists of what is frozen. Some entries match nothing, or more than they name, or a tied parameter.


class Holder(torch.nn.Module):
    """A program's own model, which holds another under a name."""

    def __init__(self, name: str, model: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)


def distillkit(model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """github.com/arcee-ai/DistillKit, distillkit/main.py."""
    for name, module in model.named_modules():
        if name in config.get("frozen_modules", []):
            module.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, name) for pattern in config.get("frozen_res", [])):
            parameter.requires_grad = False


def ludwig(model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """ludwig 0.11, ludwig/utils/trainer_utils.py; its LLM holds the model as `model`."""
    for name, parameter in Holder("model", model).named_parameters():
        if re.search(config["trainer"]["layers_to_freeze_regex"], name):
            parameter.requires_grad = False


def h2o(model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """github.com/h2oai/h2o-llmstudio; its model holds the other as `backbone`."""
    for name, parameter in Holder("backbone", model).named_parameters():
        if any(part in name for part in config["training"]["freeze_layers"]):
            parameter.requires_grad = False


def llm_foundry(model: torch.nn.Module, config: Mapping[str, Any]) -> None:
    """llm-foundry 0.22, llmfoundry/callbacks/resumption_callbacks.py; composer holds the model as `model`."""
    for name, parameter in Holder("model", model).named_parameters():
        if name in config["callbacks"]["layer_freezing"]["layer_names"]:
            parameter.requires_grad = False


FROZEN: Sequence[tuple[Callable[[torch.nn.Module, Mapping[str, Any]], None], Mapping[str, Any]]] = [
    (distillkit, {"frozen_modules": ["model.layers.0", "lm_head", "model.norm"]}),
    (distillkit, {"frozen_modules": ["transformer.h.1", "transformer.wte"], "frozen_res": ["ln_[12]", "^lm_head"]}),
    (distillkit, {"frozen_res": [r"layers\.[0-9]+\.mlp", "norm", "model.layers.1"]}),
    (ludwig, {"trainer": {"layers_to_freeze_regex": r"(layers\.0\.|^model\.lm_head|experts)"}}),
    (ludwig, {"trainer": {"layers_to_freeze_regex": "^transformer"}}),
    (h2o, {"training": {"lora": False, "freeze_layers": ["layers.1", "embed", "h.0"]}}),
    (h2o, {"training": {"lora": False, "freeze_layers": ["backbone.model.layers.0.mlp"]}}),
    (
        llm_foundry,
        {"callbacks": {"layer_freezing": {"layer_names": ["model.lm_head.weight", "model.model.norm.weight"]}}},
    ),
]


@pytest.mark.parametrize(("reader", "config"), FROZEN, ids=[f"{r.__name__}-{i}" for i, (r, _) in enumerate(FROZEN)])
@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "qwen3-moe", "gemma3"])
def test_what_is_frozen_is_what_its_reader_freezes(
    reader: Callable[[Any, Any], None], config: Mapping[str, Any], architecture: str, tmp_path: Path
) -> None:
    model = ARCHITECTURES[architecture]()
    info = info_of(model)
    reader(model, config)
    assert trained_by(said(tmp_path, config), info) == trainable(model)


# NeMo Automodel's own code.

NEMO: Sequence[Mapping[str, Any]] = [
    {"freeze_modules": [{"glob": "*"}], "unfreeze_modules": [{"glob": "*.mlp"}, {"path": "lm_head"}]},
    {"freeze_modules": [{"path": "model.layers.0"}, {"glob": "*norm*"}]},
    {"freeze_modules": [{"glob": "*layers.[01].*"}], "unfreeze_modules": [{"glob": "*.q_proj"}]},
    {"unfreeze_modules": [{"glob": "*proj"}], "freeze_modules": [{"glob": "model.*"}]},
    {"freeze_vision_tower": False, "freeze_language_model": True},
    {"freeze_modules": [{"glob": "*.up_proj"}], "freeze_language_model": True},
    {},
]
NEMO_ARCHITECTURES = ["llama", "llama-tied", "gemma3", "llava"]


@pytest.mark.slow
def test_freeze_config_is_read_as_nemo_automodel_reads_it(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    wheels = install(["nemo-automodel==0.7.0"], tmp_path_factory.mktemp("nemo"))
    lenient = [
        (architecture, config)
        for architecture in NEMO_ARCHITECTURES
        for config in NEMO
        if matches_all(ARCHITECTURES[architecture](), config)
    ]
    assert len(lenient) > 18
    tasks = [("nemo_automodel", architecture, {"freeze_config": config}) for architecture, config in lenient]
    results = readers.results_of(wheels, tasks, tmp_path)
    for (_, architecture, config), trains in zip(tasks, results, strict=True):
        info = info_of(ARCHITECTURES[architecture]())
        config = config if config["freeze_config"] else {"freeze_config": {"freeze_audio_tower": False}}
        assert trained_by(said(tmp_path, config), info) == trains, (architecture, config)


def matches_all(model: torch.nn.Module, config: Mapping[str, Any]) -> bool:
    """Whether each entry matches a module: NeMo Automodel stops at others."""
    from fnmatch import fnmatchcase

    paths = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    entries = [entry for key in ("freeze_modules", "unfreeze_modules") for entry in config.get(key, [])]
    return all(any(fnmatchcase(path, next(iter(entry.values()))) for path in paths) for entry in entries)


# PEFT's own code.

PEFT: Sequence[Mapping[str, Any]] = [
    {"target_modules": ["q_proj", "model.layers.1.mlp.up_proj"]},
    {"target_modules": r".*layers\.0.*(q|v)_proj"},
    {"target_modules": "all-linear"},
    {"target_modules": ["c_attn", "lm_head", "wte"]},
    {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
    {"target_modules": ["v_proj", "w1", "w3"]},
    {"target_modules": [], "target_parameters": ["mlp.experts.down_proj", "q_proj.weight"]},
    {"target_modules": ["self_attn.o_proj"], "target_parameters": ["experts.gate_up_proj"]},
    {"target_modules": ["model.norm", "mlp"]},
    {"target_modules": ["gate_proj"]},
    {"target_modules": ["out_proj", "in_proj"]},
]


@pytest.mark.parametrize("config", PEFT, ids=range(len(PEFT)))
@pytest.mark.parametrize(
    "architecture",
    ["llama-tied", "gpt2", "mixtral", "qwen2-moe", "qwen3-moe", "mamba"],
)
def test_adapters_are_where_peft_puts_them(config: Mapping[str, Any], architecture: str, tmp_path: Path) -> None:
    model: Any = ARCHITECTURES[architecture]()
    info, names = info_of(model), names_of(model)
    found = said(tmp_path, config)
    assert isinstance(found, AdapterList)
    by_rule = adapted_by_rule(found, info)
    stops = bool(by_rule.unfit or by_rule.halves) or not by_rule.names
    if stops:
        with pytest.raises(ValueError, match=r"not found|not supported|fused|incompatible|parameters` found"):
            get_peft_model(model, LoraConfig(r=2, **config))
    else:
        expected = weights(adapted(get_peft_model(model, LoraConfig(r=2, **config)), names))
        assert by_rule.names == {info.owner(name) for name in expected}
        assert trained_by(found, info) == by_rule.names


def test_a_tied_parameter_is_adapted_under_each_of_its_names(tmp_path: Path) -> None:
    config: Mapping[str, Any] = {"target_modules": [], "target_parameters": ["lm_head.weight"]}
    model: Any = ARCHITECTURES["llama-tied"]()
    info, names = info_of(model), names_of(model)
    expected = {info.owner(name) for name in weights(adapted(get_peft_model(model, LoraConfig(r=2, **config)), names))}
    assert trained_by(said(tmp_path, config), info) == expected == {"model.embed_tokens.weight"}


# LLaMA-Factory's own code.

UNFROZEN = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
LLAMA_FACTORY: Sequence[Mapping[str, Any]] = [
    {"lora_target": "all"},
    {"lora_target": "all", "freeze_vision_tower": False},
    {"lora_target": "q_proj,visual.merger.mlp.0,linear_1"},
    {"lora_target": "q_proj,visual.merger.mlp.0,linear_1", "freeze_multi_modal_projector": False},
    {"lora_target": "q_proj,visual.merger.mlp.0,linear_1", "freeze_vision_tower": False},
    {"lora_target": "up_proj,attn.qkv,fc1,patch_embed.proj", **UNFROZEN},
]


@pytest.mark.slow
def test_lora_target_is_read_as_llamafactory_reads_it(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    wheels = install(readers.IMPORTED, tmp_path_factory.mktemp("llamafactory"))
    cases = [
        (architecture, {"finetuning_type": "lora", **config})
        for architecture in ("llama", "llava", "mistral3", "llama4", "qwen2.5-vl")
        for config in LLAMA_FACTORY
        # It tells linear layers by the names of their classes, and so leaves out Llama 4's routers.
        if (architecture, config["lora_target"]) != ("llama4", "all")
    ]
    infos = {architecture: info_of(ARCHITECTURES[architecture]()) for architecture, _ in cases}
    found = {place: said(tmp_path, config) for place, (_, config) in enumerate(cases)}
    fit = [place for place, (name, _) in enumerate(cases) if not adapted_by_rule(found[place], infos[name]).unfit]
    assert len(fit) > 15
    results = readers.results_of(wheels, [("llamafactory", *cases[place]) for place in fit], tmp_path)
    for place, trains in zip(fit, results, strict=True):
        info = infos[cases[place][0]]
        assert trained_by(found[place], info) == {info.owner(name) for name in trains}, cases[place]


# The rules one by one.


@pytest.mark.parametrize(
    ("rule", "entry", "selected"),
    [
        (rules.PREFIX, "a.Vision", {"a.Vision.q"}),
        (rules.PREFIX, "Vision", set()),
        (rules.SUBSTRING, "Vision", {"a.Vision.q"}),
        (rules.SEARCH, r"^a\.q$", {"a.q"}),
        (rules.SEARCH, "a.q", {"a.q", "axq"}),
        (rules.IN_MODULE, "vision", {"a.Vision.q"}),
        (rules.GLOB, "*vision", set()),
    ],
)
def test_a_rule_selects_no_more_than_its_reader_does(rule: str, entry: str, selected: set[str]) -> None:
    names = ["a.Vision.q", "a.q", "axq"]
    model = model_of(names, head=names[0], embedding=names[0])
    assert rules.matched(rule, [entry], rules.Names.of(model)) == {entry: frozenset(selected)}


def test_pefts_pattern_is_for_whole_paths(tmp_path: Path) -> None:
    names = ["a.q.weight", "a.q_norm.weight"]
    model = model_of(names, head=names[0], embedding=names[0], classes={"weight": "Linear"})
    assert trained_by(said(tmp_path, {"target_modules": ".*q"}), model) == {"a.q.weight"}


# Names and arguments.


def test_names_train_as_they_are_and_arguments_as_ms_swift_reads_them(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"]()
    info = info_of(model)
    names = [name for name, _ in model.named_parameters()]
    assert trained_by(said(tmp_path, f"{names[3]}\n\n{names[5]}\n"), info) == {names[3], names[5]}
    swift = "--freeze_parameters_ratio 1\n--trainable_parameters model.layers.1\n--trainable-parameters-regex q_proj\n"
    expected = {name for name in names if name.startswith("model.layers.1") or "q_proj" in name}
    assert trained_by(said(tmp_path, swift), info) == expected


def test_lists_that_differ_have_no_set_of_what_trains(tmp_path: Path) -> None:
    config = {"frozen_res": ["layers.0"], "training": {"lora": False, "freeze_layers": ["layers.1"]}}
    with pytest.raises(SelectionError, match="DistillKit's frozen_res and H2O LLM Studio's freeze_layers differ"):
        trained_by(said(tmp_path, config), info_of(ARCHITECTURES["llama"]()))
