"""What the lanes of a scan share: the memory of their device, turns to use it, and the flag that stops them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from spectrum.compute.batches import WeightBatch, batch_bytes
from spectrum.compute.devices import memory_budget, num_lanes
from spectrum.errors import StoppedError


class Budget:
    """An amount that threads share: each takes a part and gives it back. Small requests do not overtake a large one.

    A request for more than the whole amount is granted when all other threads have given back their parts.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._closed = False
        self._changed = threading.Condition()
        self._first = threading.Lock()  # held by the thread that waits longest; all others queue behind it

    def acquire(self, size: int) -> None:
        """Take a part; wait until it is free."""
        with self._first, self._changed:
            self._changed.wait_for(lambda: self._closed or self._free >= min(size, self.size))
            self._free -= size

    def release(self, size: int) -> None:
        """Give back a part."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        """Let all waiting threads continue, and let no thread wait from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class ScanState:
    """What all lanes of all devices share.

    Args:
        warn: receives a message if the CPU scores a matrix because its device failed to.
        stopped: set when the scan ends, for any reason.
        cpu_lock: held while the CPU scores a matrix because a lane's device failed to: for one lane at a time.
    """

    warn: Callable[[str], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    cpu_lock: threading.Lock = field(default_factory=threading.Lock)

    def raise_if_stopped(self) -> None:
        """Raises StoppedError if the scan has ended."""
        if self.stopped.is_set():
            raise StoppedError


class DeviceLanes:
    """The lanes of one device, which share its memory.

    There is one turn for each lane. A lane holds one while it scores. A lane that needs the device alone takes all.

    Args:
        processes: how many processes share the device.
    """

    def __init__(self, scan: ScanState, device: torch.device, processes: int) -> None:
        self.scan, self.device = scan, device
        self.count = num_lanes(device)
        self.memory = Budget(memory_budget(device, processes))
        self.turns = Budget(self.count)

    def memory_of(self, batch: WeightBatch) -> int:
        """The part of the device's memory that a batch takes, in bytes."""
        return batch_bytes(batch, gpu=self.device.type == "cuda")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait for the other lanes of the device to finish their batches, then let this lane alone use the device.

        The weights of the next batch may be in the device's memory.
        """
        with self.yielded():
            self.turns.acquire(self.count)
            try:
                yield
            finally:
                self.turns.release(self.count)

    @contextmanager
    def yielded(self) -> Iterator[None]:
        """Give back this lane's turn while it does not use the device."""
        self.turns.release(1)
        try:
            yield
        finally:
            self.turns.acquire(1)
