"""START HERE: how is a selection written for a trainer? A function for each format: records in, text out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from spectrum.selection.selection import Selection
from spectrum.trainers.formats.export import Export
from spectrum.trainers.formats.frozen import frozen
from spectrum.trainers.formats.lora import axolotl_lora, llamafactory, peft, trl_lora
from spectrum.trainers.formats.nemo import nemo
from spectrum.trainers.formats.selected_json import selected_json
from spectrum.trainers.formats.trained import axolotl, names, swift


class Format(NamedTuple):
    """A format of the list.

    Args:
        render: turns a selection into the content of the file.
        name: the word for the format in the file's name.
        ending: the ending of the file's name, without the dot.
        readers: who reads the list, by their own names.
        use: what the user does with the list. `LIST` stands for its path.
        can_check: whether `--check` reads the list.
        adapters: whether the list is for adapters. Their memory is not estimated.
    """

    render: Callable[[Selection], Export]
    name: str
    ending: str
    readers: tuple[str, ...]
    use: str
    can_check: bool = True
    adapters: bool = False


FORMATS: Mapping[str, Format] = {
    "axolotl": Format(
        axolotl,
        "unfrozenparameters",
        "yaml",
        ("Axolotl", "Hugging Face Trainer", "TRL"),
        "Axolotl: paste the list into your config at the top level; leave adapter unset.\n"
        "Trainer, TRL: spectrum.unfreeze(model, LIST), before you create the trainer.",
    ),
    "swift": Format(swift, "swift", "txt", ("ms-swift",), "ms-swift: swift sft --tuner_type full $(cat LIST) ..."),
    "nemo": Format(
        nemo, "nemo", "yaml", ("NeMo Automodel",), "NeMo Automodel: paste the list into your config at the top level."
    ),
    "frozen": Format(
        frozen,
        "frozen",
        "yaml",
        ("DistillKit", "H2O LLM Studio", "llm-foundry", "Ludwig"),
        "DistillKit, H2O LLM Studio, llm-foundry, Ludwig: copy the part for your trainer into its config.",
    ),
    "peft": Format(
        peft,
        "peft",
        "yaml",
        ("PEFT", "unsloth", "OpenRLHF", "verl"),
        "PEFT: LoraConfig(r=16, **yaml.safe_load(open(LIST)))\n"
        "unsloth: FastLanguageModel.get_peft_model(model, r=16, **yaml.safe_load(open(LIST)))",
        adapters=True,
    ),
    "axolotl-lora": Format(
        axolotl_lora,
        "axolotl-lora",
        "yaml",
        ("Axolotl",),
        "Axolotl: paste the list into your config at the top level; add lora_r and lora_alpha.",
        adapters=True,
    ),
    "trl-lora": Format(
        trl_lora, "trl-lora", "txt", ("TRL",), "TRL: trl sft --lora_r 16 $(cat LIST) ...", adapters=True
    ),
    "llamafactory": Format(
        llamafactory,
        "llamafactory",
        "yaml",
        ("LLaMA-Factory",),
        "LLaMA-Factory: paste the list into your config at the top level.",
        adapters=True,
    ),
    "names": Format(
        names,
        "names",
        "txt",
        ("your own program",),
        "Each line is the name of a parameter that trains; freeze all others.",
    ),
    "json": Format(
        selected_json,
        "selection",
        "json",
        ("your own program",),
        "The list is JSON for your own program.",
        can_check=False,
    ),
}


def formats_for(trainer: str) -> dict[str, str]:
    """The formats that a trainer reads, each with the trainer's name. trainer: that name or a part, in any spelling."""
    word = _letters(trainer)
    found = {name: reader for name, form in FORMATS.items() for reader in form.readers if word in _letters(reader)}
    return found if len(word) > 2 else {}


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
