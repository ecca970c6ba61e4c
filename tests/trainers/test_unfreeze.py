"""A selection applied to a model in memory: what is selected trains, and nothing else, however the model is wrapped."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils.peft_utils import check_peft_version

import spectrum
from spectrum.errors import SelectionError
from spectrum.records import ScanResult
from spectrum.selection.selection import Selection
from tests.helpers.architectures import built, llama_like
from tests.helpers.wrappers import FILTERS, checkpointed, compiled, layers_compiled, with_fsdp, with_fsdp2

pytestmark = FILTERS

EMBEDDINGS = {"lm_head.weight", "model.embed_tokens.weight"}

# Layers of two that are given the higher score: by hand, half of each type are these, and else the first in the model.
BEST = ["model.layers.1.input_layernorm", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"]
HALF = {
    "model.layers.1.input_layernorm.weight",
    "model.layers.1.mlp.down_proj.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
}


def llama(**changes: object) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(llama_like(transformers.LlamaConfig, **changes))


def scored(model: nn.Module, best: Collection[str] = BEST) -> ScanResult:
    """The model's scan, with scores that make plain what is selected: 2 for the best, 1 for all the others."""
    result = spectrum.scan(model, show_progress=False)
    assert set(best) <= {layer.name for layer in result.layers}
    layers = (replace(layer, snr=2.0 if layer.name in best else 1.0) for layer in result.layers)
    return replace(result, layers=tuple(layers))


def half(model: nn.Module, *, embeddings: bool = True) -> Selection:
    return spectrum.select(scored(model), 50, embeddings=embeddings)


def trainable(model: nn.Module) -> set[str]:
    return {name for name, value in model.named_parameters() if value.requires_grad}


def written(directory: Path, *entries: str) -> Path:
    path = directory / "list.yaml"
    path.write_text("\n".join(["unfrozen_parameters:", *(f"- {entry}" for entry in entries)]) + "\n")
    return path


@pytest.mark.parametrize("embeddings", [True, False])
def test_what_is_selected_trains_and_nothing_else(embeddings: bool) -> None:
    model = llama()
    spectrum.unfreeze(model, half(model, embeddings=embeddings))
    assert trainable(model) == (HALF | EMBEDDINGS if embeddings else HALF)


def test_what_trains_is_said_and_counted() -> None:
    model = llama()
    unfrozen = spectrum.unfreeze(model, half(model, embeddings=False))
    # Two norms of 32; q and o of 32 x 32; k and v of 16 x 32; three matrices of 32 x 48.
    elements = 2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    total = 2 * (2 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48) + 32 + 2 * 64 * 32
    assert (set(unfrozen.names), unfrozen.trained, unfrozen.total) == (HALF, elements, total)
    assert list(unfrozen.names) == [name for name, _ in model.named_parameters() if name in HALF]
    share = f"{100 * elements / total:.3g}"
    assert repr(unfrozen) == f"{elements:,} of {total:,} parameters train, {share} percent, in 9 tensors"


def test_only_what_is_selected_has_a_gradient_and_moves() -> None:
    model = llama()
    spectrum.unfreeze(model, half(model, embeddings=False))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW((value for value in model.parameters() if value.requires_grad), lr=1e-2)
    tokens = torch.arange(16)[None]
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == HALF
    assert {name for name, value in model.named_parameters() if not torch.equal(value, before[name])} == HALF


def test_values_and_dtypes_stay() -> None:
    model = llama().bfloat16()
    model.model.norm.float()  # as those who mix them do
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    spectrum.unfreeze(model, half(model))
    assert [value.dtype for value in model.parameters()] == [value.dtype for value in before.values()]
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_the_second_of_two_selections_alone_holds() -> None:
    model = llama()
    result = scored(model)
    spectrum.unfreeze(model, spectrum.select(result, 100))
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    spectrum.unfreeze(model, spectrum.select(result, 50, embeddings=False))
    assert trainable(model) == HALF
    other = scored(model, ["model.layers.1.self_attn.k_proj"])
    spectrum.unfreeze(model, spectrum.select(other, 50, embeddings=False))
    assert "model.layers.1.self_attn.k_proj.weight" in trainable(model)
    assert not trainable(model) & {f"{name}.weight" for name in BEST}


def test_a_selection_from_a_scan_of_the_reference_has_no_provenance_and_works() -> None:
    model = llama()
    spectrum.unfreeze(model, spectrum.select(replace(scored(model), provenance=None), 50))
    assert trainable(model) == HALF | EMBEDDINGS


def test_biases_train_with_their_weights() -> None:
    model = built("gpt2").float()
    spectrum.unfreeze(model, spectrum.select(scored(model, ["transformer.h.1.mlp.c_fc"]), 50, embeddings=False))
    of_first = [f"transformer.h.0.{part}" for part in ("ln_1", "ln_2", "attn.c_attn", "attn.c_proj", "mlp.c_proj")]
    modules = [*of_first, "transformer.h.1.mlp.c_fc"]
    assert trainable(model) == {f"{module}.{own}" for module in modules for own in ("weight", "bias")}


def test_fused_experts_train_with_the_bias_beside_them() -> None:
    model = built("gpt-oss").float()
    best = "model.layers.1.mlp.experts.gate_up_proj"
    spectrum.unfreeze(model, spectrum.select(scored(model, [best]), 50, embeddings=False))
    assert {name for name in trainable(model) if "experts" in name} == {
        best,
        f"{best}_bias",
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.down_proj_bias",
    }


# Lists on disk.


@pytest.mark.parametrize("kind", [Path, str])
def test_the_list_that_a_selection_writes_does_what_the_selection_does(
    tmp_path: Path, kind: Callable[[Path], Path | str]
) -> None:
    model = llama()
    path = half(model).to_yaml(tmp_path / "list.yaml")
    spectrum.unfreeze(model, kind(path))
    assert trainable(model) == HALF | EMBEDDINGS


def test_entries_are_patterns_as_axolotl_takes_them(tmp_path: Path) -> None:
    model = llama()
    # A dot is a dot, but before a plus; an entry holds from the start of a name, not to its end.
    spectrum.unfreeze(model, written(tmp_path, "model.layers.[01].mlp.up_proj", "model.+k_proj"))
    assert trainable(model) == {
        f"model.layers.{i}.{module}.weight" for i in (0, 1) for module in ("mlp.up_proj", "self_attn.k_proj")
    }


def test_a_dot_in_an_entry_is_a_dot(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(4, 4)}), "axb": nn.Linear(4, 4)})
    spectrum.unfreeze(model, written(tmp_path, "a.b"))
    assert trainable(model) == {"a.b.weight", "a.b.bias"}


def test_a_file_with_two_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(2 * "unfrozen_parameters:\n- model.norm\n")
    assert_refused(llama(), path, str(path), "stands in lines 1 and 3", "merge the lists")


def test_a_whole_config_of_axolotls_is_read_for_its_list(tmp_path: Path) -> None:
    path = written(tmp_path, "model.layers.1.mlp")
    path.write_text("base_model: org/model\nlearning_rate: 2e-5\n" + path.read_text() + "datasets:\n- path: data\n")
    model = llama()
    spectrum.unfreeze(model, path)
    assert trainable(model) == {f"model.layers.1.mlp.{part}_proj.weight" for part in ("down", "gate", "up")}


# What cannot be: an error, and the model is as it was.


def some_trainable(model: Any) -> dict[str, bool]:
    """A setting that no call would make: every third parameter."""
    for i, value in enumerate(model.parameters()):
        if value.is_floating_point():
            value.requires_grad_(i % 3 == 0)
    return {name: value.requires_grad for name, value in model.named_parameters()}


def assert_refused(model: Any, selection: Selection | Path, *words: str) -> None:
    before = some_trainable(model)
    with pytest.raises(SelectionError) as refused:
        spectrum.unfreeze(model, selection)
    assert {name: value.requires_grad for name, value in model.named_parameters()} == before
    for word in words:
        assert word in str(refused.value), f"{word!r} is not in {refused.value}"
    assert "\n" not in str(refused.value)


def test_a_model_of_another_class_is_refused() -> None:
    model = llama()
    assert_refused(model.model, half(model), "LlamaModel", "model.layers.1.mlp.down_proj", "a LlamaForCausalLM")


def test_a_model_with_fewer_layers_is_refused() -> None:
    model = llama()
    assert_refused(llama(num_hidden_layers=1), half(model), "model.layers.1.input_layernorm")


def test_a_model_without_a_head_of_its_own_is_refused_where_the_head_trains() -> None:
    model = llama()
    headless = llama()
    headless.lm_head = nn.Identity()
    assert_refused(headless, half(model), "lm_head.weight")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["model.layers.0.mlp", "layers.1.mlp"], ["'layers.1.mlp' matches no parameter", "LlamaForCausalLM"]),
        (["model.layers.0.mlp.up_proj.weight[0:2]"], ["[0:2]", "rows"]),
        (["model.layers.0.mlp", "model.embed_tokens.weight[:8]"], ["[:8]", "rows"]),
        (["model.layers.(0"], ["'model.layers.(0'", "regular expression"]),
    ],
)
def test_a_list_with_an_entry_that_cannot_be_applied_is_refused(
    tmp_path: Path, entries: list[str], words: list[str]
) -> None:
    path = written(tmp_path, *entries)
    assert_refused(llama(), path, str(path), *words)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("unfrozen_parameters: []\n", "empty"),
        ("unfrozen_parameters:\n", "is empty"),
        ("- model.layers.0.mlp\n", "no unfrozen_parameters"),
        ("unfrozen_parameters: [\n", "YAML"),
    ],
)
def test_a_file_without_a_list_is_refused(tmp_path: Path, content: str, word: str) -> None:
    path = tmp_path / "list.yaml"
    path.write_text(content)
    assert_refused(llama(), path, str(path), word)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert_refused(llama(), tmp_path / "nothing.yaml", "nothing.yaml", "No such file")


def test_a_selection_of_nothing_is_refused() -> None:
    model = llama()
    with pytest.warns(UserWarning, match="less than one layer"):
        selection = spectrum.select(scored(model), 1, embeddings=False)
    assert_refused(model, selection, "nothing to train")


def with_integers(model: Any) -> Any:
    """As packed weights of a quantized model are."""
    packed = torch.zeros(48, 32, dtype=torch.uint8)
    model.model.layers[0].mlp.gate_proj.weight = nn.Parameter(packed, requires_grad=False)
    return model


def test_a_quantized_parameter_cannot_train() -> None:
    selection = half(llama())
    assert_refused(with_integers(llama()), selection, "model.layers.0.mlp.gate_proj.weight", "uint8", "adapters")


def test_a_quantized_parameter_that_is_not_selected_is_no_matter() -> None:
    selection = spectrum.select(scored(llama(), ["model.layers.1.mlp.gate_proj"]), 50, embeddings=False)
    model = with_integers(llama())
    spectrum.unfreeze(model, selection)
    assert "model.layers.1.mlp.gate_proj.weight" in trainable(model)
    assert not any("layers.0.mlp.gate_proj" in name for name in trainable(model))


# Tied weights are one parameter.


@pytest.mark.parametrize("entry", ["^lm_head.weight$", "^model.embed_tokens.weight$"])
def test_a_tied_parameter_trains_by_any_of_its_names(tmp_path: Path, entry: str) -> None:
    model = llama(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    unfrozen = spectrum.unfreeze(model, written(tmp_path, entry))
    assert trainable(model) == set(unfrozen.names) == {"model.embed_tokens.weight"}
    assert unfrozen.trained == 64 * 32


@pytest.mark.parametrize("alone", ["head", "embedding"])
def test_a_tied_parameter_is_not_frozen_by_the_name_that_is_not_selected(alone: str) -> None:
    model = llama(tie_word_embeddings=True)
    result = scored(model)
    provenance = result.provenance
    assert provenance is not None
    other = {"head": "embedding", "embedding": "head"}[alone]
    changed: dict[str, Any] = {other: None}
    one_name = replace(result, provenance=replace(provenance, info=replace(provenance.info, **changed)))
    spectrum.unfreeze(model, spectrum.select(one_name, 50))
    assert trainable(model) == {*HALF, "model.embed_tokens.weight"}


def test_a_tied_parameter_is_frozen_with_the_embeddings() -> None:
    model = llama(tie_word_embeddings=True)
    spectrum.unfreeze(model, spectrum.select(scored(model), 100, embeddings=False))
    assert trainable(model) == {name for name, _ in model.named_parameters()} - {"model.embed_tokens.weight"}


# Wrappers.


class Engine(nn.Module):
    """Holds a model as DeepSpeed's engine does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


WRAPPERS: Mapping[str, Callable[[Any], nn.Module]] = {
    "engine": Engine,
    "compiled": compiled,
    "layers-compiled": layers_compiled,
    "checkpointed": checkpointed,
    "fsdp": with_fsdp,
    "fsdp2": with_fsdp2,
    "fsdp-of-checkpointed": lambda model: with_fsdp(checkpointed(model)),
    "checkpointed-fsdp": lambda model: checkpointed(with_fsdp(model)),
}

# What wrappers put into names, each as it is called in the library that does so.
MARKS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")


def plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in MARKS)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("by", ["selection", "list"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_are_understood_through_wrappers(tmp_path: Path, wrapper: str, by: str) -> None:
    model = llama()
    selection = half(model)
    wrapped = WRAPPERS[wrapper](model)
    assert {name for name, _ in wrapped.named_parameters()} != HALF or wrapper == "fsdp2"
    unfrozen = spectrum.unfreeze(wrapped, selection if by == "selection" else selection.to_yaml(tmp_path / "list.yaml"))
    assert {plain(name) for name in trainable(wrapped)} == HALF | EMBEDDINGS
    assert set(unfrozen.names) == trainable(wrapped)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("outermost", [lambda model: model, compiled], ids=["ddp", "compiled-ddp"])
def test_ddp_can_be_asked_but_not_changed(outermost: Callable[[nn.Module], nn.Module]) -> None:
    # It makes its buckets of gradients when it is made: others would be waited for, or not be shared.
    model = llama()
    selection = half(model)
    spectrum.unfreeze(model, selection)
    wrapped = outermost(DistributedDataParallel(model))
    assert {plain(name) for name in spectrum.unfreeze(wrapped, selection).names} == HALF | EMBEDDINGS
    assert_refused(wrapped, spectrum.select(selection.result, 100), "DistributedDataParallel", "before it is wrapped")


@pytest.mark.usefixtures("group")
def test_a_model_whose_parameters_are_flat_already_is_refused() -> None:
    model = llama()
    selection = half(model)
    assert_refused(with_fsdp(model, original=False), selection, "sharded")


class Holder(nn.Module):
    """No wrapper: its only part is called as those of wrappers are."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)})


class HolderBeside(Holder):
    """One part among others is called as those of wrappers are."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 4)


@pytest.mark.parametrize("kind", [Holder, HolderBeside])
def test_a_models_own_module_may_be_called_module(kind: Callable[[], nn.Module]) -> None:
    model = kind()
    result = spectrum.scan(model, show_progress=False)
    first = {"module.first.weight", "module.first.bias"}
    result = replace(result, layers=tuple(layer for layer in result.layers if layer.name == "module.first"))
    spectrum.unfreeze(model, spectrum.select(result, 100))
    assert trainable(model) == first


# Adapters.


def with_adapters(model: Any, **settings: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, **settings))


ADAPTERS: Mapping[str, dict[str, Any]] = {
    "some": {"target_modules": ["q_proj", "down_proj"]},
    "all": {"target_modules": "all-linear"},
    "embedding": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
}


@pytest.mark.parametrize("settings", ADAPTERS)
@pytest.mark.parametrize("around", ["nothing", "engine", "checkpointed", "compiled"])
@pytest.mark.usefixtures("group")
def test_a_model_with_adapters_keeps_them_as_they_are(settings: str, around: str) -> None:
    model = llama()
    selection = half(model)
    values = dict(model.named_parameters())
    model = with_adapters(model, **ADAPTERS[settings])
    own = {id(value) for value in values.values()}
    adapters = [value for value in model.parameters() if id(value) not in own]
    for i, value in enumerate(adapters):  # as of one that is loaded for use, beside one that is to train
        value.requires_grad_(i % 2 == 0)
    wrapped = model if around == "nothing" else WRAPPERS[around](model)
    spectrum.unfreeze(wrapped, selection)
    assert {name for name, value in values.items() if value.requires_grad} == HALF | EMBEDDINGS
    assert [value.requires_grad for value in adapters] == [i % 2 == 0 for i in range(len(adapters))]


@pytest.mark.parametrize(("embeddings", "before"), [(True, False), (False, True), (False, False)])
def test_of_a_module_that_is_saved_whole_the_copy_trains_and_is_never_frozen(embeddings: bool, before: bool) -> None:
    model = llama()
    selection = half(model, embeddings=embeddings)
    model = with_adapters(model, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    copies = {name for name in trainable(model) if "modules_to_save" in name}
    lora = trainable(model) - copies
    assert len(copies) == 2
    for name, value in model.named_parameters():
        if name in copies:
            value.requires_grad_(before)
    spectrum.unfreeze(model, selection)
    # The originals of the copies, which are not used, are not in it.
    left = trainable(model) - lora - copies
    assert {name.replace(".base_layer", "").removeprefix("base_model.model.") for name in left} == HALF
    assert trainable(model) & copies == (copies if embeddings or before else set())


def test_fused_experts_are_found_under_the_adapters_put_on_them() -> None:
    model = built("qwen3-moe").float()
    best = ["model.layers.1.mlp.experts.down_proj", "model.layers.1.mlp.gate"]
    selection = spectrum.select(scored(model, best), 50, embeddings=False)
    values = dict(model.named_parameters())
    experts = [f"model.layers.{i}.mlp.experts.{own}" for i in (0, 1) for own in ("gate_up_proj", "down_proj")]
    wrapped = with_adapters(
        model, target_modules=["q_proj"], target_parameters=[*experts, "model.layers.1.mlp.gate.weight"]
    )
    assert any(".base_layer.base_layer." in name for name, _ in wrapped.named_parameters())
    adapters = trainable(wrapped)
    spectrum.unfreeze(wrapped, selection)
    found = {name for name, value in values.items() if value.requires_grad and ".mlp." in name}
    assert found == {
        "model.layers.1.mlp.experts.down_proj",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.1.mlp.gate.weight",
    }
    assert adapters <= trainable(wrapped)


def test_an_embedding_that_has_single_tokens_trained_by_an_adapter_is_found() -> None:
    model = llama()
    selection = half(model)
    values = dict(model.named_parameters())
    wrapped = with_adapters(model, target_modules=["q_proj"], trainable_token_indices=[1, 2])
    adapters = trainable(wrapped)
    spectrum.unfreeze(wrapped, selection)
    assert {name for name, value in values.items() if value.requires_grad} == HALF | EMBEDDINGS
    assert adapters <= trainable(wrapped)


@pytest.fixture
def adapters_of_transformers() -> None:
    """It refuses to put on adapters where peft is older than it wants, which may be one that is yet to come."""
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError:
        pytest.skip(
            f"transformers {version('transformers')} wants peft {MIN_PEFT_VERSION} for this, here is {version('peft')}"
        )


@pytest.mark.usefixtures("adapters_of_transformers")
def test_adapters_that_transformers_itself_has_put_on_are_no_matter() -> None:
    model = llama()
    selection = half(model)
    values = dict(model.named_parameters())
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    adapters = trainable(model)
    spectrum.unfreeze(model, selection)
    assert {name for name, value in values.items() if value.requires_grad} == HALF | EMBEDDINGS
    assert len(adapters) == 2 * 2 * 2
    assert adapters <= trainable(model)


def test_a_list_matches_the_names_that_parameters_have_without_adapters(tmp_path: Path) -> None:
    model = llama()
    path = written(tmp_path, "model.layers.1.self_attn.q_proj", "^lm_head.weight$")
    values = dict(model.named_parameters())
    wrapped = with_adapters(model, target_modules=["q_proj"])
    adapters = trainable(wrapped)
    spectrum.unfreeze(wrapped, path)
    wanted = {"model.layers.1.self_attn.q_proj.weight", "lm_head.weight"}
    assert {name for name, value in values.items() if value.requires_grad} == wanted
    assert trainable(wrapped) > adapters


def test_a_model_without_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("unfrozen_parameters:\n- model.norm\n")
    with pytest.raises(SelectionError, match="matches no parameter of this Identity"):
        spectrum.unfreeze(nn.Identity(), path)
