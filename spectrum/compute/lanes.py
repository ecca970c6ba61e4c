"""What the lanes of a device share: its memory and its time."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from spectrum.compute.batches import WeightBatch, batch_bytes
from spectrum.compute.devices import lanes, memory_budget


class MemoryBudget:
    """A limited amount that batches share. A batch may take more than all of it, while no other has any."""

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._closed = False
        self._changed = threading.Condition()
        self._first = threading.Lock()  # held by who has waited longest, so that small takes do not overtake large ones

    def take(self, size: int) -> None:
        """Take an amount, as soon as so much is free."""
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._closed or self._free >= min(size, self.size))
            self._free -= size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        """End all waiting, from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Scan:
    """What all lanes share. standing_in: held by a lane while the CPU works in place of its device."""

    warn: Callable[[str], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    standing_in: threading.Lock = field(default_factory=threading.Lock)


class StoppedError(Exception):
    """The scan has ended before this lane was done."""


class Crew:
    """The lanes of a device, and what they share: its memory and its time.

    Each batch takes a share of the device's time. The share of small matrices is smaller, so that more of them are
    scored at once.
    """

    def __init__(self, scan: Scan, device: torch.device, batches: Sequence[WeightBatch], processes: int) -> None:
        self.scan, self.device = scan, device
        self._lanes = {k: lanes(device, k) for k in {min(batch.matrix) for batch in batches}}
        self.size = max(self._lanes.values(), default=0)
        self.memory = MemoryBudget(memory_budget(device, processes))
        self.time = MemoryBudget(math.lcm(*self._lanes.values()))

    def share(self, batch: WeightBatch) -> int:
        """The device's time that a batch takes."""
        return self.time.size // self._lanes[min(batch.matrix)]

    def bytes(self, batch: WeightBatch) -> int:
        """The device's memory that a batch takes."""
        return batch_bytes(batch, gpu=self.device.type == "cuda")

    @contextmanager
    def alone(self, share: int) -> Iterator[None]:
        """Give a lane all of the device's time instead of its share, once the other lanes are done."""
        with self.away(share):
            self.time.take(self.time.size)
            try:
                yield
            finally:
                self.time.give(self.time.size)

    @contextmanager
    def away(self, share: int) -> Iterator[None]:
        """Give a lane's share of the device's time to the others, while it does not use the device."""
        self.time.give(share)
        try:
            yield
        finally:
            self.time.take(share)
