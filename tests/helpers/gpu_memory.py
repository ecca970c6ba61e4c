"""A GPU with less memory than it has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from spectrum.compute import executor
from spectrum.compute.devices import warm_up


@contextmanager
def limited_memory(gpu: torch.device, size: int) -> Iterator[None]:
    """Let torch take so many more bytes of a GPU's memory. The GPU still says how much is free in truth."""
    warm_up([gpu])
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(gpu).total_memory
    most = min(1.0, (torch.cuda.memory_reserved(gpu) + size) / whole)
    torch.cuda.set_per_process_memory_fraction(most, gpu)
    try:
        with mock.patch.object(executor, "warm_up"):  # it would have no memory either
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
