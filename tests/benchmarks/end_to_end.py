"""Time and peak memory of the whole command, compared with the reference's procedure on the same checkpoint.

    python -m tests.benchmarks.end_to_end [--runs 3] [--keep DIRECTORY]

There are two checkpoints: the sample, and one with Llama-3.2-1B's shapes in bfloat16. Runs of both programs alternate,
because other load on the machine varies; figures are medians. Memory is the peak resident size of the process, less
that of a process that only does the same imports. The limit is explained in `tests.benchmarks.kernel`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import transformers

from tests.benchmarks.checkpoints import stored_shapes, write
from tests.benchmarks.kernel import operations, product_rate
from tests.benchmarks.machine import description

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "data" / "tiny-llama"

LLAMA_1B = transformers.LlamaConfig(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128256,
    tie_word_embeddings=True,
    dtype="bfloat16",
)

IMPORTS = [
    "-c",
    "import spectrum.checkpoint.reader, spectrum.compute.executor; from transformers import LlamaForCausalLM",
]
REFERENCE_IMPORTS = ["-c", "import torch; from transformers import LlamaForCausalLM"]


# The peak that Linux reports for a process includes its parent's size at the fork, so the parent must be small.
_LAUNCHER = """
import os, sys, time
def idle():
    with open("/proc/stat") as stat:
        return sum(map(int, stat.readline().split()[4:6])) / os.sysconf("SC_CLK_TCK")
started, idle_before = time.perf_counter(), idle()
child = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[2:]], os.environ)
_, status, usage = os.wait4(child, 0)
with open(sys.argv[1], "w") as report:
    seconds, cpu = time.perf_counter() - started, usage.ru_utime + usage.ru_stime
    print(seconds, cpu, idle() - idle_before, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status), file=report)
"""


@dataclass(frozen=True, slots=True)
class Run:
    """A process that has ended.

    Args:
        seconds: wall-clock.
        cpu: CPU seconds on all cores.
        idle: seconds in which a core had nothing to do, of all cores together. With `cpu`, this is what the process
            needs of the machine, whatever other programs take.
        peak: resident MiB.
        output: what it printed.
    """

    seconds: float
    cpu: float
    idle: float
    peak: float
    output: str


def measured(arguments: list[str], cwd: str, environment: Mapping[str, str] = {}) -> Run:
    """Run this Python with arguments and, besides those of this process, these environment variables."""
    with tempfile.NamedTemporaryFile("r") as report:
        done = subprocess.run(
            [sys.executable, "-S", "-c", _LAUNCHER, report.name, *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
        )
        seconds, cpu, idle, peak, status = (float(word) for word in report.read().split())
    if status:
        raise SystemExit(f"{arguments} failed: {done.stderr}")
    return Run(seconds, cpu, idle, peak, done.stdout)


def llama_1b(kept: Path | None, scratch: str) -> Path:
    """A checkpoint with Llama-3.2-1B's shapes, in bfloat16.

    Args:
        kept: its directory, which is written if it is missing; None for one in the scratch directory.
    """
    directory = kept or Path(scratch) / "llama-1b"
    if not directory.exists():
        write(directory, LLAMA_1B)
    return directory


def compare(name: str, checkpoint: Path, runs: int) -> None:
    """Print a row for the command and a row for the reference's procedure."""
    ours, theirs, scans = [], [], []
    our_memory, their_memory = [], []
    with tempfile.TemporaryDirectory() as cwd:
        base = measured(IMPORTS, cwd).peak
        their_base = measured(REFERENCE_IMPORTS, cwd).peak
        for _ in range(runs):
            command = ["-m", "spectrum", "--model-name", str(checkpoint), "--yes", "--rescan", "-q"]
            run = measured(command, cwd)
            ours.append(run.seconds)
            our_memory.append(run.peak - base)
            run = measured(["-m", "tests.benchmarks.reference", str(checkpoint)], cwd)
            theirs.append(run.seconds)
            scans.append(float(run.output))
            their_memory.append(run.peak - their_base)
    us, them, scan = (statistics.median(values) for values in (ours, theirs, scans))
    print(f"| {name} | spectrum, whole process | {us:.1f} s | {statistics.median(our_memory):.0f} MiB | |")
    print(
        f"| {name} | reference's procedure | {them:.1f} s, of which scan {scan:.1f} s | "
        f"{statistics.median(their_memory):.0f} MiB | {them / us:.1f} (scan alone: {scan / us:.1f}) |"
    )


def main() -> None:
    """Write the checkpoints, run both programs, print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--keep", type=Path, help="directory of the large checkpoint; written if missing")
    options = arguments.parse_args()
    print(f"{description()}; medians of {options.runs} runs\n")
    print("| checkpoint | what | time | memory over imports | ratio |")
    print("|---|---|---|---|---|")
    compare("sample", SAMPLE, options.runs)
    with tempfile.TemporaryDirectory() as scratch:
        compare("Llama-3.2-1B's shapes", llama_1b(options.keep, scratch), options.runs)
    work = sum(operations(shape) for _, shape in stored_shapes(LLAMA_1B) if len(shape) == 2)
    rate = product_rate()
    print(f"\nLimit: {work:.3g} operations at {rate:.3g} per second, {work / rate:.1f} s")


if __name__ == "__main__":
    main()
