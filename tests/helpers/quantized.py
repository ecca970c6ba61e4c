"""Tiny quantized checkpoints, and what they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers.architectures import llama_like, mixture

FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}

State = dict[str, torch.Tensor]


def quantized_fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks of 128 x 128 with a scale each: the fp8 values, the scales, and what they stand for in bfloat16."""
    rows, columns = weight.shape[0] // 128, weight.shape[1] // 128
    blocks = weight.float().reshape(rows, 128, columns, 128)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    values = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
    meant = (values.float() * scales[:, None, :, None]).bfloat16()
    return values.reshape(weight.shape), scales, meant.reshape(weight.shape)


def causal_lm(config: Any) -> Any:
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_config(config)


def save(model: Any, directory: Path, quantization: dict[str, Any] | None) -> State:
    """Save a model of random values, with this quantization in its config; return its tensors."""
    torch.manual_seed(0)
    model = model.to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
    model.save_pretrained(directory)
    if quantization:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return load_file(directory / "model.safetensors")


def store(directory: Path, state: State) -> None:
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})


def save_fp8(directory: Path, *, experts: bool) -> State:
    """A checkpoint as DeepSeek-V3's: fp8 projections with block scales. Returns what it stands for, by stored key."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 4, "head_dim": 32}
    config = (
        mixture(transformers.Qwen3MoeConfig, moe_intermediate_size=128, **sizes)
        if experts
        else llama_like(transformers.LlamaConfig, **sizes)
    )
    stored: State = {}
    meant: State = {}
    for key, value in save(causal_lm(config), directory, FP8).items():
        if "_proj" in key:
            stored[key], stored[f"{key}_scale_inv"], meant[key] = quantized_fp8(value)
        else:
            stored[key] = meant[key] = value
    store(directory, stored)
    return meant


def save_mxfp4(directory: Path) -> State:
    """A checkpoint as gpt-oss's: experts in 4 bits, 32 to a scale, transposed. Returns what it stands for."""
    config = mixture(transformers.GptOssConfig, hidden_size=64, intermediate_size=96, head_dim=16, num_local_experts=4)
    stored: State = {}
    meant: State = {}
    for key, value in save(transformers.GptOssForCausalLM(config), directory, MXFP4).items():
        if key.endswith(("gate_up_proj", "down_proj")):
            experts, rows, columns = value.shape
            blocks = torch.randint(0, 256, (experts, columns, rows // 32, 16), dtype=torch.uint8)
            scales = torch.randint(118, 124, (experts, columns, rows // 32), dtype=torch.uint8)
            nibbles = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
            values = FP4_VALUES[nibbles] * torch.exp2(scales.float() - 127)[..., None]
            meant[key] = values.reshape(experts, columns, rows).transpose(1, 2).bfloat16()
            stored[f"{key}_blocks"], stored[f"{key}_scales"] = blocks, scales
        else:
            stored[key] = meant[key] = value
    store(directory, stored)
    return meant
