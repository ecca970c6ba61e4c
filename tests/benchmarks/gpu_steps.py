"""The steps of `tests.benchmarks.gpu`, the most valuable first."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks import gpu_command, gpu_kernel, gpu_scans
from tests.benchmarks.gpu import Step

# Each with the seconds that it is expected to take on an H100.
STEPS: Sequence[Step] = [
    ("machine", gpu_kernel.describe_machine, 5),
    ("ceilings", gpu_kernel.measure_ceilings, 8),
    ("edges", gpu_kernel.check_edge_cases, 8),
    ("eigensolver", gpu_kernel.measure_eigensolver, 40),
    ("lanes", gpu_scans.scan_by_lanes, 60),
    ("newer", gpu_scans.scan_by_lanes_as_newer_torch, 60),
    ("tests", gpu_command.run_tests, 40),
    ("kernels", gpu_kernel.list_kernels, 8),
    ("tiles", gpu_kernel.measure_tiles, 10),
    ("exact", gpu_kernel.measure_exact_method, 15),
    ("command", gpu_command.run_command, 50),
    ("memory", gpu_scans.scan_with_little_memory, 20),
    ("reference", gpu_scans.compare_with_reference, 30),
    ("together", gpu_command.run_two_processes, 30),
    ("experts", gpu_scans.scan_experts, 60),
    ("large", gpu_scans.scan_large, 30),
]
