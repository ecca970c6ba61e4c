"""Memory of weights, gradients and optimizer states in a real training, compared with the planned memory.

    python -m tests.benchmarks.training

A Llama of 0.1 billion parameters trains for one step on the CPU with each optimizer, once all of it and once the top 25
percent. The table has the bytes of torch's tensors and the growth of the process. 8-bit AdamW needs bitsandbytes.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from typing import Any

import torch
import transformers

import spectrum
from spectrum.trainers import memory

CONFIG: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 16000,
}

DTYPES = {
    "AdamW, mixed precision": torch.float32,
    "AdamW, pure bf16": torch.bfloat16,
    "8-bit AdamW, bf16": torch.bfloat16,
}


def resident() -> int:
    """The resident size of this process in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS")) << 10


def trained(optimizer: str, percent: str) -> tuple[int, int, int]:
    """Bytes planned, bytes of tensors, and growth of the process for a model that trains its top percent."""
    torch.manual_seed(0)
    before = resident()
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    model.to(DTYPES[optimizer])
    everything = percent == "100"
    selection = spectrum.select(spectrum.scan(model, show_progress=False), percent, embeddings=everything)
    spectrum.unfreeze(model, selection)
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam: Any = torch.optim.AdamW
    if optimizer.startswith("8-bit"):
        optim: Any = importlib.import_module("bitsandbytes.optim")
        adam = optim.AdamW8bit
        for module in model.modules():  # as transformers' Trainer does
            if isinstance(module, torch.nn.Embedding):
                optim.GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
    stepper = adam(chosen)
    tokens = torch.randint(0, CONFIG["vocab_size"], (1, 16))
    with torch.autocast("cpu", torch.bfloat16, enabled=optimizer == "AdamW, mixed precision"):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    stepper.step()
    tensors = [*model.parameters(), *(parameter.grad for parameter in chosen if parameter.grad is not None)]
    # Scalars, which count steps, are left out. All parameters share bitsandbytes' table of 256 values: it counts once.
    states = {id(value): value for state in stepper.state.values() for value in state.values() if _is_state(value)}
    measured = sum(value.numel() * value.element_size() for value in [*tensors, *states.values()])
    info = selection.result.info
    assert info is not None
    sizes, every = (memory.parameter_sizes(names, info) for names in (selection.trained(), info.parameters))
    planned = memory.bytes_per_device(sizes, every, optimizer, memory.UNSHARDED, 1)
    return planned, measured, resident() - before


def _is_state(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.numel() > 1


def main() -> None:
    """Print a row for each optimizer and share."""
    print("| optimizer | trained | planned | tensors | process, with activations |")
    print("|---|---|---|---|---|")
    for optimizer in memory.OPTIMIZERS:
        if optimizer.startswith("8-bit") and importlib.util.find_spec("bitsandbytes") is None:
            print(f"| {optimizer} | | | not measured: bitsandbytes is not installed | |")
            continue
        for percent, name in (("25", "top 25 percent, no embeddings"), ("100", "all")):
            # Each run has a process of its own, or it would reuse memory that another one freed.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                planned, measured, grown = pool.apply(trained, (optimizer, percent))
            row = " | ".join(f"{size / 2**20:.0f} MiB" for size in (planned, measured, grown))
            print(f"| {optimizer} | {name} | {row} |", flush=True)


if __name__ == "__main__":
    main()
