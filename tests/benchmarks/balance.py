"""Time and memory to scan large models, and how evenly processes share the work, from shapes alone.

    python -m tests.benchmarks.balance [--rate 60]

Work is counted as in `tests.benchmarks.kernel`. `--rate` is the speed of a device, in 1e9 operations per second: the
work that the kernel benchmark counts over the time that it measures. Reading is the rate at which weights must arrive
so that a device does not wait. Memory is that of the largest matrix: as stored, its Gram matrix, and the eigensolver's
copy. Balance is the work of the busiest process over the mean, if each has a GPU with room for batches of 16 GiB.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from spectrum.compute.batches import BatchBudget, batch_cost, plan, share
from spectrum.compute.workspace import call_bytes
from spectrum.records import LayerWeight
from tests.benchmarks.kernel import operations

PROCESSES = (1, 8, 64)


def _llama(hidden: int, intermediate: int, layers: int, heads: int) -> Any:
    return transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        vocab_size=128256,
        dtype="bfloat16",
    )


def _deepseek(experts: int, heads: int, layers_without_experts: int, vocabulary: int) -> Any:
    return transformers.DeepseekV3Config(
        n_routed_experts=experts,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        first_k_dense_replace=layers_without_experts,
        vocab_size=vocabulary,
        dtype="bfloat16",
    )


# Each model with the bytes per weight: the last two are stored in 8 bits.
MODELS: dict[str, tuple[Any, int]] = {
    "Llama-3.1-8B": (_llama(4096, 14336, 32, 32), 2),
    "Llama-3.1-70B": (_llama(8192, 28672, 80, 64), 2),
    "Llama-3.1-405B": (_llama(16384, 53248, 126, 128), 2),
    "DeepSeek-V3, 671B": (_deepseek(256, 128, 3, 129280), 1),
    "Kimi-K2, 1T": (_deepseek(384, 64, 1, 163840), 1),
}


def weights(config: Any) -> Iterator[LayerWeight]:
    """All weight matrices of the config's model."""
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        if len(shape) > 1:
            count = shape[0] if len(shape) == 3 else 1
            yield LayerWeight(name, "layer", name, shape, (shape[-2], shape[-1]), count, "bfloat16")


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rate", type=float, default=60.0, help="speed of one device, in 1e9 operations per second")
    rate = arguments.parse_args().rate * 1e9
    over = " / ".join(map(str, PROCESSES))
    print(f"| model | matrices | work | one device, {rate:.2g}/s | reading | memory | balance, {over} | planned in |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (config, itemsize) in MODELS.items():
        layers = list(weights(config))
        work = sum(layer.num_matrices * operations(layer.matrix_shape) for layer in layers)
        size = sum(layer.num_matrices * layer.matrix_shape[0] * layer.matrix_shape[1] * itemsize for layer in layers)
        started = time.perf_counter()
        balance = []
        for count in PROCESSES:
            batches = plan(layers, None, BatchBudget(16 << 30, num_gpus=count))
            loads = [sum(map(batch_cost, part)) for part in share(batches, count)]
            balance.append(max(loads) / (sum(loads) / count))
        planned = (time.perf_counter() - started) / len(PROCESSES)
        most = max(call_bytes(1, layer.matrix_shape, layer.dtype, gpu=False) for layer in layers)
        print(
            f"| {name} | {sum(layer.num_matrices for layer in layers)} | {work:.2g} | {work / rate / 3600:.2g} h | "
            f"{size * rate / work / 1e6:.0f} MB/s | {most / 2**30:.1f} GiB | "
            f"{' / '.join(f'{value:.2f}' for value in balance)} | {planned:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
