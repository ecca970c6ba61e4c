"""What else lies in a model's directory: other weights beside the ones in use, and an adapter beside merged weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from spectrum.checkpoint.local import ResolvedModel
from spectrum.checkpoint.reader import describe_model, open_checkpoint
from spectrum.errors import CheckpointError
from tests.helpers.command import tiny_llama

State = dict[str, torch.Tensor]
Damage = Callable[[Path, State], object]

INDEX = "model.safetensors.index.json"


def save(path: Path, state: State) -> None:
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt"})


def empty(path: Path, state: State) -> None:
    """As ZeRO-3 leaves them, if they are saved without being gathered."""
    save(path, {key: torch.zeros(0) for key in state})


def cut(path: Path, state: State) -> None:
    save(path, state)
    path.write_bytes(path.read_bytes()[:-10])


def no_bytes(path: Path, state: State) -> None:
    path.write_bytes(b"")


def lacking(path: Path, state: State) -> None:
    save(path, {key: value for key, value in state.items() if "mlp" not in key})


def narrower(path: Path, state: State) -> None:
    save(path, {key: value[:3].contiguous() for key, value in state.items()})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in shards."""
    directory = tiny_llama(tmp_path / "model", shards_of="1KB", num_hidden_layers=2)
    assert (directory / INDEX).is_file()
    return directory


def read(file: Path) -> State:
    """What a file holds, in memory: the file will be overwritten."""
    return {key: value.clone() for key, value in load_file(file).items()}


def state_of(model: Path) -> State:
    return {key: value for shard in model.glob("model-*.safetensors") for key, value in read(shard).items()}


def as_single(model: Path, name: str) -> Path:
    """Have the model's weights in a single file of this name instead of its shards."""
    state = state_of(model)
    for file in model.glob("model*"):
        file.unlink()
    save(model / name, state)
    return model


def refusal(model: Path) -> str:
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(model))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("damage", [empty, cut, no_bytes, lacking, narrower])
def test_sound_shards_beside_a_bad_single_file_are_named(damage: Damage, model: Path) -> None:
    damage(model / "model.safetensors", state_of(model))
    message = refusal(model)
    assert message.endswith(f"; the shards of {INDEX} can be read: to scan them, move model.safetensors out of {model}")
    assert message.count("can be read") == 1
    (model / "model.safetensors").unlink()
    assert open_checkpoint(str(model)).weights


def test_sound_shards_are_named_in_a_snapshot_too(model: Path) -> None:
    # A snapshot has no fingerprint: its headers are read later.
    cut(model / "model.safetensors", state_of(model))
    with pytest.raises(CheckpointError, match=f"the shards of {INDEX} can be read"):
        open_checkpoint("org/model", resolved=ResolvedModel(model, "a" * 40))


@pytest.mark.parametrize("damage", [empty, cut])
def test_a_sound_torch_archive_beside_bad_safetensors_files_is_named(damage: Damage, model: Path) -> None:
    state = state_of(as_single(model, "pytorch_model.bin")) or torch.load(model / "pytorch_model.bin")
    damage(model / "model.safetensors", state)
    message = refusal(model)
    assert message.endswith(f"; pytorch_model.bin can be read: to scan it, move model.safetensors out of {model}")
    (model / "model.safetensors").unlink()
    assert open_checkpoint(str(model)).weights


def test_a_sound_torch_archive_beside_shards_of_which_one_is_missing_is_named(model: Path) -> None:
    save(model / "pytorch_model.bin", state_of(model))
    next(iter(model.glob("model-*.safetensors"))).unlink()
    assert f"; pytorch_model.bin can be read: to scan it, move {INDEX} out of {model}" in refusal(model)
    (model / INDEX).unlink()
    assert open_checkpoint(str(model)).weights


def test_what_goes_before_sound_weights_is_named_with_all_its_files(model: Path) -> None:
    save(model / "pytorch_model.bin", state_of(model))
    for file in (model / "model.safetensors", next(iter(model.glob("model-*.safetensors")))):
        no_bytes(file, {})
    message = refusal(model)
    assert message.endswith(f"can be read: to scan it, move model.safetensors, {INDEX} out of {model}")
    (model / "model.safetensors").unlink()
    (model / INDEX).unlink()
    assert open_checkpoint(str(model)).weights


def wide(path: Path, state: State) -> None:
    save(path, {key: torch.cat([value, value]) for key, value in state.items()})


@pytest.mark.parametrize("stray", [narrower, wide])
@pytest.mark.parametrize("setting", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_weights_that_the_config_does_not_describe_either_are_not_advised(
    stray: Damage, setting: str, model: Path
) -> None:
    stray(model / "pytorch_model.bin", state_of(model))
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {setting: 2 * settings[setting]}))
    message = refusal(model)
    assert "config.json" in message
    assert "can be read" not in message


def test_shards_that_are_damaged_too_are_not_advised(model: Path) -> None:
    empty(model / "model.safetensors", state_of(model))
    shard = next(iter(model.glob("model-*.safetensors")))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "can be read" not in refusal(model)


def test_empty_shards_are_not_advised(model: Path) -> None:
    cut(model / "model.safetensors", state_of(model))
    for shard in model.glob("model-*.safetensors"):
        empty(shard, read(shard))
    assert "can be read" not in refusal(model)


def test_shards_that_hold_the_same_are_not_advised(model: Path) -> None:
    # What the class lacks is in neither.
    save(model / "model.safetensors", state_of(model))
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(model), model_class="LlamaForSequenceClassification")
    assert "score.weight" in str(refused.value)
    assert "can be read" not in str(refused.value)


@pytest.mark.parametrize("stray", [empty, cut, no_bytes])
def test_a_sound_single_file_is_read_whatever_lies_beside_it(stray: Damage, model: Path) -> None:
    state = state_of(model)
    save(model / "model.safetensors", state)
    for shard in model.glob("model-*.safetensors"):
        stray(shard, read(shard))
    stray(model / "pytorch_model.bin", state)
    (model / "model.safetensors.tmp").write_bytes(b"")
    checkpoint = open_checkpoint(str(model))
    for weight in checkpoint.weights:
        assert torch.equal(checkpoint.read(weight, 0), state[weight.parameter].reshape(weight.matrix_shape))


# An adapter beside merged weights.

peft_calls_by_old_names = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def with_adapter(model: Path) -> Path:
    base: Any = transformers.LlamaForCausalLM.from_pretrained(model)
    adapted: Any = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(model)
    assert (model / "adapter_config.json").is_file()
    return model


def names_loaded(model: Path) -> set[str]:
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(model)
    return {name for name, _ in loaded.named_parameters()}


@peft_calls_by_old_names
def test_an_adapter_beside_merged_weights_is_warned_of_where_transformers_attaches_it(model: Path) -> None:
    plain = open_checkpoint(str(model))
    assert plain.warnings == ()
    with_adapter(model)
    found = open_checkpoint(str(model))
    (warning,) = found.warnings
    assert f"{model} also holds an adapter" in warning
    assert found.provenance.info.parameters.keys() == plain.provenance.info.parameters.keys()
    assert names_loaded(model) - found.provenance.info.parameters.keys()
    _, described, _ = describe_model(str(model), revision=None, model_class=None, trust_remote_code=False)
    assert described == (warning,)

    # What the warning says to do.
    assert warning.endswith("remove adapter_config.json and adapter_model.*")
    for file in [model / "adapter_config.json", *model.glob("adapter_model.*")]:
        file.unlink()
    assert open_checkpoint(str(model)).warnings == ()
    assert names_loaded(model) == found.provenance.info.parameters.keys()


@peft_calls_by_old_names
def test_an_adapter_beside_weights_of_a_repository_is_warned_of(model: Path, tmp_path: Path) -> None:
    snapshot = Path(shutil.copytree(with_adapter(model), tmp_path / "models--org--model" / "snapshots" / ("a" * 40)))
    found = open_checkpoint("org/model", resolved=ResolvedModel(snapshot, snapshot.name))
    (warning,) = found.warnings
    assert "the repository also holds an adapter" in warning
    assert "loads the adapter's base model in place of these weights" in warning


def test_a_directory_of_that_name_is_no_adapter(model: Path) -> None:
    (model / "adapter_config.json").mkdir()
    assert open_checkpoint(str(model)).warnings == ()
    assert json.loads((model / "config.json").read_text())["model_type"] == "llama"
