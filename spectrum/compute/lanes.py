"""What the lanes of a scan share: the memory and the time of their device, and whether the scan goes on."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from spectrum.compute.batches import WeightBatch, batch_bytes
from spectrum.compute.devices import memory_budget, num_lanes


class Budget:
    """An amount that threads take parts of and return. Small requests do not overtake a large one that waits.

    A request for more than the whole amount is granted once no other thread holds any.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._closed = False
        self._changed = threading.Condition()
        self._first = threading.Lock()  # held by the thread that waits longest, so that small requests do not overtake

    def acquire(self, size: int) -> None:
        """Take a part; wait until it is free."""
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._closed or self._free >= min(size, self.size))
            self._free -= size

    def release(self, size: int) -> None:
        """Return a part."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        """Let all threads that wait continue, now and later."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class StoppedError(Exception):
    """The scan ended while a lane was at work. It ends that lane; no caller sees it."""


@dataclass(frozen=True, slots=True)
class ScanState:
    """What all lanes of all devices share.

    Args:
        warn: receives what a device failed to do.
        stopped: set once the scan ends, for whatever reason.
        cpu_lock: held by the one lane whose batch the CPU scores in place of the lane's device.
    """

    warn: Callable[[str], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    cpu_lock: threading.Lock = field(default_factory=threading.Lock)

    def raise_if_stopped(self) -> None:
        """Raises StoppedError if the scan has ended."""
        if self.stopped.is_set():
            raise StoppedError


class DeviceLanes:
    """The lanes of one device, which share its memory and its time.

    Time is a budget too: a batch holds a part of it while it is scored. The part is smaller for small matrices, so that
    more lanes work on them at once.

    Args:
        batches: all batches of the scan.
        processes: how many processes share the device.
    """

    def __init__(self, scan: ScanState, device: torch.device, batches: Sequence[WeightBatch], processes: int) -> None:
        self.scan, self.device = scan, device
        self._lanes_for = {k: num_lanes(device, k) for k in {min(batch.matrix_shape) for batch in batches}}
        self.count = max(self._lanes_for.values(), default=0)
        self.memory = Budget(memory_budget(device, processes))
        self.time = Budget(math.lcm(*self._lanes_for.values()))

    def time_of(self, batch: WeightBatch) -> int:
        """The part of the device's time that a batch takes."""
        return self.time.size // self._lanes_for[min(batch.matrix_shape)]

    def memory_of(self, batch: WeightBatch) -> int:
        """The part of the device's memory that a batch takes, in bytes."""
        return batch_bytes(batch, gpu=self.device.type == "cuda")

    @contextmanager
    def exclusive(self, batch: WeightBatch) -> Iterator[None]:
        """Let a lane that scores a batch have the whole device, once the other lanes are done with theirs."""
        with self.yielded(batch):
            self.time.acquire(self.time.size)
            try:
                yield
            finally:
                self.time.release(self.time.size)

    @contextmanager
    def yielded(self, batch: WeightBatch) -> Iterator[None]:
        """Let the other lanes have a batch's part of the time while its own lane does not use the device."""
        time = self.time_of(batch)
        self.time.release(time)
        try:
            yield
        finally:
            self.time.acquire(time)
