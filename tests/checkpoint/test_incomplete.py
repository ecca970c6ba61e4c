"""A checkpoint that may lack parameters, and parts of any parameter of it, against transformers' own loader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spectrum.checkpoint.checkpoint import Checkpoint, Part
from spectrum.checkpoint.reader import of_model, open_checkpoint
from spectrum.errors import CheckpointError
from tests.helpers.architectures import ARCHITECTURES, built
from tests.helpers.hub_client import serving

NORM = "model.layers.1.input_layernorm.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
State = dict[str, torch.Tensor]


def rewritten(directory: Path, change: Callable[[State], object], architecture: str = "llama") -> Path:
    """A checkpoint whose tensors have been changed."""
    built(architecture).save_pretrained(directory)
    state = load_file(directory / "model.safetensors")
    change(state)
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def parts_of(checkpoint: Checkpoint, parameter: str) -> list[Part]:
    """A parameter in its elements if it is a stack, in two blocks of rows if they can be read, else as a whole."""
    shape = checkpoint.provenance.info.parameters[parameter].shape
    if len(shape) == 3:
        return [(parameter, index) for index in range(shape[0])]
    if not shape or shape[0] < 2 or not checkpoint.reads_rows(parameter):
        return [(parameter, None)]
    return [(parameter, slice(0, 1)), (parameter, slice(1, shape[0]))]


def joined(checkpoint: Checkpoint, parameter: str) -> torch.Tensor:
    parts = parts_of(checkpoint, parameter)
    values = [checkpoint.read_part(*part) for part in parts]
    return torch.stack(values) if isinstance(parts[0][1], int) else torch.cat(values) if parts[1:] else values[0]


def assert_read_in_parts(checkpoint: Checkpoint, model: Any) -> None:
    expected = dict(model.named_parameters(remove_duplicate=False))
    parameters = checkpoint.provenance.info.parameters
    assert parameters.keys() == expected.keys()
    order = [part for name in parameters for part in parts_of(checkpoint, name)]
    with checkpoint.fetching_parts_ahead(order):
        for name in parameters:
            assert torch.equal(joined(checkpoint, name), expected[name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_of_every_parameter_are_what_transformers_loads(architecture: str, tmp_path: Path) -> None:
    model = built(architecture)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert_read_in_parts(open_checkpoint(str(tmp_path), incomplete=True), loaded)


@pytest.mark.parametrize("architecture", ["llama-tied", "qwen3-moe", "gpt-oss", "vits", "llava"])
def test_parts_are_read_from_the_hub(architecture: str, tmp_path: Path) -> None:
    model = built(architecture)
    model.save_pretrained(tmp_path / "repo")
    with serving(tmp_path / "home", tmp_path / "repo"):
        checkpoint = open_checkpoint("org/model", incomplete=True)
        assert checkpoint.remote is not None
        assert_read_in_parts(checkpoint, model)


def test_parts_of_a_model_in_memory() -> None:
    model = built("qwen3-moe")
    assert_read_in_parts(of_model(model, "model"), model)


def test_missing_parameters_are_named(tmp_path: Path) -> None:
    directory = rewritten(tmp_path, lambda state: [state.pop(name) for name in (NORM, DOWN)])
    with pytest.raises(CheckpointError, match="lacks the parameter"):
        open_checkpoint(str(directory))
    checkpoint = open_checkpoint(str(directory), incomplete=True)
    assert checkpoint.missing == (DOWN, NORM)
    assert {DOWN, NORM}.isdisjoint(checkpoint.provenance.info.parameters)
    assert "model.norm.weight" in checkpoint.provenance.info.parameters


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(rewritten(tmp_path, lambda state: None, "llama-tied")), incomplete=True)
    assert checkpoint.missing == ()
    assert checkpoint.provenance.info.tied() == {"lm_head.weight": "model.embed_tokens.weight"}


def test_tensors_without_a_place_are_named(tmp_path: Path) -> None:
    directory = rewritten(tmp_path, lambda state: state.update({"v_head.summary.weight": torch.ones(1, 32)}))
    assert open_checkpoint(str(directory), incomplete=True).unused == ("v_head.summary.weight",)


@pytest.mark.parametrize("shape", [(40, 32), (7,), (2, 3, 4), ()], ids=str)
def test_other_shapes_are_those_of_the_files(shape: tuple[int, ...], tmp_path: Path) -> None:
    value = torch.rand(shape)
    directory = rewritten(tmp_path, lambda state: state.update({DOWN: value}))
    with pytest.raises(CheckpointError, match=r"but .* has it as"):
        open_checkpoint(str(directory))
    checkpoint = open_checkpoint(str(directory), incomplete=True)
    assert checkpoint.provenance.info.parameters[DOWN].shape == shape
    assert torch.equal(checkpoint.read_part(DOWN, None), value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda key: f"_orig_mod.{key}", "torch.compile"),
        (lambda key: f"base_model.model.{key}", "adapter is not merged"),
        (lambda key: key.replace("model.", "language.", 1), "put 'model.'|replace 'language.'|in place of"),
        (lambda key: f"_fsdp_wrapped_module.{key}", "FSDP"),
    ],
)
def test_misnamed_tensors_are_an_error(change: Callable[[str], str], reason: str, tmp_path: Path) -> None:
    def rename(state: State) -> None:
        renamed = {change(key): state.pop(key) for key in list(state)}
        state.update(renamed)

    directory = rewritten(tmp_path, rename)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(str(directory), incomplete=True)


def test_a_checkpoint_of_nothing_that_the_model_has_is_an_error(tmp_path: Path) -> None:
    def replace(state: State) -> None:
        state.clear()
        state["other"] = torch.ones(2, 2)

    directory = rewritten(tmp_path, replace)
    with pytest.raises(CheckpointError, match="lacks the parameter"):
        open_checkpoint(str(directory), incomplete=True)


def test_the_quantization_is_named(tmp_path: Path, fp8_is_read: None) -> None:
    from tests.helpers.quantized import save_fp8

    save_fp8(tmp_path / "fp8", experts=False)
    assert open_checkpoint(str(tmp_path / "fp8")).quantization == "fp8"
    transformers.LlamaForCausalLM(built("llama").config).save_pretrained(tmp_path / "plain")
    assert open_checkpoint(str(tmp_path / "plain")).quantization is None
