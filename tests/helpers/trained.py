"""Checkpoints as training leaves them: a copy of the base in which some parameters have moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
FILE = "model.safetensors"


def trained(base: Path, directory: Path, change: Callable[[State], object], **config: object) -> Path:
    """A copy of a checkpoint in one file, after a change of its tensors; return the directory.

    change: changes the tensors in place, or returns others. config: changes of config.json.
    """
    shutil.copytree(base, directory)
    state = load_file(directory / FILE)
    changed = change(state)
    state = changed if isinstance(changed, dict) else state
    save_file({key: value.contiguous() for key, value in state.items()}, directory / FILE, metadata={"format": "pt"})
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return directory


def moving(*keys: str, step: float = 0.01) -> Callable[[State], None]:
    """A change that moves every element of these tensors."""

    def change(state: State) -> None:
        for key in keys:
            state[key] = (state[key].double() * (1 + step) + step).to(state[key].dtype)

    return change


def nudged(value: torch.Tensor) -> torch.Tensor:
    """The same values, but for the lowest bit of the last element."""
    changed = value.clone()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = changed.view(-1).view(integers[value.element_size()])
    bits[-1] ^= 1
    return changed


def written_list(file: Path, entries: Iterable[str]) -> Path:
    """A list of entries as a YAML file."""
    file.write_text("unfrozen_parameters:\n" + "".join(f"- {entry}\n" for entry in entries))
    return file
