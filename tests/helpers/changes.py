"""Changes to a copy of the sample checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

SHARD = "model-00001-of-00002.safetensors"


def replace_bytes(file: Path, old: bytes, new: bytes) -> None:
    data = file.read_bytes()
    assert (data.count(old), len(new)) == (1, len(old))
    file.write_bytes(data.replace(old, new))


def change_header(model: Path) -> None:
    replace_bytes(model / SHARD, b'{"format":"pt"}', b'{"format":"tp"}')


def train_one_layer(model: Path) -> None:
    weight = load_file(model / SHARD)["model.layers.2.self_attn.k_proj.weight"]
    old, new = (tensor.view(torch.uint8).numpy().tobytes() for tensor in (weight, weight * 1.5))
    replace_bytes(model / SHARD, old, new)
