"""A list of a scan, and trainers that honour it: a few steps on a few sentences."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from spectrum.cli.entry import main
from tests.helpers.intended import intended

STEPS = 30


@dataclass(frozen=True)
class Listed:
    """A checkpoint, its scores and its list."""

    checkpoint: Path
    scores: Path
    list: Path

    def wanted(self, model: Any, percent: int) -> set[str]:
        return intended(model, json.loads(self.scores.read_text()), percent, embeddings=True)


def listed(directory: Path, checkpoint: Path, percent: int) -> Listed:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        asked = ["--model-name", str(checkpoint), "--top-percent", str(percent), "--yes", "--device", "cpu"]
        assert main([*asked, "--results-dir", "scores", "--output-dir", "list"]) == 0
    (scores,) = (path for path in directory.glob("scores/*.json") if not path.name.endswith(".meta.json"))
    (written,) = directory.glob("list/*.yaml")
    return Listed(checkpoint, scores, written)


TEXT = "Pack my box with five dozen liquor jugs, said the fox; the dog, lazy as ever, slept on. "


def tokenizer() -> Any:
    """A token for each byte, as the sample checkpoint has them."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytes_alone = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    last = max(vocabulary, key=lambda letter: vocabulary[letter])
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=bytes_alone, pad_token=last, eos_token=last)


def settings(directory: Path) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,  # what has no gradient does not move
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
        "disable_tqdm": True,
    }


def hf_trainer(model: Any, directory: Path) -> Any:
    encoded = [tokenizer()(TEXT[at:] + TEXT[:at])["input_ids"] for at in range(16)]
    rows = [{"input_ids": tokens, "labels": tokens} for tokens in encoded]
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**settings(directory)),
        train_dataset=Dataset.from_list(rows),
        data_collator=transformers.default_data_collator,
    )


def trl_trainer(model: Any, directory: Path) -> Any:
    return SFTTrainer(
        model=model,
        args=SFTConfig(**settings(directory), max_length=64),
        train_dataset=Dataset.from_list([{"text": TEXT[at:] + TEXT[:at]} for at in range(16)]),
        processing_class=tokenizer(),
    )
