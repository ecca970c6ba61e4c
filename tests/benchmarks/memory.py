"""Peak memory of a scan, less that of its imports, for checkpoints of about 1 GB.

    python -m tests.benchmarks.memory

The checkpoints are a mixture of experts and a dense model of small matrices. Both are many times larger than the memory
that a scan needs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import transformers

from tests.benchmarks.checkpoints import write
from tests.benchmarks.end_to_end import measured

MODELS: dict[str, Any] = {
    "mixture of 64 experts a layer": transformers.Qwen3MoeConfig(
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        num_experts=64,
        num_experts_per_tok=8,
        vocab_size=16000,
        dtype="bfloat16",
    ),
    "dense, small matrices": transformers.LlamaConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=72,
        num_attention_heads=12,
        num_key_value_heads=4,
        vocab_size=16000,
        dtype="bfloat16",
    ),
}


def main() -> None:
    """Print a row for each model."""
    print("| checkpoint | size | peak memory over imports | time |")
    print("|---|---|---|---|")
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = Path(scratch) / "model"
            size = write(checkpoint, config)
            imports = "import spectrum.checkpoint.reader, spectrum.compute.executor; "
            imports += f"from transformers import {config.architectures[0]}"
            base = measured(["-c", imports], scratch).peak
            command = ["-m", "spectrum", "--model-name", str(checkpoint), "--yes", "-q"]
            run = measured(command, scratch)
            print(f"| {name} | {size / 2**20:.0f} MiB | {run.peak - base:.0f} MiB | {run.seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
