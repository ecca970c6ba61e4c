"""Writes checkpoints whose spectra look trained: a bulk of noise, a power-law tail, a few large outliers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file


def trained_like(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A bfloat16 matrix: Gaussian noise, and a signal in a sixteenth of its directions.

    The strength of the signal falls by a power law, from about 50 times the median of the noise.
    """
    rank = max(1, min(rows, columns) // 16)
    noise = torch.randn(rows, columns, generator=generator)
    strength = 50 * math.sqrt(max(rows, columns)) * torch.arange(1, rank + 1).float() ** -0.8
    left = torch.randn(rows, rank, generator=generator) / math.sqrt(rows)
    right = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
    return ((noise + (left * strength) @ right) * 0.02).bfloat16()


def write(
    directory: Path, config: Any, make: Callable[[int, int, torch.Generator], torch.Tensor] = trained_like
) -> int:
    """Write a checkpoint of the config's causal model with one shard per layer; return its size in bytes.

    Experts are stored one by one, as in most releases, even if the model class fuses them.

    Args:
        make: returns a matrix of the given rows and columns.
    """
    generator = torch.Generator().manual_seed(0)
    directory.mkdir(parents=True)
    weight_map: dict[str, str] = {}
    parts: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in stored_shapes(config):
        part = name.split(".")[2] if ".layers." in name else "rest"
        parts.setdefault(part, []).append((name, shape))
    for part, entries in parts.items():
        file = f"model-{part}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16) if len(shape) == 1 else make(shape[0], shape[-1], generator)
            for name, shape in entries
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(directory)
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def stored_shapes(config: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Keys and shapes of a checkpoint of the config's causal model. Sets the config's `architectures`."""
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    config.architectures = [type(model).__name__]
    for name, parameter in model.named_parameters():
        yield from _stored(name, tuple(parameter.shape))


def _stored(name: str, shape: tuple[int, ...]) -> list[tuple[str, Any]]:
    """Keys and shapes of the tensors in which a parameter of the model is stored."""
    stack, _, projection = name.rpartition(".")
    if len(shape) != 3:
        return [(name, shape)]
    experts, rows, columns = shape
    fused = projection == "gate_up_proj"
    singles = [("gate_proj", rows // 2), ("up_proj", rows // 2)] if fused else [(projection, rows)]
    return [(f"{stack}.{e}.{single}.weight", (n, columns)) for e in range(experts) for single, n in singles]
