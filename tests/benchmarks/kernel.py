"""Time and accuracy of scores for real models' shapes, compared with the reference's SVD and the limit of arithmetic.

    python -m tests.benchmarks.kernel [--runs 3] [--no-check] [WORKLOAD ...]

`spectrum` scans the matrices of a workload from memory, on the CPU. The reference decomposes one matrix after the other
with float32 `svdvals` on all cores; it is timed on one matrix of each shape. Runs of both alternate; figures are
medians. The limit is the time of `k^2 m + 4/3 k^3` operations per matrix (Gram matrix and reduction) at the rate of the
machine's float64 matrix product. The error is the largest relative to a float64 SVD. `tests.benchmarks.gpu` does the
same for a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import torch

from spectrum.records import LayerWeight
from tests.benchmarks.checkpoints import trained_like
from tests.benchmarks.machine import description
from tests.benchmarks.reference import snr_float32
from tests.helpers.oracle import oracle_snr
from tests.helpers.scanned import scan

Shape = tuple[int, int]

# Matrices of one layer by shape, and how many such layers the model has.
WORKLOADS: dict[str, tuple[Counter[Shape], int]] = {
    "Llama-3-8B": (Counter({(4096, 4096): 2, (1024, 4096): 2, (14336, 4096): 2, (4096, 14336): 1}), 32),
    "small experts, 512 x 1024": (Counter({(512, 1024): 128, (1024, 512): 64}), 20),
    "Qwen3-30B-A3B's experts": (Counter({(768, 2048): 32, (2048, 768): 16}), 384),
}


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def product_rate() -> float:
    """Floating-point operations per second of the float64 matrix product on all cores."""
    n = 4096
    a = torch.randn(n, n, dtype=torch.float64)
    return 2 * n**3 / min(seconds(lambda: a @ a) for _ in range(5))


def operations(shape: Shape) -> float:
    """The fewest operations to score a matrix: half of the Gram matrix, and its reduction to tridiagonal form."""
    k, m = sorted(shape)
    return k * k * m + 4 / 3 * k**3


def measure(name: str, runs: int, *, check: bool) -> None:
    """Print the row of a workload."""
    shapes, layers = WORKLOADS[name]
    generator = torch.Generator().manual_seed(0)
    samples = {shape: trained_like(*shape, generator) for shape in shapes}
    matrices = {f"{shape}.{i}": samples[shape] for shape, count in shapes.items() for i in range(count)}
    weights = [
        LayerWeight(key, "layer", key, tuple(value.shape), (value.shape[0], value.shape[1]), 1, "bfloat16")
        for key, value in matrices.items()
    ]
    cpu = [torch.device("cpu")]

    def ours() -> dict[str, float]:
        return {score.name: score.snr for score in scan(weights, lambda w, i: matrices[w.parameter], cpu)}

    scores = ours()
    own, reference = [], []
    for _ in range(runs):
        own.append(seconds(ours))
        reference.append(sum(count * seconds(partial(snr_float32, samples[shape])) for shape, count in shapes.items()))
    limit = sum(count * operations(shape) for shape, count in shapes.items()) / product_rate()
    error = "not checked"
    if check:
        expected = {shape: oracle_snr(sample.double().numpy()) for shape, sample in samples.items()}
        error = f"{max(abs(scores[f'{shape}.0'] / value - 1) for shape, value in expected.items()):.0e}"
    us, them = statistics.median(own), statistics.median(reference)
    print(
        f"| {name} | {shapes.total()} | {us:.2f} s | {them:.2f} s | {them / us:.1f} | {us / limit:.2f} | {error} | "
        f"{us * layers:.0f} s |",
        flush=True,
    )


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--no-check", action="store_true", help="skip the float64 SVD")
    arguments.add_argument("workloads", nargs="*", help=f"from {', '.join(WORKLOADS)}")
    options = arguments.parse_args()
    print(f"{description()}; medians of {options.runs} runs\n")
    print("| shapes of one layer | matrices | spectrum | reference | ratio | over limit | error | whole model |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.workloads or WORKLOADS:
        measure(name, options.runs, check=not options.no_check)


if __name__ == "__main__":
    main()
