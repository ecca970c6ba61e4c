"""Llama-shaped checkpoints whose spectra look trained: a noise bulk, a power-law tail, a few large outliers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file


def trained_like(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A bfloat16 matrix: Gaussian noise, and a sixteenth of its directions over it.

    Their strengths fall as a power law from about 50 times the bulk's median.
    """
    rank = max(1, min(rows, columns) // 16)
    noise = torch.randn(rows, columns, generator=generator)
    strength = 50 * math.sqrt(max(rows, columns)) * torch.arange(1, rank + 1).float() ** -0.8
    left = torch.randn(rows, rank, generator=generator) / math.sqrt(rows)
    right = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
    return ((noise + (left * strength) @ right) * 0.02).bfloat16()


def write_llama(directory: Path, config: transformers.LlamaConfig, seed: int = 0) -> int:
    """Write a sharded LlamaForCausalLM checkpoint, a layer a shard; return its size in bytes."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        if parameter.ndim == 1:
            value = torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:
            value = trained_like(parameter.shape[0], parameter.shape[1], generator)
        shards.setdefault(f"model-{part}.safetensors", {})[name] = value
    directory.mkdir(parents=True)
    for file, tensors in shards.items():
        save_file(tensors, directory / file, metadata={"format": "pt"})
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(directory)
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))
