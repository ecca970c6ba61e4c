"""Score batches of weights: read ahead, stage, decompose, on every lane of every device."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from spectrum import snr
from spectrum.batching import batch_bytes
from spectrum.devices import is_out_of_memory, lane, lanes, memory_budget, one_core_a_thread
from spectrum.errors import DeviceError, first_line
from spectrum.layers import Edge, LayerWeight, MatrixScore, WeightBatch

Reader = Callable[[LayerWeight, int], torch.Tensor]
_Read = tuple[WeightBatch, torch.Tensor]

# Pinned memory is kept for later, in powers of two: larger matrices are so few that their copies may take their time.
_MOST_PINNED = 256 << 20  # bytes


class _Room:
    """The memory that batches in flight on a device may take together. A single one may take any."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._closed = False
        self._changed = threading.Condition()

    def take(self, size: int) -> None:
        """Wait until there is so much."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._free >= min(size, self._size))
            self._free -= size

    def give(self, size: int) -> None:
        """Give back what was taken."""
        with self._changed:
            self._free += size
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def score(
    batches: Sequence[WeightBatch],
    read: Reader,
    devices: Sequence[torch.device],
    warn: Callable[[str], None] = lambda message: None,
    processes: int = 1,
) -> Generator[tuple[WeightBatch, list[MatrixScore]], None, None]:
    """Batches and their scores, in the order in which they are done.

    read: matrix `index` of a weight, (n, m). warn: told, from another thread, of what a device could not do and the
    CPU does. processes: how many do so on this machine. An exception of `read` or the kernel is raised here;
    DeviceError where the CPU has no memory for a matrix, or cannot decompose it.
    """
    results: queue.Queue[tuple[WeightBatch, list[MatrixScore]] | BaseException] = queue.Queue()
    todo = iter(batches)
    taking = threading.Lock()
    stopped = threading.Event()

    def next_read(room: _Room, pin: bool) -> _Read | None:
        with taking:
            batch = next(todo, None)
        if batch is None:
            return None
        room.take(batch_bytes(batch))
        return None if stopped.is_set() else (batch, _stack(batch, read, pin))

    def work(device: torch.device, room: _Room, following: Callable[[], _Read | None]) -> None:
        try:
            with lane(device):
                while (current := following()) is not None:
                    batch, stored = current
                    del current
                    scores = _scores(stored, batch.members, device, warn)
                    del stored
                    room.give(batch_bytes(batch))
                    results.put((batch, scores))
        except BaseException as error:  # the consumer raises it
            stopped.set()
            results.put(error)

    crews = [(device, lanes(device), _Room(memory_budget(device, processes))) for device in devices]
    with one_core_a_thread(devices):
        readers, workers = [], []
        for device, size, room in crews:
            if device.type == "cuda":
                _warm_up(device)
            # One thread reads, for good: each new one would get an arena of the allocator, and leave it fragmented.
            reader = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
            following = _read_ahead(reader, partial(next_read, room, device.type == "cuda"))
            readers.append(reader)
            for _ in range(size):
                arguments = (device, room, following)
                workers.append(threading.Thread(target=work, args=arguments, daemon=True, name=f"score {device}"))
        interrupted = False
        try:
            for worker in workers:
                worker.start()
            for _ in batches:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        except KeyboardInterrupt:
            interrupted = True  # whoever interrupts does not want to wait for the decompositions that are under way
            raise
        finally:
            stopped.set()
            for _, _, room in crews:
                room.close()
            if not interrupted:
                for worker in workers:  # a thread that is in torch's code when Python ends takes the process down
                    if worker.ident is not None:
                        worker.join()
            for reader in readers:
                reader.shutdown(wait=not interrupted)


def _warm_up(device: torch.device) -> None:
    """torch's first use of a GPU's solver must not be in two threads at once (pytorch#90613)."""
    try:
        torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
    except RuntimeError as error:
        raise DeviceError(f"{device} cannot be used: {first_line(error)}") from error


def _read_ahead(reader: ThreadPoolExecutor, next_read: Callable[[], _Read | None]) -> Callable[[], _Read | None]:
    """Results of `next_read` in turn, each begun when the one before it is taken."""
    turn = threading.Lock()
    ahead = reader.submit(next_read)

    def following() -> _Read | None:
        nonlocal ahead
        with turn:
            current = ahead.result()
            if current is not None:
                ahead = reader.submit(next_read)
            return current

    return following


def _scores(
    stored: torch.Tensor,
    members: Sequence[tuple[LayerWeight, int]],
    device: torch.device,
    warn: Callable[[str], None],
) -> list[MatrixScore]:
    """Scores of a batch on a device; of halves of it, where it is too much; on the CPU, where a single matrix is."""
    try:
        rows = torch.stack(snr.score(stored.to(device, non_blocking=True)), dim=1).tolist()
        return [MatrixScore(ratio, Edge(int(above), int(below), gap, jump)) for ratio, above, below, gap, jump in rows]
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            problem = "cannot decompose"
        elif is_out_of_memory(error):
            problem = "has no memory for"
        else:
            raise
    # What the failed attempt held is free only from here on.
    name = members[0][0].name
    if device.type == "cuda":
        torch.cuda.empty_cache()
    if (half := len(members) // 2) > 0:
        parts = (slice(0, half), slice(half, None))
        return [score for part in parts for score in _scores(stored[part], members[part], device, warn)]
    if device.type == "cpu":
        raise DeviceError(f"the CPU {problem} {name}, {' x '.join(map(str, stored.shape[1:]))}")
    warn(f"{device} {problem} {name}; the CPU takes it")
    return _scores(stored, members, torch.device("cpu"), warn)


def _stack(batch: WeightBatch, read: Reader, pin: bool) -> torch.Tensor:
    """The batch's matrices in one tensor, pinned for a GPU to fetch on its own; else a single one is not copied."""
    try:
        first = read(*batch.members[0])
        shape = (len(batch.members), *first.shape)
        pin = pin and math.prod(shape) * first.itemsize <= _MOST_PINNED
        if len(batch.members) == 1 and not pin:
            return first.unsqueeze(0)
        stacked = first.new_empty(shape, pin_memory=pin)
        stacked[0] = first
        for i, (weight, index) in enumerate(batch.members[1:], 1):
            stacked[i] = read(weight, index)
        return stacked
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"there is no memory to read {batch.members[0][0].name}") from error
