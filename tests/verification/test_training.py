"""Trainings by real trainers, saved by themselves, and verified by the command from the files that they leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import spectrum
from tests.helpers.command import Finished
from tests.helpers.paths import TINY_LLAMA
from tests.helpers.trained import State, nudged, trained, written_list
from tests.helpers.training import Listed, hf_trainer, listed, trl_trainer
from tests.helpers.wrappers import FILTERS

pytestmark = [
    pytest.mark.slow,
    # TRL's own defaults set it, under the name of old that transformers has deprecated since.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
    *FILTERS,
]

FROZEN = "model.layers.3.self_attn.k_proj.weight"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return listed(tmp_path_factory.mktemp("sample"), TINY_LLAMA, 25)


def train(sample: Listed, directory: Path, trainer_of: Callable[[Any, Path], Any], selection: Any = None) -> Path:
    """Train in float32 what the list says, and let the trainer save the model."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(sample.checkpoint, dtype=torch.float32)
    spectrum.unfreeze(model, selection or sample.list)
    trainer = trainer_of(model, directory)
    trainer.train()
    trainer.save_model(directory / "saved")
    return directory / "saved"


@pytest.fixture(scope="module")
def by_hf(sample: Listed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(sample, tmp_path_factory.mktemp("hf"), hf_trainer)


Verify = Callable[..., Finished]


@pytest.fixture
def verify(run: Verify, sample: Listed) -> Verify:
    def verified(after: Path, *options: str | Path) -> Finished:
        return run("--model-name", sample.checkpoint, "--verify", after, *(options or ("--list", sample.list)))

    return verified


@pytest.mark.usefixtures("unshared")
@pytest.mark.parametrize("trainer_of", [hf_trainer, trl_trainer])
def test_a_training_of_the_list_is_clean(
    tmp_path: Path, sample: Listed, verify: Verify, trainer_of: Callable[[Any, Path], Any]
) -> None:
    saved = train(sample, tmp_path, trainer_of)
    for options in (("--list", sample.list), ("--top-percent", "25", "--yes", "--results-dir", sample.scores.parent)):
        done = verify(saved, *options)
        assert done.status == 0, done.err
        assert "ok: the 20 parameters on the list moved, and the other 55 did not" in done.out
        assert "75 parameters are bfloat16 in the base and float32 after training: compared exactly" in done.out
    assert verify(saved, "--list", sample.list, "--quiet").out == ""


# What goes wrong, each on the same training. `by_hf` trains in this process before `unshared` could tell.


def changed(by_hf: Path, directory: Path, change: Callable[[State], object], **config: object) -> Path:
    return trained(by_hf, directory / "changed", change, **config)


@pytest.mark.usefixtures("unshared")
def test_one_bit_of_a_frozen_parameter_is_named(tmp_path: Path, by_hf: Path, verify: Verify) -> None:
    after = changed(by_hf, tmp_path, lambda state: state.update({FROZEN: nudged(state[FROZEN])}))
    done = verify(after)
    assert done.status == 1
    assert f"problem: moved, but was not to train: {FROZEN}\n" in done.out
    assert done.said("error: ") == [f"spectrum: error: {after}: 1 problem"]


def test_a_selected_parameter_that_was_left_out_is_named(
    tmp_path: Path, sample: Listed, verify: Verify, unshared: None
) -> None:
    entries = [line[2:] for line in sample.list.read_text().splitlines() if line.startswith("- ")]
    *others, last = entries
    saved = train(sample, tmp_path, hf_trainer, written_list(tmp_path / "shorter.yaml", others))
    done = verify(saved)
    assert done.status == 1
    assert f"problem: was to train, but did not move: {last}.weight\n" in done.out


def test_a_misspelt_entry_trains_nothing_and_is_named(by_hf: Path, verify: Verify, tmp_path: Path) -> None:
    done = verify(by_hf, "--list", written_list(tmp_path / "l.yaml", ["model.layer.1.mlp"]))
    assert done.status == 1
    expected = f"on the list, but no parameter of {TINY_LLAMA}: model.layer.1.mlp; --check says what to write instead"
    assert expected in done.out


def test_nan_is_named(tmp_path: Path, by_hf: Path, verify: Verify) -> None:
    def breaks(state: State) -> None:
        state[FROZEN][3, 5] = float("nan")

    done = verify(changed(by_hf, tmp_path, breaks))
    assert done.status == 1
    assert f"problem: NaN or infinity in {FROZEN}, which the base does not have\n" in done.out


def test_a_missing_tensor_is_named(tmp_path: Path, by_hf: Path, verify: Verify) -> None:
    after = changed(by_hf, tmp_path, lambda state: state.pop(FROZEN))
    done = verify(after)
    assert done.status == 1
    assert f"problem: missing in {after}: {FROZEN}\n" in done.out


def test_a_training_in_float32_that_is_saved_in_bfloat16_is_compared_there(
    tmp_path: Path, by_hf: Path, sample: Listed, run: Verify
) -> None:
    wide: Any = transformers.AutoModelForCausalLM.from_pretrained(sample.checkpoint, dtype=torch.float32)
    wide.save_pretrained(tmp_path / "wide")

    def halve(state: State) -> State:
        return {key: value.bfloat16() for key, value in state.items()}

    after = changed(by_hf, tmp_path, halve, dtype="bfloat16")
    done = run("--model-name", tmp_path / "wide", "--verify", after, "--list", sample.list)
    assert done.status == 0, done.out
    assert "75 parameters are float32 in the base and bfloat16 after training: compared at bfloat16" in done.out


def test_a_resized_vocabulary_is_named(tmp_path: Path, by_hf: Path, verify: Verify) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(by_hf)
    model.resize_token_embeddings(260)
    model.save_pretrained(tmp_path / "resized")
    done = verify(tmp_path / "resized")
    assert done.status == 0, done.out
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert f"note: {name} is resized from 256 rows to 260; the first 256 were compared\n" in done.out


# Adapters.


def adapted(checkpoint: Path, rank: int, dtype: torch.dtype, targets: list[str]) -> Any:
    """A model with LoRA adapters that have been trained for a few steps."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=5e-3)
    tokens = torch.randint(0, 256, (4, 32), generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("saved_as", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [4, 8])
def test_a_merged_adapter_is_named(tmp_path: Path, verify: Verify, rank: int, saved_as: torch.dtype) -> None:
    targets = ["q_proj", "down_proj", "up_proj"]
    merged = adapted(TINY_LLAMA, rank, torch.float32, targets).merge_and_unload().to(saved_as)
    merged.save_pretrained(tmp_path / "merged")
    entries = [f".+{target}" for target in targets] + [".+layernorm"]
    done = verify(tmp_path / "merged", "--list", written_list(tmp_path / "list.yaml", entries))
    assert done.status == 0, done.out
    (note,) = [line for line in done.out.splitlines() if line.startswith("note: the changes of")]
    assert f"have rank {rank} or less, to the precision of {str(saved_as).removeprefix('torch.')}" in note
    assert "and 16 biases and norms on the list did not move" in note
    assert "ok: 24 of the 40 parameters on the list moved, and the other " in done.out


def test_a_matrix_that_an_adapter_left_out_is_named(tmp_path: Path, verify: Verify) -> None:
    adapted(TINY_LLAMA, 4, torch.float32, ["q_proj", "down_proj"]).merge_and_unload().save_pretrained(tmp_path / "m")
    done = verify(tmp_path / "m", "--list", written_list(tmp_path / "l.yaml", [".+q_proj", ".+down_proj", ".+up_proj"]))
    assert done.status == 1
    assert "as merging a LoRA adapter leaves them" in done.out
    assert "problem: was to train, but did not move: 8 parameters, mlp.up_proj (8 of 8)" in done.out


def test_a_full_training_is_not_taken_for_an_adapter(by_hf: Path, verify: Verify) -> None:
    assert "LoRA" not in verify(by_hf).out


def test_an_adapter_that_is_not_merged_is_noted_in_memory(sample: Listed, tmp_path: Path) -> None:
    model = adapted(TINY_LLAMA, 4, torch.bfloat16, ["q_proj"])
    listing = written_list(tmp_path / "list.yaml", [".+q_proj"])
    found = spectrum.verify(TINY_LLAMA, model, listing, show_progress=False)
    assert found.problems == (
        "only adapters can have moved, and they are not merged; verify what merge_and_unload() returns",
    )
    assert found.notes == ("16 tensors of adapters are not merged, and not compared; merge_and_unload() merges them",)


def test_an_adapter_alone_is_refused_by_name(sample: Listed, tmp_path: Path, verify: Verify) -> None:
    adapted(TINY_LLAMA, 4, torch.bfloat16, ["q_proj"]).save_pretrained(tmp_path / "adapter")
    done = verify(tmp_path / "adapter")
    assert done.status == 1
    assert "holds an adapter, not a model; merge it into its base model" in done.err
