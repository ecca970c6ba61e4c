"""Time until a scan of a large checkpoint reads its first weight, and time of a cached run.

    python -m tests.benchmarks.startup [--runs 3]

The checkpoint has 100 shards with 600 tensors each, the names and shapes of a large mixture of experts. Its shards are
sparse files with headers and no data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import transformers

from tests.benchmarks.checkpoints import stored_shapes
from tests.benchmarks.end_to_end import SAMPLE, measured
from tests.benchmarks.machine import description

SHARDS = 100

CONFIG = transformers.Qwen3MoeConfig(
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_hidden_layers=62,
    num_attention_heads=32,
    num_key_value_heads=4,
    num_experts=320,
    vocab_size=151936,
    dtype="bfloat16",
)

PLAN = """
import sys, time
import spectrum.checkpoint.reader, spectrum.compute.executor
from spectrum.compute.batches import BatchBudget, plan
from transformers import Qwen3MoeForCausalLM
started = time.perf_counter()
checkpoint = spectrum.checkpoint.reader.open_checkpoint(sys.argv[1])
opened = time.perf_counter()
batches = plan(checkpoint.weights, None, BatchBudget(1 << 24, num_gpus=0))
print(opened - started, time.perf_counter() - opened, len(batches))
"""


def write_sparse(directory: Path) -> int:
    """Write the shards; return the number of tensors."""
    tensors = list(stored_shapes(CONFIG))
    weight_map = {}
    for number, part in enumerate(_parts(tensors)):
        header, offset = {}, 0
        for name, shape in part:
            size = 2
            for side in shape:
                size *= side
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file = f"model-{number:05}.safetensors"
        encoded = json.dumps(header).encode()
        with (directory / file).open("wb") as shard:
            shard.write(struct.pack("<Q", len(encoded)) + encoded)
            shard.truncate(8 + len(encoded) + offset)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    CONFIG.save_pretrained(directory)
    return len(tensors)


def _parts(tensors: list[tuple[str, tuple[int, ...]]]) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    size = -(-len(tensors) // SHARDS)
    for start in range(0, len(tensors), size):
        yield tensors[start : start + size]


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3)
    runs = arguments.parse_args().runs
    print(f"{description()}; medians of {runs} runs\n")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "large"
        checkpoint.mkdir()
        count = write_sparse(checkpoint)
        outputs = [measured(["-c", PLAN, str(checkpoint)], scratch).output.split() for _ in range(runs)]
        opening, planning = (statistics.median(float(output[i]) for output in outputs) for i in (0, 1))
        imports = statistics.median(
            measured(["-c", "import spectrum.checkpoint.reader, spectrum.compute.executor"], scratch).seconds
            for _ in range(runs)
        )
        command = ["-m", "spectrum", "--model-name", str(SAMPLE), "--yes"]
        measured(command, scratch)
        cached = statistics.median(measured(command, scratch).seconds for _ in range(runs))
        usage = statistics.median(measured(["-m", "spectrum", "--help"], scratch).seconds for _ in range(runs))
    print("| what | time |")
    print("|---|---|")
    print(f"| imports of a scan | {imports:.1f} s |")
    print(f"| {count} tensors in {SHARDS} shards: check headers, build on meta, map names | {opening:.1f} s |")
    print(f"| plan their batches | {planning:.2f} s |")
    print(f"| cached run, whole process | {cached:.2f} s |")
    print(f"| --help | {usage:.2f} s |")


if __name__ == "__main__":
    main()
