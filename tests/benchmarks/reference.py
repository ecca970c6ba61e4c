"""The reference tool's procedure, from its published description: the whole model in float32, one SVD after another.

`python -m tests.benchmarks.reference DIRECTORY` prints the seconds of the scan without the time to load the model.
"""

from __future__ import annotations

import math
import sys
import time

import torch
import transformers


def snr_float32(weight: torch.Tensor) -> float:
    """The score of one matrix as the reference computes it: float32 `svdvals` and quantiles."""
    values = torch.linalg.svdvals(weight.detach().float())
    spread = torch.quantile(values, 0.75) - torch.quantile(values, 0.25)
    edge = spread / 1.349 * (1 + math.sqrt(min(weight.shape) / max(weight.shape)))
    signal, noise = values[values > edge], values[values <= edge]
    ratio = signal.sum() / (noise.sum() if len(noise) else 1.0)
    return float(ratio / values.max())


def main(directory: str) -> None:
    """Load the model, scan it, print the seconds of the scan."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    started = time.perf_counter()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter):
            snr_float32(weight.reshape(1, -1) if weight.ndim == 1 else weight)
    print(time.perf_counter() - started)


if __name__ == "__main__":
    main(sys.argv[1])
