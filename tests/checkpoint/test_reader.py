"""A model's names by its config alone, against the model that transformers makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from spectrum.checkpoint.reader import describe_model
from spectrum.errors import CheckpointError
from spectrum.records import ModelInfo
from tests.helpers.architectures import ARCHITECTURES, built
from tests.helpers.paths import TINY_LLAMA


def outlined(directory: Path | str, **changes: Any) -> ModelInfo:
    return described(directory, **changes)[0]


def described(directory: Path | str, **changes: Any) -> tuple[ModelInfo, tuple[str, ...]]:
    asked: dict[str, Any] = {"revision": None, "model_class": None, "trust_remote_code": False}
    return describe_model(str(directory), **asked | changes)[:2]


def save_config(model: Any, directory: Path) -> Path:
    """What a repository holds beside its weights."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    assert [path.name for path in directory.iterdir()] == ["config.json"]
    return directory


def first_names(model: Any) -> Mapping[str, str]:
    """Under each name of a parameter, the one that `named_parameters()` lists it by."""
    listed = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: listed[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_shapes_and_ties_are_those_of_the_model(architecture: str, tmp_path: Path) -> None:
    model = built(architecture)
    found = outlined(save_config(model, tmp_path))
    first = first_names(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    assert found.model_class == type(model).__name__
    assert found.parameters.keys() == own.keys()
    for name, parameter in found.parameters.items():
        assert parameter.shape == tuple(own[name].shape), name
        assert (parameter.tied_to or name) == first[name], name
        assert parameter.tied_to != name
    assert found.modules == {path for path, _ in model.named_modules(remove_duplicate=False)} - {""}
    # What trainers see is what is not tied to anything.
    listed = [name for name, _ in model.named_parameters()]
    assert [name for name, parameter in found.parameters.items() if parameter.tied_to is None] == listed


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "gpt2", "llava", "t5", "bert", "vits", "opt"])
def test_head_and_embedding_are_those_of_the_model(architecture: str, tmp_path: Path) -> None:
    model = built(architecture)
    found = outlined(save_config(model, tmp_path))
    for name, getter in ((found.head, "get_output_embeddings"), (found.embedding, "get_input_embeddings")):
        try:
            module = getattr(model, getter)()
        except (NotImplementedError, AttributeError):
            module = None
        if name is None:
            assert getattr(module, "weight", None) is None
        else:
            assert model.get_submodule(name.removesuffix(".weight")) is module


def test_ties_between_encoder_and_decoder_have_one_first_name(tmp_path: Path) -> None:
    found = outlined(save_config(built("t5"), tmp_path))
    tied = {name: parameter.tied_to for name, parameter in found.parameters.items() if parameter.tied_to}
    assert tied == dict.fromkeys(
        ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"], "shared.weight"
    )


@pytest.mark.parametrize(
    ("architecture", "name", "expected"),
    [
        ("llama", "model.layers.0.mlp.up_proj.weight", "Linear"),
        ("llama", "model.embed_tokens.weight", "Embedding"),
        ("llama", "model.norm.weight", None),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight", "Conv1D"),
        ("gpt2", "transformer.ln_f.bias", "LayerNorm"),
        ("qwen3-moe", "model.layers.0.mlp.experts.down_proj", None),
        ("mamba", "backbone.layers.0.mixer.conv1d.weight", "grouped Conv1d"),
    ],
)
def test_the_class_of_the_module_that_holds_a_parameter_is_known(
    architecture: str, name: str, expected: str | None, tmp_path: Path
) -> None:
    assert outlined(save_config(built(architecture), tmp_path)).parameters[name].module == expected


def test_the_dtype_is_the_configs(tmp_path: Path) -> None:
    model = built("llama")
    for dtype in (torch.float16, torch.bfloat16):
        model.config.dtype = dtype
        found = outlined(save_config(model, tmp_path))
        assert {parameter.dtype for parameter in found.parameters.values()} == {str(dtype).removeprefix("torch.")}


def test_another_class_has_other_names() -> None:
    whole, base = outlined(TINY_LLAMA), outlined(TINY_LLAMA, model_class="LlamaModel")
    assert base.model_class == "LlamaModel"
    assert base.head is None
    assert {f"model.{name}" for name in base.parameters} | {"lm_head.weight"} == whole.parameters.keys()


def test_weights_are_not_looked_at(tmp_path: Path) -> None:
    shutil.copyfile(TINY_LLAMA / "config.json", tmp_path / "config.json")
    expected = outlined(TINY_LLAMA)
    assert outlined(tmp_path) == expected
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert outlined(tmp_path) == expected


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_class_that_trainers_agree_on_has_no_warning(architecture: str, tmp_path: Path) -> None:
    assert described(save_config(built(architecture), tmp_path))[1] == ()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, ["has no config.json"]),
        ("{", ["config.json", "not valid JSON"]),
        ("{}", ["config.json", "no model_type"]),
        ('{"model_type": "unheard-of"}', ["does not know the model type 'unheard-of'"]),
        ({"num_hidden_layers": 10**9}, ["config.json is broken", "num_hidden_layers"]),
        ({"num_attention_heads": 0}, ["transformers cannot"]),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}},
            ["needs code from its repository", "--trust-remote-code"],
        ),
    ],
    ids=str,
)
def test_a_config_of_no_model_is_refused(config: str | dict[str, Any] | None, words: list[str], tmp_path: Path) -> None:
    if isinstance(config, dict):
        config = json.dumps(json.loads((TINY_LLAMA / "config.json").read_text()) | config)
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError) as caught:
        outlined(tmp_path)
    assert str(tmp_path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no directory"):
        outlined(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is a file"):
        outlined(TINY_LLAMA / "config.json")


def test_a_class_that_is_none_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no model class 'LlamaForNothing'"):
        outlined(TINY_LLAMA, model_class="LlamaForNothing")
