"""The steps of `tests.benchmarks.gpu`, the most valuable first."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks import gpu_command, gpu_kernel, gpu_scans
from tests.benchmarks.gpu import Step

# Each with the seconds that it is expected to take on an H200.
STEPS: Sequence[Step] = [
    ("machine", gpu_kernel.describe_machine, 2),
    ("ceilings", gpu_kernel.measure_ceilings, 6),
    ("edges", gpu_kernel.check_edge_cases, 5),
    ("tests", gpu_command.run_tests, 28),
    ("newer", gpu_scans.scan_by_lanes_as_newer_torch, 50),
    ("large", gpu_scans.scan_large, 12),
    ("together", gpu_command.run_two_processes, 22),
    ("memory", gpu_scans.scan_with_little_memory, 14),
    ("reference", gpu_scans.compare_with_reference, 20),
    ("command", gpu_command.run_command, 55),
    ("scan", gpu_scans.scan, 45),
    ("eigensolver", gpu_kernel.measure_eigensolver, 12),
    ("batches", gpu_kernel.measure_batches, 45),
    ("exact", gpu_kernel.measure_exact_method, 8),
    ("experts", gpu_scans.scan_experts, 25),
    ("kernels", gpu_kernel.list_kernels, 6),
    ("tiles", gpu_kernel.measure_tiles, 4),
]
