"""Time and accuracy of scoring real models' shapes, against the reference's SVD and against the arithmetic's limit.

    python -m tests.benchmarks.kernel [--device cuda] [--runs 3] [WORKLOAD ...]

`spectrum` scans the matrices of a workload from memory, on all lanes of the device. The reference decomposes one after
the other, with float32 `svdvals` on the whole device; of alike matrices one is timed, for all of them. Runs are
interleaved, figures are medians. The limit is `k^2 m + 4/3 k^3` operations, Gram matrix and reduction, for each matrix
at the rate of the device's float64 matrix product. The error is the largest against a float64 SVD.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable

import torch

from spectrum.layers import LayerWeight
from tests.benchmarks.checkpoints import trained_like
from tests.benchmarks.machine import description
from tests.benchmarks.reference import snr_float32
from tests.oracle import oracle_snr
from tests.scanned import scan

Shape = tuple[int, int]

# Matrices of one layer by shape, and how many such layers the model has.
WORKLOADS: dict[str, tuple[Counter[Shape], int]] = {
    "Llama-3-8B": (Counter({(4096, 4096): 2, (1024, 4096): 2, (14336, 4096): 2, (4096, 14336): 1}), 32),
    "small experts, 512 x 1024": (Counter({(512, 1024): 128, (1024, 512): 64}), 20),
    "Qwen3-30B-A3B's experts": (Counter({(768, 2048): 32, (2048, 768): 16}), 384),
    "Phi-3.5-mini": (Counter({(9216, 3072): 1, (3072, 3072): 1, (16384, 3072): 1, (3072, 8192): 1}), 32),
    "Llama-3-70B": (Counter({(8192, 8192): 2, (1024, 8192): 2, (28672, 8192): 2, (8192, 28672): 1}), 80),
    "4096 x 4096": (Counter({(4096, 4096): 8}), 1),
    "4096 x 14336": (Counter({(4096, 14336): 8}), 1),
}
ON_CPU = ["Llama-3-8B", "small experts, 512 x 1024", "Qwen3-30B-A3B's experts"]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of work, with all that it launched."""
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def product_rate(device: torch.device) -> float:
    """Floating-point operations a second of the device's float64 matrix product."""
    n = 4096
    a = torch.randn(n, n, dtype=torch.float64, device=device)
    return 2 * n**3 / min(seconds(lambda: a @ a, device) for _ in range(5))


def operations(shape: Shape) -> float:
    """Least arithmetic to score a matrix: half of the Gram matrix, and the reduction to tridiagonal form."""
    k, m = sorted(shape)
    return k * k * m + 4 / 3 * k**3


def measure(name: str, device: torch.device, runs: int, *, check: bool) -> None:
    """Print a workload's row."""
    shapes, layers = WORKLOADS[name]
    generator = torch.Generator().manual_seed(0)
    samples = {shape: trained_like(*shape, generator) for shape in shapes}
    matrices = {f"{shape}.{i}": samples[shape] for shape, count in shapes.items() for i in range(count)}
    weights = [
        LayerWeight(key, "layer", key, tuple(value.shape), (value.shape[0], value.shape[1]), 1, "bfloat16")
        for key, value in matrices.items()
    ]
    on_device = {shape: sample.to(device) for shape, sample in samples.items()}

    def ours() -> dict[str, float]:
        return {score.name: score.snr for score in scan(weights, lambda w, i: matrices[w.parameter], [device])}

    scores = ours()
    own, reference = [], []
    for _ in range(runs):
        own.append(seconds(ours, device))
        theirs = 0.0
        for shape, count in shapes.items():
            sample = on_device[shape]
            theirs += count * seconds(lambda sample=sample: snr_float32(sample), device)  # type: ignore[misc]
        reference.append(theirs)
    limit = sum(count * operations(shape) for shape, count in shapes.items()) / product_rate(device)
    error = "not checked"
    if check:
        expected = {shape: oracle_snr(sample.double().numpy()) for shape, sample in samples.items()}
        error = f"{max(abs(scores[f'{shape}.0'] / value - 1) for shape, value in expected.items()):.0e}"
    us, them = statistics.median(own), statistics.median(reference)
    memory = f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else ""
    print(
        f"| {name} | {shapes.total()} | {us:.2f} s | {them:.2f} s | {them / us:.1f} | {us / limit:.2f} | {error} | "
        f"{us * layers:.0f} s | {memory} |",
        flush=True,
    )


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--no-check", action="store_true", help="leave out the float64 SVD")
    arguments.add_argument("workloads", nargs="*", help=f"of {', '.join(WORKLOADS)}")
    options = arguments.parse_args()
    device = torch.device(options.device)
    print(f"{description(device)}; medians of {options.runs} runs\n")
    print("| shapes of one layer | matrices | spectrum | reference | ratio | over limit | error | whole model | GPU |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.workloads or (ON_CPU if device.type == "cpu" else WORKLOADS):
        measure(name, device, options.runs, check=not options.no_check)


if __name__ == "__main__":
    main()
