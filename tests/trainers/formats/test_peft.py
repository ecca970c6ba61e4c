"""The arguments for PEFT in its own hands: adapters on exactly the selected layers, and gradients for these alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

import spectrum
from spectrum.errors import SelectionError
from spectrum.selection.selection import Selection
from spectrum.trainers.formats.lora import peft
from tests.helpers.adapters import Adapted, adapted, names_of, weights
from tests.helpers.architectures import built, llama_like, with_signal
from tests.helpers.paths import TINY_LLAMA

pytestmark = [
    pytest.mark.slow,
    # peft asks transformers for what it calls by another name now.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # It advises on saving adapters on embeddings, and turns a setting of GPT-2's matrices as they want it.
    pytest.mark.filterwarnings("ignore:Model .*has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to (True|False):UserWarning"),
]

# What LoRA has adapters for, by its documentation.
TAKEN = (nn.Linear, nn.Embedding, Conv1D, nn.Conv1d, nn.Conv2d, nn.Conv3d)

# Model types of which it refuses these modules, whose weights their kernels use past any adapter.
STATE_SPACES = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
PAST_ADAPTERS = {"conv1d", "out_proj"}

TOKENS = torch.arange(1, 9)[None]


def selected(model: Any, percent: int) -> Selection:
    return spectrum.select(spectrum.scan(model, show_progress=False), percent)


def intended(model: Any, selection: Selection) -> Adapted:
    """Of the selected layers, those that can be adapted: modules, and parameters that no such module holds."""
    modules, parameters = set(), set()
    own = dict(model.named_modules())
    for layer in (layer for layers in selection.layers().values() for layer in layers):
        holder, _, last = layer.rpartition(".")
        parameter = f"{layer}.weight" if layer in own else layer
        if isinstance(own[holder], nn.MultiheadAttention):
            continue  # takes an adapter as a whole or not at all
        if getattr(own.get(layer), "groups", 1) > 1:
            continue  # takes one of a rank that the number of groups divides, and the rank is the user's choice
        if model.config.model_type in STATE_SPACES and last in PAST_ADAPTERS:
            continue
        if layer in own and isinstance(own[layer], TAKEN):
            modules.add(layer)
        elif model.get_parameter(parameter).ndim in (2, 3):
            parameters.add(parameter)
    return modules, parameters


def config(selection: Selection, rank: int = 2) -> LoraConfig:
    return LoraConfig(r=rank, **yaml.safe_load(peft(selection).text))


def put_on(model: Any, selection: Selection, rank: int = 2) -> tuple[PeftModel, Adapted]:
    names = names_of(model)
    wrapped: Any = get_peft_model(model, config(selection, rank))
    return wrapped, adapted(wrapped, names)


def dense(model: Any) -> Any:
    return with_signal(model).float()


ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    name: partial(built, name)
    for name in (
        *("llama", "llama-tied", "gpt2", "phi3", "bloom", "opt"),
        # Fused experts and bare routers, with experts beside them that all tokens share, with biases.
        *("mixtral", "qwen2-moe", "qwen3-moe", "granite-moe", "gpt-oss", "llama4-text", "jetmoe", "deepseek-v3"),
        # Two towers; convolutions over patches and volumes; an attention of torch's own.
        *("gemma3", "llava", "qwen2.5-vl", "t5", "whisper"),
        # State spaces, alone and in a mixture, whose convolutions have a group for each channel.
        *("mamba", "jamba"),
    )
}


@pytest.mark.parametrize("percent", [50, 100])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_are_on_the_selected_layers_and_nowhere_else(architecture: str, percent: int) -> None:
    model = dense(ARCHITECTURES[architecture]())
    selection = selected(model, percent)
    wanted = intended(model, selection)
    _, found = put_on(model, selection)
    assert weights(found) == weights(wanted)
    assert found[0]


def test_adapters_are_on_the_selected_layers_of_a_model_with_many() -> None:
    # From twenty names on, peft looks for shorter ones that say the same.
    model = transformers.LlamaForCausalLM.from_pretrained(TINY_LLAMA)
    selection = selected(model, 50)
    wanted = intended(model, selection)
    assert len(wanted[0]) > 20
    assert put_on(model, selection)[1] == wanted


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3-moe", "gpt-oss", "gemma3"])
def test_gradients_reach_the_adapters_and_nothing_else(architecture: str) -> None:
    model = dense(ARCHITECTURES[architecture]())
    own = {id(value) for value in model.parameters()}
    selection = selected(model, 50)
    wrapped, _ = put_on(model, selection)
    wrapped.train()
    extra = {"token_type_ids": torch.zeros_like(TOKENS)} if architecture == "gemma3" else {}
    wrapped(input_ids=TOKENS, labels=TOKENS, **extra).loss.backward()
    reached = {name for name, value in wrapped.named_parameters() if value.grad is not None}
    assert not any(value.grad is not None for value in wrapped.parameters() if id(value) in own)
    adapters = {name for name, value in wrapped.named_parameters() if id(value) not in own}
    # Without a picture the tower that looks at it has no part in the result.
    seen = {name for name in adapters if "vision" not in name and "projector" not in name}
    assert seen <= reached <= adapters
    assert seen


def test_norms_are_left_out_and_named() -> None:
    model = dense(built("llama"))
    notes = peft(selected(model, 50)).notes
    assert len(notes) == 2
    assert "embedding" in notes[1]
    assert re.findall(r"model\S*\b", notes[0]) == [
        "model.layers.0.input_layernorm",
        "model.layers.0.post_attention_layernorm",
    ]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(16, 16)
        self.v_proj = nn.Linear(16, 16)


class Nested(nn.Module):
    """A model in which the path of a module is the end of another one's, as of a model kept in another's part."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.tower = nn.ModuleDict({"layers": nn.ModuleList([Attention(), Attention()])})
        self.layers_more = nn.ModuleList([Attention()])  # the path of none is the beginning of this


def of_layers(model: nn.Module, *names: str) -> Selection:
    result = spectrum.scan(model, show_progress=False)
    layers = tuple(layer for layer in result.layers if layer.name in names)
    return spectrum.select(replace(result, layers=layers), 100)


@pytest.mark.parametrize(
    "names",
    [
        {"layers.0.q_proj"},
        {"layers.0.q_proj", "layers.1.v_proj", "layers_more.0.q_proj"},
        {"tower.layers.0.q_proj"},
        {"tower.layers.0.q_proj", "layers.1.q_proj"},
        {"layers.0.q_proj", "tower.layers.0.q_proj"},
    ],
)
def test_a_module_whose_path_ends_anothers_is_meant_alone(names: set[str]) -> None:
    model = Nested()
    _, found = put_on(model, of_layers(model, *names))
    assert found == (names, set())


class Dotted(nn.Module):
    """A model in which a dot of a name would, as part of a pattern, match a letter of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b": nn.Linear(16, 16)})
        self.tower = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(16, 16)})})
        self.axb = nn.Linear(16, 16)


def test_a_name_in_a_pattern_stands_for_itself() -> None:
    model = Dotted()
    _, found = put_on(model, of_layers(model, "a.b"))
    assert found == ({"a.b"}, set())


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(2, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.down.sum(0)


class NestedExperts(nn.Module):
    """The same of a parameter that no module holds as its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()
        self.tower = nn.ModuleDict({"experts": Experts(), "out": nn.Linear(16, 16)})


def test_a_parameter_whose_path_has_anothers_at_its_end_is_meant_alone() -> None:
    model = NestedExperts()
    _, found = put_on(model, of_layers(model, "tower.experts.down", "tower.out"))
    assert found == ({"tower.out"}, {"tower.experts.down"})


def test_a_parameter_that_cannot_be_meant_alone_is_refused() -> None:
    # Of parameters LoRA takes names alone, and a name for all that end so.
    with pytest.raises(SelectionError, match=r"\bexperts\.down\b.*tower\.experts\.down"):
        peft(of_layers(NestedExperts(), "experts.down", "tower.out"))


def test_a_parameter_may_be_meant_with_all_that_end_as_it_does() -> None:
    model = NestedExperts()
    _, found = put_on(model, of_layers(model, "experts.down", "tower.experts.down", "tower.out"))
    assert found == ({"tower.out"}, {"experts.down", "tower.experts.down"})


def test_experts_alone_take_adapters() -> None:
    model = dense(built("qwen3-moe"))
    experts = {f"model.layers.{i}.mlp.experts.{own}" for i in (0, 1) for own in ("gate_up_proj", "down_proj")}
    _, found = put_on(model, of_layers(model, *experts))
    assert found == (set(), experts)


def test_adapters_are_saved_and_come_back(tmp_path: Path) -> None:
    """A config is written with them: it has to say what it said."""
    model = dense(built("llama"))
    selection = selected(model, 50)
    wrapped, found = put_on(model, selection)
    wrapped.save_pretrained(str(tmp_path))
    again = dense(built("llama"))
    names = {id(value): name for name, value in again.named_parameters()}
    assert adapted(PeftModel.from_pretrained(again, str(tmp_path)), names) == found


# Quantized: the reason why most take adapters.


@pytest.fixture
def four_bit(tmp_path: Path) -> tuple[Any, Selection]:
    """A model in 4 bits, and the selection from the scan of its checkpoint."""
    pytest.importorskip("bitsandbytes")
    # A kernel for CPUs takes blocks of 64 numbers, each of one row: so rows are of so many.
    sizes: Any = llama_like(transformers.LlamaConfig, hidden_size=64, intermediate_size=128)
    dense(transformers.LlamaForCausalLM(sizes)).save_pretrained(tmp_path / "model")
    scan = spectrum.scan(tmp_path / "model", results_dir=tmp_path, show_progress=False, device="cpu")
    settings: Any = transformers.BitsAndBytesConfig
    quantization = settings(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=quantization, device_map="cpu"
    )
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    return model, spectrum.select(scan, 50)


def test_a_model_in_four_bits_takes_adapters_on_the_selected_layers(four_bit: tuple[Any, Selection]) -> None:
    model, selection = four_bit
    wanted = intended(model, selection)  # its matrices are Linear still, by inheritance
    wrapped, found = put_on(model, selection)
    assert found == wanted
    assert len(wanted[0]) == 7
    wrapped(input_ids=TOKENS, labels=TOKENS).loss.backward()
    reached = {name for name, value in wrapped.named_parameters() if value.grad is not None}
    assert reached == {name for name, _ in wrapped.named_parameters() if "lora_" in name}
    assert len(reached) == 2 * 7


def test_a_model_in_four_bits_cannot_be_unfrozen(four_bit: tuple[Any, Selection]) -> None:
    model, selection = four_bit
    before = [value.requires_grad for value in model.parameters()]
    with pytest.raises(SelectionError, match=r"uint8.*--format peft"):
        spectrum.unfreeze(model, selection)
    assert [value.requires_grad for value in model.parameters()] == before


def test_a_model_in_four_bits_is_not_scanned(four_bit: tuple[Any, Selection]) -> None:
    with pytest.raises(spectrum.SpectrumError, match=r"uint8.*use the original"):
        spectrum.scan(four_bit[0], show_progress=False)
