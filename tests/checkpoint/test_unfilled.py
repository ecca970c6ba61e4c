"""Checkpoints that do not fill their model: the reason is found in headers, and the message says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from spectrum.checkpoint import hub
from spectrum.checkpoint.config import read_config
from spectrum.checkpoint.disk import tensors
from spectrum.checkpoint.local import read_config_file
from spectrum.checkpoint.mapping import conversion, parameters
from spectrum.checkpoint.mapping.keys import MappingUnavailableError
from spectrum.checkpoint.matrices import missing_parameters
from spectrum.checkpoint.meta_model import MAX_MODULES, Unbuilt, build_meta_model
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import CheckpointError
from tests.helpers.architectures import built
from tests.helpers.wrappers import FILTERS, compiled, layers_compiled

pytestmark = FILTERS

State = dict[str, torch.Tensor]
Change = Callable[[State], State]


def save(architecture: str, directory: Path, change: Change = dict) -> Path:
    built(architecture).save_pretrained(directory)
    store(directory, change(load_file(directory / "model.safetensors")))
    return directory


def store(directory: Path, state: State) -> None:
    save_file(
        {key: value.contiguous().clone() for key, value in state.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(directory: Path, **options: Any) -> str:
    """The one line that says why this is not opened, without the directory, with which it begins."""
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(directory), **options)
    message = str(refused.value)
    assert message.startswith(f"{directory} ")
    assert "\n" not in message
    return message.removeprefix(f"{directory} ")


@pytest.fixture(autouse=True)
def headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here needs a weight. Each place that reads one fails."""

    def read(*_: object) -> torch.Tensor:
        raise AssertionError("a weight is read")

    for module in (conversion, parameters):
        assert module.read_tensor is tensors.read_tensor
        monkeypatch.setattr(module, "read_tensor", read)


def before(prefix: str) -> Change:
    return lambda state: {prefix + key: value for key, value in state.items()}


def replaced(pattern: str, new: str) -> Change:
    return lambda state: {re.sub(pattern, new, key): value for key, value in state.items()}


def without(pattern: str) -> Change:
    return lambda state: {key: value for key, value in state.items() if not re.search(pattern, key)}


def only(*keys: str) -> Change:
    return lambda _: {key: torch.ones(4, 4) for key in keys}


def then(*changes: Change) -> Change:
    def change(state: State) -> State:
        for each in changes:
            state = each(state)
        return state

    return change


INSIDE = "save the model inside that wrapper, or take "

# By what happened: an architecture, a change of its tensors, and what the message says in this order.
KINDS: dict[str, tuple[str, Change, list[str]]] = {
    "compiled": ("qwen2", before("_orig_mod."), ["holds _orig_mod.", "torch.compile", INSIDE + "'_orig_mod' out of"]),
    "compiled-experts": ("mixtral", before("_orig_mod."), ["torch.compile", "'_orig_mod'"]),
    "layers-compiled": (
        "llama",
        replaced(r"layers\.(\d)", r"layers.\1._orig_mod"),
        ["model.layers.0._orig_mod.", "torch.compile", "'_orig_mod'"],
    ),
    "data-parallel": ("llama", before("module."), ["holds module.", "data-parallel training", "take 'module' out of"]),
    "data-parallel-experts": ("qwen3-moe", before("module."), ["data-parallel training", "'module'"]),
    "data-parallel-of-compiled": (
        "gpt2",
        before("module._orig_mod."),
        ["data-parallel training and torch.compile", "'module' and '_orig_mod'"],
    ),
    "fsdp-and-activation-checkpointing": (
        "llama",
        replaced(r"layers\.(\d)", r"_fsdp_wrapped_module.layers.\1._checkpoint_wrapped_module"),
        ["FSDP and activation checkpointing", "'_fsdp_wrapped_module' and '_checkpoint_wrapped_module'"],
    ),
    "fsdp-flattened": (
        "llama",
        only("_fsdp_wrapped_module._flat_param", "model.layers.0._fsdp_wrapped_module._flat_param"),
        ["_flat_param", "flattened", "accelerate merge-weights"],
    ),
    "lora-unmerged": (
        "llama",
        replaced("^", "base_model.model."),
        ["holds base_model.model.", "PEFT", "merge_and_unload()"],
    ),
    "prefix-of-a-trainer": (
        "llama",
        before("policy."),
        ["holds policy.model.", "in place of LlamaForCausalLM's model.", "take 'policy.' off the keys"],
    ),
    "prefix-of-two-parts": ("whisper", before("asr.net."), ["WhisperForConditionalGeneration", "'asr.net.'"]),
    "prefix-of-a-multimodal-class": (
        "gemma3-text",
        before("language_model."),
        ["holds language_model.model.", "Gemma3ForCausalLM", "take 'language_model.' off"],
    ),
    "prefix-of-a-newer-multimodal-class": (
        "qwen2",
        replaced(r"^model\.", "model.language_model."),
        ["replace 'model.language_model.' by 'model.'"],
    ),
    "prefix-of-another-family": ("gpt2", replaced(r"^transformer\.", "model."), ["replace 'model.' by 'transformer.'"]),
    "prefixes-of-two-stacks": (
        "whisper",
        replaced(r"^model\.(encoder|decoder)", r"\1.stack"),
        ["replace 'encoder.stack.' by 'model.encoder.'"],
    ),
    "metas-format": ("llama", only("layers.0.attention.wq.weight"), ["format of Meta or Mistral"]),
    "megatrons-format": ("llama", only("decoder.layers.0.self_attention.linear_qkv.weight"), ["format of Megatron"]),
    "llama.cpps-format": ("llama", only("blk.0.attn_q.weight"), ["format of llama.cpp"]),
    "one-key-misspelt": (
        "llama",
        then(replaced(r"1\.mlp\.up_proj", "1.mlp.up"), lambda state: state | {"extra.table": torch.ones(1)}),
        [
            "lacks the parameter model.layers.1.mlp.up_proj.weight of LlamaForCausalLM, which has no place for the key "
            "model.layers.1.mlp.up.weight (and 1 other such key): config.json, or its class, is that of another model"
        ],
    ),
    "layer-of-another-stack": (
        "llama",
        replaced(r"layers\.0", "layers.7"),
        ["layers.0.", "no place for the key model"],
    ),
    "layers-not-there": ("llama", without(r"layers\.1"), ["model.layers.1.", "8 more", "it is incomplete, or config"]),
    "one-lost-of-a-part-that-other-classes-lack": (
        "whisper",
        without(r"model\.encoder\.layer_norm\.weight"),
        ["model.encoder.layer_norm.weight of WhisperForConditionalGeneration: it is incomplete"],
    ),
    "head-not-there": ("llama", without("lm_head"), ["lm_head.weight of LlamaForCausalLM: it is incomplete"]),
    "one-lost-beside-an-old-buffer": (
        "llama",
        then(without(r"1\.mlp\.up"), lambda s: s | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
        ["model.layers.1.mlp.up_proj.weight of LlamaForCausalLM: it is incomplete"],
    ),
    "of-the-base-class": (
        "llama",
        then(without("lm_head"), replaced(r"^model\.", "")),
        ["lm_head.weight of LlamaForCausalLM, but has all those of LlamaModel: scan it with --model-class LlamaModel"],
    ),
    "of-a-reward-model": (
        "llama",
        then(without("lm_head"), lambda state: state | {"score.weight": torch.ones(2, 32)}),
        ["lm_head.weight", "but has all those of LlamaForSequenceClassification", "--model-class LlamaForSequenceCl"],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_message_says_what_the_keys_look_like_and_what_to_do(tmp_path: Path, kind: str) -> None:
    architecture, change, words = KINDS[kind]
    message = refusal(save(architecture, tmp_path, change))
    position = 0
    for word in words:
        assert word in message[position:]
        position = message.index(word, position) + len(word)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_is_what_transformers_fills_with_random_numbers(tmp_path: Path, kind: str) -> None:
    # So nothing is lost by not asking its loader, which would read all weights.
    architecture, change, _ = KINDS[kind]
    directory = save(architecture, tmp_path, change)
    settings = read_config_file(directory)
    config = read_config(directory, settings, trust_remote_code=False)
    model = build_meta_model(Unbuilt(directory, settings, config, trust_remote_code=False, limit=MAX_MODULES), None)
    stored = hub.resolve(str(directory), None, remote_code=False).headers.tensors()
    ours = set(missing_parameters(model, conversion.stream(model, stored, None)))
    _, info = type(model).from_pretrained(directory, output_loading_info=True)
    assert ours
    assert ours == info["missing_keys"]


WRAPPED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "torch.compile": (compiled, "torch.compile"),
    "torch.compile-by-layer": (layers_compiled, "torch.compile"),
    "DataParallel": (torch.nn.DataParallel, "data-parallel training"),
    "PEFT": (lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), "PEFT"),
    "PEFT-inside": (
        lambda model: get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).base_model.model,
        "PEFT",
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_keys_that_a_real_wrapper_gives_are_recognized(tmp_path: Path, kind: str) -> None:
    wrap, words = WRAPPED[kind]
    model = built("llama")
    model.save_pretrained(tmp_path)
    store(tmp_path, wrap(model).state_dict())
    assert words in refusal(tmp_path)


def test_a_part_that_is_a_models_own_is_no_wrapper(tmp_path: Path) -> None:
    message = refusal(save("llama", tmp_path, lambda state: without("lm_head")(state) | {"module.x": torch.ones(1)}))
    assert "data-parallel" not in message
    assert "no place for the key module.x" in message


@pytest.mark.parametrize(
    ("architecture", "asked", "fitting"),
    [
        ("llama", "LlamaForSequenceClassification", "LlamaForCausalLM"),
        ("bert", "BertForTokenClassification", "BertForMaskedLM"),
        ("t5", "T5ForTokenClassification", "T5ForConditionalGeneration"),
    ],
)
def test_the_class_that_the_checkpoint_fills_is_named_and_opens(
    tmp_path: Path, architecture: str, asked: str, fitting: str
) -> None:
    message = refusal(save(architecture, tmp_path), model_class=asked)
    assert f" of {asked}, but has all those of {fitting}: scan it with --model-class {fitting}" in message
    edit_config(tmp_path, architectures=[asked])
    assert refusal(tmp_path) == message
    del message
    advised = re.search(r"--model-class (\w+)", refusal(tmp_path))
    assert advised
    with pytest.MonkeyPatch.context() as patch:  # copies of a tied weight are compared
        patch.setattr(conversion, "read_tensor", tensors.read_tensor)
        assert open_checkpoint(str(tmp_path), model_class=advised[1]).provenance.info.model_class == fitting


def test_a_change_of_prefix_that_fills_only_a_few_parameters_is_not_advised(tmp_path: Path) -> None:
    def change(state: State) -> State:
        others = {f"aux.{name}.weight": torch.ones(4) for name in ("norm", "a", "b", "c")}
        return without(r"^model\.norm")(state) | others

    message = refusal(save("llama", tmp_path, change))
    assert "aux.norm.weight (and 3 other such keys)" in message
    assert "replace" not in message


def test_a_class_that_cannot_be_imported_does_not_hide_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def get(self, *_: object) -> None:
            raise RuntimeError("Failed to import timm")

    message = refusal(save("llama", tmp_path), model_class="LlamaForSequenceClassification")
    for auto in ("AutoModelForImageTextToText", "AutoModelForMaskedLM"):
        monkeypatch.setattr(getattr(transformers, auto), "_model_mapping", Broken())
    assert refusal(tmp_path, model_class="LlamaForSequenceClassification") == message
    assert "--model-class LlamaForCausalLM" in message


def test_a_prefix_is_found_beside_tensors_that_the_model_has_no_place_for(tmp_path: Path) -> None:
    change = then(before("language_model."), lambda state: state | {"vision.proj.weight": torch.ones(4, 4)})
    assert "take 'language_model.' off" in refusal(save("mistral", tmp_path, change))


# Without the mapping, the keys must be the names themselves.


@pytest.mark.parametrize("kind", ["compiled", "data-parallel", "fsdp-flattened", "lora-unmerged"])
def test_keys_of_a_wrapper_are_recognized_before_the_whole_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def unavailable(*_: object) -> None:
        raise MappingUnavailableError("not in this version")

    architecture, change, _ = KINDS[kind]
    directory = save(architecture, tmp_path, change)
    message = refusal(directory)
    monkeypatch.setattr(conversion, "stream", unavailable)
    assert refusal(directory).split()[2:] == message.split()[2:]  # the first key of several may be another


def test_a_checkpoint_far_smaller_than_its_model_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*_: object) -> None:
        raise MappingUnavailableError("not in this version")

    monkeypatch.setattr(conversion, "stream", unavailable)
    save("llama", tmp_path)
    edit_config(tmp_path, vocab_size=10**7)
    assert refusal(tmp_path) == "lacks most of the parameters of LlamaForCausalLM"


# What sharded training leaves of parameters on one process.


def empty(value: torch.Tensor) -> torch.Tensor:
    return value.new_zeros(0)


def half(value: torch.Tensor) -> torch.Tensor:
    return value.flatten()[: value.numel() // 2]


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "mixtral", "mistral3", "t5"])
@pytest.mark.parametrize("small_ones_are_whole", [True, False])
def test_parameters_without_elements_are_those_of_zero_3(
    tmp_path: Path, architecture: str, small_ones_are_whole: bool
) -> None:
    def shard(state: State) -> State:
        return {key: value if small_ones_are_whole and value.ndim < 2 else empty(value) for key, value in state.items()}

    message = refusal(save(architecture, tmp_path, shard))
    for words in ("without elements", "ZeRO-3", "zero_to_fp32.py", "stage3_gather_16bit_weights_on_model_save"):
        assert words in message


def test_parameters_without_elements_are_recognized_in_a_torch_archive(tmp_path: Path) -> None:
    directory = save("llama", tmp_path)
    state = load_file(directory / "model.safetensors")
    torch.save({key: empty(value) for key, value in state.items()}, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    assert "zero_to_fp32.py" in refusal(directory)


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "whisper"])
@pytest.mark.parametrize("some_are_elsewhere", [True, False])
def test_matrices_in_one_dimension_are_those_of_fsdp(
    tmp_path: Path, architecture: str, some_are_elsewhere: bool
) -> None:
    def shard(state: State) -> State:
        return {
            key: empty(value) if some_are_elsewhere and "layers.1." in key else half(value)
            for key, value in state.items()
        }

    message = refusal(save(architecture, tmp_path, shard))
    for words in ("in one dimension", "FSDP", "accelerate merge-weights"):
        assert words in message


def test_numbers_that_are_no_weights_are_no_sign_of_sharded_training(tmp_path: Path) -> None:
    message = refusal(save("llama", tmp_path, lambda state: {key: half(v).byte() for key, v in state.items()}))
    assert "FSDP" not in message


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_parameter_without_elements_in_the_model_is_no_sign_of_sharded_training(tmp_path: Path) -> None:
    config, build = built("llama").config, cast(Any, transformers.LlamaForSequenceClassification)
    config.num_labels = 0
    build(config).save_pretrained(tmp_path)
    assert 0 in load_file(tmp_path / "model.safetensors")["score.weight"].shape
    found = open_checkpoint(str(tmp_path))
    assert "score" not in {weight.name for weight in found.weights}


@pytest.mark.parametrize("shape", [(10,), (10, 10)])
def test_one_parameter_of_another_shape_is_no_sign_of_sharded_training(tmp_path: Path, shape: tuple[int, ...]) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    message = refusal(save("llama", tmp_path, lambda state: state | {key: torch.ones(shape)}))
    assert message.startswith(f"holds {key} as {list(shape)}, but LlamaForCausalLM has it as [")
    assert message.endswith("the weights are not those of config.json")


def test_shapes_are_compared_before_copies_of_a_tied_weight(tmp_path: Path) -> None:
    key = "model.norm.weight"

    def change(state: State) -> State:
        return state | {"lm_head.weight": state["model.embed_tokens.weight"], key: torch.ones(3)}

    assert refusal(save("llama-tied", tmp_path, change)).startswith(f"holds {key} as [3]")
