"""The list in other hands: trainers that honour `requires_grad`, scripts that read it as text, several processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from tests.helpers.architectures import built, with_signal
from tests.helpers.axolotl import loaded
from tests.helpers.paths import ROOT, TINY_LLAMA
from tests.helpers.training import STEPS, Listed, hf_trainer, listed, trl_trainer

pytestmark = pytest.mark.slow

_GUARD = 200  # seconds, against hangs; a quiet machine needs ten

Values = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Listed:
    return listed(tmp_path_factory.mktemp("sample"), TINY_LLAMA, 25)


# Rules by which the list is read.


def by_readme(file: Path, names: list[str]) -> set[str]:
    """The snippet of our README."""
    patterns = yaml.safe_load(file.read_text())["unfrozen_parameters"]
    return {name for name in names if any(re.match(pattern, name) for pattern in patterns)}


def by_walkthrough(file: Path, names: list[str]) -> set[str]:
    """As scripts on TRL do, which know nothing of YAML."""
    patterns = [line[2:] for line in file.read_text().split("\n") if line.startswith("- ")]
    return {name for name in names if any(re.match(pattern, name) for pattern in patterns)}


def by_substring(file: Path, names: list[str]) -> set[str]:
    """As the reference's own README does."""
    entries = yaml.safe_load(file.read_text())["unfrozen_parameters"]
    return {name for name in names if any(entry in name for entry in entries)}


@pytest.mark.parametrize("architecture", ["sample", "gpt2", "gpt-oss", "t5", "gemma3"])
def test_every_rule_reads_the_same_from_the_list(tmp_path: Path, architecture: str) -> None:
    checkpoint = TINY_LLAMA
    if architecture != "sample":
        checkpoint = tmp_path / "model"
        with_signal(built(architecture)).save_pretrained(checkpoint)
    found = listed(tmp_path, checkpoint, 50)
    model = loaded(checkpoint)
    names = [name for name, _ in model.named_parameters()]
    wanted = found.wanted(model, 50)
    assert by_readme(found.list, names) == wanted
    assert by_walkthrough(found.list, names) == wanted
    # The lines that are anchored are no substrings of anything; half of a type with one layer is none.
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    ends = {name for name in names if any(model.get_parameter(name) is module.weight for module in modules)}
    assert ends
    assert by_substring(found.list, names) == wanted - ends


# Trainers.


# TRL's own defaults set it, under the name of old that transformers has deprecated since.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.usefixtures("unshared")
@pytest.mark.parametrize("trainer_of", [hf_trainer, trl_trainer])
def test_a_trainer_trains_what_was_selected_and_nothing_else(
    tmp_path: Path, sample: Listed, trainer_of: Callable[[Any, Path], Any]
) -> None:
    # In bfloat16 a step could be too small to change a weight.
    model = transformers.AutoModelForCausalLM.from_pretrained(sample.checkpoint, dtype=torch.float32)
    wanted = sample.wanted(model, 25)
    names = [name for name, _ in model.named_parameters()]
    assert wanted < set(names)
    before = values(model)
    # The snippet of our README.
    patterns = yaml.safe_load(sample.list.read_text())["unfrozen_parameters"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(re.match(pattern, name) for pattern in patterns)

    trainer = trainer_of(model, tmp_path)
    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == STEPS
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    after = values(trainer.model)
    assert list(after) == names
    assert {name for name in names if not torch.equal(before[name], after[name])} == wanted
    held = {id(parameter) for parameter in trainer.optimizer.state}
    assert held == {id(parameter) for name, parameter in trainer.model.named_parameters() if name in wanted}


def values(model: Any) -> Values:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# Several processes.


@pytest.fixture(scope="module")
def together(sample: Listed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes make of it in each wrapper, with nothing of a launcher that might run the tests."""
    results = tmp_path_factory.mktemp("together")
    unwanted = ("MASTER_", "TORCHELASTIC_", "ACCELERATE_", "HF_", "TRANSFORMERS_")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(unwanted) and k not in names}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "tests.helpers.train_together", *map(str, (sample.checkpoint, sample.list, results))],
        cwd=ROOT,
        env=inherited | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_GUARD,
    )
    assert done.returncode == 0, done.stderr
    return results


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp", "fsdp2"])
def test_processes_together_train_what_was_selected_and_nothing_else(
    together: Path, sample: Listed, wrapper: str
) -> None:
    one, other = (torch.load(together / f"{wrapper}-{rank}.pt") for rank in range(2))
    model = transformers.AutoModelForCausalLM.from_pretrained(sample.checkpoint, dtype=torch.float32)
    before = values(model)
    after: Values = one["parameters"]
    assert list(after) == list(other["parameters"]) == list(before)
    assert {name for name in before if not torch.equal(before[name], after[name])} == sample.wanted(model, 25)
    # Each had tokens of its own, and both have what came of both.
    assert one["loss"] != other["loss"]
    assert all(torch.equal(after[name], other["parameters"][name]) for name in after)


def test_fsdp_refuses_the_selection_without_the_original_parameters(together: Path) -> None:
    for rank in range(2):
        said = (together / f"fsdp-flat-{rank}.txt").read_text()
        assert re.search(r"ValueError: .*requires_grad.*use_orig_params=False", said), said
        assert not (together / f"fsdp-flat-{rank}.pt").exists()
