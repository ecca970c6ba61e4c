"""Describes the machine of a measurement."""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path

import torch
import transformers


def description(device: torch.device | None = None) -> str:
    """The processor or GPU, the number of cores, versions and date in one line."""
    name = platform.machine()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        name = next(line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    where = f"{torch.get_num_threads()} cores of {name}"
    if device is not None and device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, {where}"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{where}; {versions}; {date.today().isoformat()}"
