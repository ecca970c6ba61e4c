"""A scan of a model on the Hub, compared with the same scan from disk and with the transfer alone.

    python -m tests.benchmarks.from_hub [--runs 3] [--keep DIRECTORY]

The Hub is the tests' own, on loopback, on the same cores, with a bandwidth limit and 30 ms before each answer. The
checkpoint has Llama-3.2-1B's shapes in bfloat16. For each line, three processes alternate, because other load on the
machine varies: the scan from the Hub, the scan from disk, and one that reads the same weights from the Hub and scores
nothing. Figures are medians. Each ratio is of one round, between the scan from the Hub and the longer of the other two.
*Cores* is the same ratio, to the scan from disk, of the seconds of cores: those of the process, and those that nobody
used. It is for lines where the arithmetic is the longer; other programs change it less. Memory is the peak resident
size of the process, less that of a process that only does the same imports.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from tests.benchmarks.checkpoints import stored_shapes
from tests.benchmarks.end_to_end import IMPORTS, LLAMA_1B, Run, llama_1b, measured
from tests.benchmarks.hub import MODEL, Served, served
from tests.benchmarks.machine import description

_LATENCY = 0.03  # seconds

# Reads weights as a scan does, and drops them. Arguments: the model, and the pattern of the layer types.
_READ = """
import sys
from fnmatch import fnmatch
import spectrum.compute.executor
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.compute.batches import BatchBudget, arriving_order, matrices_of, plan
checkpoint = open_checkpoint(sys.argv[1])
weights = [weight for weight in checkpoint.weights if fnmatch(weight.layer_type, sys.argv[2])]
matrices = matrices_of(arriving_order(plan(weights, None, BatchBudget(1 << 24, num_gpus=0))))
with checkpoint.fetching_ahead(matrices):
    for matrix in matrices:
        checkpoint.read(*matrix)
"""


@dataclass(frozen=True, slots=True)
class _Case:
    """Layer types to scan, by their pattern, over a line of so many bytes a second."""

    types: str
    bandwidth: float


_CASES = (_Case("*", 100e6), _Case("mlp.*", 40e6), _Case("mlp.down_proj", 20e6))


@dataclass(frozen=True, slots=True)
class _Round:
    """One run of each process of a case. sent: bytes of weight files that the Hub sent for the scan."""

    scan: Run
    disk: Run
    transfer: Run
    sent: int

    def ratio(self) -> float:
        """The time of the scan over the longer of the other two."""
        return self.scan.seconds / max(self.disk.seconds, self.transfer.seconds)

    def core_ratio(self) -> float:
        """What the scan takes of the cores, over what the one from disk takes."""
        return (self.scan.cpu + self.scan.idle) / (self.disk.cpu + self.disk.idle)


def run(case: _Case, checkpoint: Path, hub: Served, cwd: str) -> _Round:
    """Run each process of a case once."""
    hub.limit(_LATENCY, case.bandwidth)
    options = ["--layer-types", case.types, "--yes", "--rescan", "-q"]
    before = hub.sent()
    scan = measured(["-m", "spectrum", "--model-name", MODEL, *options], cwd, hub.environment)
    sent = hub.sent() - before
    disk = measured(["-m", "spectrum", "--model-name", str(checkpoint), *options], cwd)
    transfer = measured(["-c", _READ, MODEL, case.types], cwd, hub.environment)
    return _Round(scan, disk, transfer, sent)


def print_case(case: _Case, rounds: Sequence[_Round], base: float) -> None:
    """Print the row of a case. base: peak MiB of a process that only does the imports."""

    def median(value: Callable[[_Round], float]) -> float:
        return statistics.median(map(value, rounds))

    matrices = [(name, shape) for name, shape in stored_shapes(LLAMA_1B) if len(shape) == 2]
    asked = sum(2 * rows * columns for name, (rows, columns) in matrices if fnmatch(name, f"*.{case.types}.weight"))
    ratios = [one.ratio() for one in rounds]
    print(
        f"| `{case.types}` | {case.bandwidth / 1e6:.0f} MB/s | {asked / 1e9:.2f} GB "
        f"| {median(lambda one: one.sent) / asked:.5f} | {asked / case.bandwidth:.1f} s "
        f"| {median(lambda one: one.transfer.seconds):.1f} s | {median(lambda one: one.disk.seconds):.1f} s "
        f"| {median(lambda one: one.scan.seconds):.1f} s "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {median(_Round.core_ratio):.2f} "
        f"| {median(lambda one: one.transfer.cpu):.0f} / {median(lambda one: one.disk.cpu):.0f} / "
        f"{median(lambda one: one.scan.cpu):.0f} s "
        f"| {median(lambda one: one.disk.peak) - base:.0f} / {median(lambda one: one.scan.peak) - base:.0f} MiB |",
        flush=True,
    )


def main() -> None:
    """Write the checkpoint, serve it, run all cases, print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--keep", type=Path, help="directory of the checkpoint; written if missing")
    arguments.add_argument("--case", type=int, choices=range(len(_CASES)), help="this case alone")
    options = arguments.parse_args()
    cases = _CASES if options.case is None else _CASES[options.case : options.case + 1]
    print(f"{description()}; medians of {options.runs} runs\n")
    print(
        "| types | line | asked | sent / asked | asked / line | transfer | disk | Hub | ratio | cores | CPU | memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = llama_1b(options.keep, scratch)
        base = measured(IMPORTS, scratch).peak
        with served(checkpoint, scratch) as hub:
            for case in cases:
                print_case(case, [run(case, checkpoint, hub, scratch) for _ in range(options.runs)], base)


if __name__ == "__main__":
    main()
