"""From stored tensors to parameters: one expert at a time, older keys, other classes, and without the mapping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.disk.tensors import read_tensor
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping import conversion, keys
from spectrum.checkpoint.mapping.conversion import StreamedParameters
from spectrum.checkpoint.mapping.keys import MappingUnavailableError
from spectrum.checkpoint.reader import of_model, open_checkpoint
from spectrum.cli.entry import main
from spectrum.errors import CheckpointError
from spectrum.records import LayerSnr
from tests.helpers.architectures import ARCHITECTURES, built
from tests.helpers.scanned import scan

EXPERTS = ["mixtral", "qwen2-moe", "deepseek-v3", "olmoe", "granite-moe", "gpt-oss", "llama4-text", "jamba", "jetmoe"]


def save(architecture: str, directory: Path) -> Path:
    built(architecture).save_pretrained(directory)
    return directory


def store(directory: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def stored(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def edit_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def values(checkpoint: Checkpoint) -> dict[tuple[str, int], torch.Tensor]:
    return {(w.name, index): checkpoint.read(w, index) for w in checkpoint.weights for index in range(w.num_matrices)}


def assert_same(ours: Checkpoint, model: torch.nn.Module) -> None:
    parameters = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
    assert ours.provenance.info.parameters.keys() == parameters.keys()
    for (name, index), value in values(ours).items():
        expected = parameters[name] if name in parameters else parameters[f"{name}.weight"]
        expected = expected[index] if expected.ndim == 3 else expected
        assert torch.equal(value.flatten(), expected.flatten()), name


def scores(checkpoint: Checkpoint) -> list[LayerSnr]:
    found = scan(checkpoint.weights, checkpoint.read, [torch.device("cpu")])
    return sorted(found, key=lambda layer: layer.name)


@pytest.mark.parametrize("architecture", EXPERTS)
def test_an_expert_is_read_without_the_others(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(str(save(architecture, tmp_path)))
    stacks = [weight for weight in checkpoint.weights if weight.num_matrices > 1]
    assert stacks
    read = 0
    unpatched = read_tensor

    def counting(tensor: StoredTensor, index: int | None = None) -> torch.Tensor:
        nonlocal read
        value = unpatched(tensor, index)
        read += value.numel()
        return value

    monkeypatch.setattr(conversion, "read_tensor", counting)
    for weight in stacks:
        for index in range(weight.num_matrices):
            read = 0
            assert checkpoint.read(weight, index).numel() == read, weight.name


def test_experts_that_cannot_be_converted_singly_are_converted_together_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save("mixtral", tmp_path)
    expected = values(open_checkpoint(str(directory)))
    monkeypatch.setattr(conversion, "is_by_expert", lambda *_: False)
    checkpoint = open_checkpoint(str(directory))
    conversions = []
    convert = StreamedParameters._convert

    def counting(self: StreamedParameters, source: Any, *rest: Any) -> dict[str, torch.Tensor]:
        conversions.append(source.first_parameter)
        return convert(self, source, *rest)

    monkeypatch.setattr(StreamedParameters, "_convert", counting)
    for key, value in values(checkpoint).items():
        assert torch.equal(value, expected[key]), key
    assert len(conversions) == len(set(conversions)) == 4  # two stacks in each of two layers


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_a_damaged_expert_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    directory = save("qwen3-moe", tmp_path)
    state = stored(directory)
    key = "model.layers.1.mlp.experts.2.up_proj.weight"
    if damage == "missing":
        del state[key]
    else:
        state[key] = torch.cat([state[key], state[key]])
    store(directory, state)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.gate_up_proj"):
        open_checkpoint(str(directory))


# Without the mapping.


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2", "mixtral", "gpt-oss", "qwen2.5-vl", "t5"])
def test_the_public_loader_stands_in_with_the_same_scores(
    architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save(architecture, tmp_path)
    streamed = open_checkpoint(str(directory))

    def unavailable(*_: object) -> StreamedParameters:
        raise MappingUnavailableError("not in this version")

    monkeypatch.setattr(conversion, "stream", unavailable)
    loaded = open_checkpoint(str(directory))
    assert type(loaded._source).__name__ == "LoadedParameters"
    assert scores(loaded) == scores(streamed)
    # Dtypes apart: some versions of transformers widen some parameters on loading.
    assert loaded.provenance.info.parameters.keys() == streamed.provenance.info.parameters.keys()
    without = [
        replace(each.provenance, info=replace(each.provenance.info, parameters={})) for each in (loaded, streamed)
    ]
    assert without[0] == without[1]


def test_a_mapping_that_is_not_what_it_was_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(*_: object) -> None:
        raise TypeError("unexpected argument")

    monkeypatch.setattr(keys, "_match_keys", changed)
    assert type(open_checkpoint(str(save("llama", tmp_path)))._source).__name__ == "LoadedParameters"


def test_what_the_public_loader_would_fill_with_random_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = save("llama", tmp_path)
    state = stored(directory)
    del state["model.layers.1.mlp.up_proj.weight"]
    store(directory, state)
    monkeypatch.setattr(keys, "_match_keys", None)
    with pytest.raises(CheckpointError, match=r"lacks the parameter model\.layers\.1\.mlp\.up_proj\.weight"):
        open_checkpoint(str(directory))


# Older keys, and other classes than the one that was saved.


def test_norms_called_gamma_and_beta_are_read(tmp_path: Path) -> None:
    directory = save("bert", tmp_path)
    model = transformers.BertForMaskedLM.from_pretrained(directory, dtype="auto")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in stored(directory).items()
    }
    assert any(key.endswith("gamma") for key in old)
    store(directory, old)
    assert_same(open_checkpoint(str(directory)), model)


@pytest.mark.parametrize(
    ("architecture", "ending", "old", "new"),
    [
        ("llama", "", "model.", ""),  # the copy comes first in transformers' order
        ("llama", "_proj.weight", "model.layers", "model.model.layers"),  # it comes last
        ("bert", "LayerNorm.weight", "LayerNorm.weight", "LayerNorm.gamma"),
        ("bert", "LayerNorm.bias", "LayerNorm.bias", "LayerNorm.beta"),
    ],
)
def test_of_two_keys_for_one_parameter_the_one_that_transformers_takes_is_read(
    architecture: str, ending: str, old: str, new: str, tmp_path: Path
) -> None:
    directory = save(architecture, tmp_path)
    state = stored(directory)
    copies = {key.replace(old, new, 1): value + 1 for key, value in state.items() if key.endswith(ending)}
    store(directory, copies | state)
    model, info = type(built(architecture)).from_pretrained(directory, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert_same(open_checkpoint(str(directory)), model)


def test_a_key_that_is_a_parameter_is_read_although_a_renaming_takes_it_for_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.core_model_loading import WeightRenaming

    directory, loader = save("llama", tmp_path), type(built("llama"))
    model, info = loader.from_pretrained(directory, dtype="auto", key_mapping={"mlp": "ffn"}, output_loading_info=True)
    if info["missing_keys"]:
        pytest.skip("this transformers itself does not read such a key")
    monkeypatch.setattr(keys, "_mapping", lambda *_: ([WeightRenaming("mlp", "ffn")], []))
    assert_same(open_checkpoint(str(directory)), model)


def test_a_copy_of_a_parameter_is_no_key_without_a_place(tmp_path: Path) -> None:
    directory = save("llama", tmp_path)
    state = stored(directory)
    copies = {key.removeprefix("model."): value.clone() for key, value in state.items() if ".layers." in key}
    del state["lm_head.weight"]
    store(directory, copies | state)
    with pytest.raises(CheckpointError, match=r"lacks the parameter lm_head\.weight of LlamaForCausalLM: it is incom"):
        open_checkpoint(str(directory), model_class="LlamaForCausalLM")


def test_experts_in_two_layouts_are_refused_by_name(tmp_path: Path) -> None:
    directory = save("mixtral", tmp_path)
    fused = {name: value.detach() for name, value in built("mixtral").named_parameters() if ".experts." in name}
    store(directory, stored(directory) | fused)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(directory))
    file = directory / "model.safetensors"
    assert str(refused.value) == (
        f"model.layers.0.mlp.experts.gate_up_proj is stored in two layouts: {file} holds "
        f"model.layers.0.block_sparse_moe.experts.0.w1.weight, and {file} holds "
        "model.layers.0.mlp.experts.gate_up_proj; transformers loads neither, so take the tensors of one out"
    )


def test_a_config_that_names_a_class_alone_is_read(tmp_path: Path) -> None:
    directory = save("bert", tmp_path)
    model = transformers.BertForMaskedLM.from_pretrained(directory, dtype="auto")
    edit_config(directory, model_type=None)
    assert_same(open_checkpoint(str(directory)), model)


def test_a_base_models_weights_fill_a_causal_class(tmp_path: Path) -> None:
    built("llama-tied").model.save_pretrained(tmp_path)
    edit_config(tmp_path, architectures=["LlamaForCausalLM"])
    assert not any(key.startswith("model.") for key in stored(tmp_path))
    model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert_same(open_checkpoint(str(tmp_path)), model)


def test_a_causal_models_weights_fill_its_base_class(tmp_path: Path) -> None:
    directory = save("llama", tmp_path)
    model = transformers.LlamaModel.from_pretrained(directory, dtype="auto")
    assert_same(open_checkpoint(str(directory), model_class="LlamaModel"), model)


def test_the_auto_classes_are_asked_in_axolotls_order(tmp_path: Path) -> None:
    chosen = {}
    for architecture in ("qwen2.5-vl", "llama", "t5", "vits"):
        directory = save(architecture, tmp_path / architecture)
        edit_config(directory, architectures=None)
        chosen[architecture] = open_checkpoint(str(directory)).provenance.info.model_class
    assert chosen == {
        "qwen2.5-vl": "Qwen2_5_VLForConditionalGeneration",
        "llama": "LlamaForCausalLM",
        "t5": "T5ForConditionalGeneration",
        "vits": "VitsModel",
    }


def test_a_warning_where_two_trainers_would_see_different_names(tmp_path: Path) -> None:
    directory = save("llama4", tmp_path)
    auto: Any = transformers.AutoModelForCausalLM
    try:
        auto.from_config(transformers.AutoConfig.from_pretrained(directory))
    except AttributeError:
        pytest.skip("this transformers builds no language model from a multimodal config, so there is no rival")
    (warning,) = open_checkpoint(str(directory)).warnings
    assert "Llama4ForConditionalGeneration" in warning
    assert "--model-class Llama4ForCausalLM" in warning
    for name in ("gemma3", "whisper", "llama"):
        assert open_checkpoint(str(save(name, tmp_path / name))).warnings == ()


# What is scored, and under which type.


def test_only_weights_are_scored(tmp_path: Path) -> None:
    names = {weight.name for weight in open_checkpoint(str(save("mamba", tmp_path))).weights}
    assert {"backbone.layers.0.mixer.conv1d", "backbone.layers.0.mixer.x_proj", "backbone.embeddings"} <= names
    assert not any(name.endswith(("A_log", ".D", "bias")) for name in names)


def test_the_language_model_alone_can_be_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("llava", tmp_path / "llava")
    monkeypatch.chdir(tmp_path)
    assert main(["--model-name", "llava", "--layer-types", "model.language_model.*", "-q"]) == 0
    names = json.loads((tmp_path / "model_snr_results" / "snr_results_llava.json").read_text())
    assert names
    assert all(name.startswith("model.language_model.layers.") for name in names if ".layers." in name)
    assert {entry["type"] for entry in names.values()} >= {"model.language_model.layers.mlp.up_proj"}


def test_a_stacks_score_is_the_median_of_its_experts_which_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save("qwen3-moe", tmp_path / "moe")
    monkeypatch.chdir(tmp_path)
    assert main(["--model-name", "moe", "--top-percent", "50", "-y", "-q"]) == 0
    entries = json.loads((tmp_path / "model_snr_results" / "snr_results_moe.json").read_text())
    entry = entries["model.layers.0.mlp.experts.gate_up_proj"]
    low, high = sorted(entry["experts"])[1:3]
    assert len(entry["experts"]) == 4
    assert entry["snr"] == pytest.approx((low + high) / 2)
    assert entry["type"] == "mlp.experts.gate_up_proj"


def test_transposed_convolutions_with_groups_have_their_output_channels_as_rows() -> None:
    convolution = torch.nn.ConvTranspose1d(4, 6, 3, groups=2, bias=False)
    checkpoint = of_model(torch.nn.Sequential(convolution), "model")
    (weight,) = checkpoint.weights
    assert (weight.matrix_shape, weight.num_matrices) == ((6, 6), 1)
    inputs_of_group = convolution.weight.detach().reshape(2, 2, 3, 3)  # group, input channel, output channel, kernel
    rows = torch.stack([group[:, i].flatten() for group in inputs_of_group for i in range(3)])
    assert torch.equal(checkpoint.read(weight, 0), rows)


def test_every_architecture_with_experts_is_among_those_read_singly() -> None:
    assert set(EXPERTS) <= set(ARCHITECTURES)
