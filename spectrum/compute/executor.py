"""Scores batches of weights on every lane of every device, while the next batch is read.

Each device has one thread that reads and several lanes that score. A batch is read when there is memory to score it
(`lanes`). A lane puts the scores into a queue, from which `score` takes them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch

from spectrum.compute import snr
from spectrum.compute.batches import WeightBatch
from spectrum.compute.devices import (
    NO_MEMORY,
    all_cores,
    is_out_of_memory,
    lane_context,
    one_core_per_thread,
    problem_of,
    release_cached_memory,
    warm_up,
)
from spectrum.compute.lanes import DeviceLanes, ScanState
from spectrum.errors import DeviceError, thread_errors
from spectrum.records import BulkEdge, LayerWeight, MatrixScore

# Reads matrix `index` of a weight: (n, m), on any device.
Reader = Callable[[LayerWeight, int], torch.Tensor]

# A batch and its matrices, (members, n, m).
_ReadBatch = tuple[WeightBatch, torch.Tensor]

# Scores, or why the device could not compute them: NO_MEMORY or NO_DECOMPOSITION.
_Outcome = list[MatrixScore] | str


def score(
    batches: Sequence[WeightBatch],
    read: Reader,
    devices: Sequence[torch.device],
    warn: Callable[[str], None] = lambda message: None,
    processes: int = 1,
    stop_reading: Callable[[], None] = lambda: None,
) -> Generator[tuple[WeightBatch, list[MatrixScore]], None, None]:
    """Each batch with its scores, in the order in which they are done.

    Args:
        read: reads a matrix; called from one thread per device.
        warn: receives a message, from another thread, if the CPU scores a matrix because its device failed to.
        processes: how many processes share the devices.
        stop_reading: called if the scan fails or is interrupted, so that nobody waits for a read that takes long.

    Raises what `read` or the kernel raises. Raises DeviceError if a GPU cannot be used, if a thread cannot be started,
    and if the CPU has no memory for a matrix or cannot decompose it.
    """
    warm_up(devices)  # before any thread starts
    scorer = _Scorer(batches, read, devices, warn, processes)
    with one_core_per_thread(devices):
        wait = True
        try:
            scorer.start()
            for _ in batches:
                result = scorer.results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        except BaseException as error:
            wait = not isinstance(error, KeyboardInterrupt)  # the user does not want to wait for what has begun
            stop_reading()
            raise
        finally:
            scorer.stop(wait=wait)
            if wait:
                release_cached_memory(devices)


class _Scorer:
    """The threads of a scan. Each puts what it has scored, or the exception that ended it, into `results`."""

    def __init__(
        self,
        batches: Sequence[WeightBatch],
        read: Reader,
        devices: Sequence[torch.device],
        warn: Callable[[str], None],
        processes: int,
    ) -> None:
        self.results: queue.Queue[tuple[WeightBatch, list[MatrixScore]] | BaseException] = queue.Queue()
        self._read = read
        self._state = ScanState(warn)
        self._devices = [DeviceLanes(self._state, device, processes) for device in devices]
        self._unread = iter(batches)
        self._unread_lock = threading.Lock()
        self._readers: list[ThreadPoolExecutor] = []
        self._workers: list[threading.Thread] = []

    def start(self) -> None:
        """Start all threads. Raises DeviceError if a device gets no reading thread or not a single lane."""
        for lanes in self._devices:
            # One thread reads all batches of a device. If each read had a new thread, each would get an arena of the
            # memory allocator and leave it fragmented.
            reader = ThreadPoolExecutor(1, thread_name_prefix="read ahead")
            self._readers.append(reader)
            with thread_errors():
                read_ahead = _ReadAhead(reader, self._read_next, lanes)
            self._start_lanes(lanes, read_ahead)

    def _start_lanes(self, lanes: DeviceLanes, read_ahead: _ReadAhead) -> None:
        for number in range(lanes.count):
            name = f"score {lanes.device}"
            worker = threading.Thread(target=self._work, args=(lanes, read_ahead), daemon=True, name=name)
            try:
                with thread_errors():
                    worker.start()
            except DeviceError:
                if number == 0:
                    raise
                return  # then the device has fewer lanes
            self._workers.append(worker)

    def stop(self, *, wait: bool) -> None:
        """End all threads. If `wait` is true, return only when they have ended."""
        self._state.stopped.set()
        for lanes in self._devices:
            lanes.memory.close()
            lanes.turns.close()
        if wait:
            for worker in self._workers:  # a thread within torch's code would crash a process that ends
                worker.join()
        for reader in self._readers:
            reader.shutdown(wait=wait)

    def _read_next(self, lanes: DeviceLanes) -> _ReadBatch | None:
        """The next batch, read once there is memory to score it; None at the end of the scan."""
        with self._unread_lock:
            batch = next(self._unread, None)
        if batch is None:
            return None
        lanes.memory.acquire(lanes.memory_of(batch))
        if self._state.stopped.is_set():
            return None
        # A batch over the budget stays in main memory, so that the device has room to score a part of it at a time.
        fits = lanes.memory_of(batch) <= lanes.memory.size
        return batch, _stack(batch, self._read, lanes.device if fits else torch.device("cpu"))

    def _work(self, lanes: DeviceLanes, read_ahead: _ReadAhead) -> None:
        """Score one batch after the other: the main loop of a lane."""
        try:
            with lane_context(lanes.device):
                while (current := read_ahead.take()) is not None:
                    batch, stored = current
                    del current  # here and below: drop the tensor before its memory is released
                    lanes.scan.raise_if_stopped()
                    outcome = _try_to_score(stored, lanes.device)
                    if isinstance(outcome, str):
                        if len(batch.members) > 1:
                            with _memory_to_read(batch):
                                stored = stored.cpu()  # gives the device room to score a part of it
                        outcome = _score_in_parts(stored, batch, lanes, outcome)
                    del stored
                    lanes.turns.release(1)
                    lanes.memory.release(lanes.memory_of(batch))
                    self.results.put((batch, outcome))
        except BaseException as error:  # `score` raises it
            self._state.stopped.set()
            self.results.put(error)


class _ReadAhead:
    """Reads one batch ahead for all lanes of a device: the next read starts when a lane takes the batch before it."""

    def __init__(
        self,
        reader: ThreadPoolExecutor,
        read_next: Callable[[DeviceLanes], _ReadBatch | None],
        lanes: DeviceLanes,
    ) -> None:
        self._reader, self._read_next, self._lanes = reader, read_next, lanes
        self._turn = threading.Lock()
        self._ahead = reader.submit(read_next, lanes)

    def take(self) -> _ReadBatch | None:
        """Wait for the next batch and for a turn to score it. Returns None at the end of the scan."""
        with self._turn:
            current = self._ahead.result()
            if current is not None:
                self._lanes.turns.acquire(1)
                self._ahead = self._reader.submit(self._read_next, self._lanes)
            return current


def _score_in_parts(stored: torch.Tensor, batch: WeightBatch, lanes: DeviceLanes, problem: str) -> list[MatrixScore]:
    """The scores of a batch that is too much for the device. It is halved, down to single matrices."""
    half = len(batch.members) // 2
    if half == 0:
        return _score_by_fallback(stored, batch, lanes, problem)
    scores: list[MatrixScore] = []
    for part in (slice(0, half), slice(half, None)):
        lanes.scan.raise_if_stopped()
        outcome = _try_to_score(stored[part], lanes.device)
        if isinstance(outcome, str):
            outcome = _score_in_parts(stored[part], replace(batch, members=batch.members[part]), lanes, outcome)
        scores += outcome
    return scores


def _score_by_fallback(stored: torch.Tensor, batch: WeightBatch, lanes: DeviceLanes, problem: str) -> list[MatrixScore]:
    """The score of a single matrix that the device failed to score because of this problem.

    If memory ran out, the device tries again when its other lanes are done and have freed theirs. If that fails too,
    the CPU scores the matrix on all cores, for one lane at a time.
    """
    name = batch.members[0][0].name
    outcome: _Outcome = problem
    if problem == NO_MEMORY:
        with lanes.exclusive():
            outcome = _try_to_score(stored, lanes.device)
    if isinstance(outcome, str) and lanes.device.type != "cpu":
        with lanes.yielded(), lanes.scan.cpu_lock:
            lanes.scan.raise_if_stopped()
            lanes.scan.warn(f"{lanes.device} {outcome} {name}; the CPU takes it")
            with all_cores():
                outcome = _try_to_score(stored, torch.device("cpu"))
    if isinstance(outcome, str):
        raise DeviceError(f"the CPU {outcome} {name}, {' x '.join(map(str, batch.matrix_shape))}")
    return outcome


def _try_to_score(stored: torch.Tensor, device: torch.device) -> _Outcome:
    """The scores of matrices on a device, or why it could not compute them. Other errors are raised."""
    try:
        rows = torch.stack(snr.score(stored.to(device)), dim=1).tolist()
        return [
            MatrixScore(ratio, BulkEdge(int(num_above), int(num_below), nearest, sensitivity))
            for ratio, num_above, num_below, nearest, sensitivity in rows
        ]
    except (MemoryError, RuntimeError) as error:
        problem = problem_of(error)
        if problem is None:
            raise
    # The failed attempt's memory is freed when the `except` block ends, so the cache is emptied only here.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return problem


def _stack(batch: WeightBatch, read: Reader, device: torch.device) -> torch.Tensor:
    """The matrices of a batch in one tensor, (members, n, m), in a GPU's memory or in main memory.

    They stay in main memory if the GPU has no memory for all of them. Raises DeviceError if that has none either.
    """
    with _memory_to_read(batch):
        first = read(*batch.members[0])
        if len(batch.members) == 1:
            stacked = _in_memory_of(device, lambda place: first.to(place)).unsqueeze(0)
        else:
            shape = (len(batch.members), *first.shape)
            stacked = _in_memory_of(device, lambda place: torch.empty(shape, dtype=first.dtype, device=place))
            stacked[0] = first
            for i, member in enumerate(batch.members[1:], 1):
                stacked[i] = read(*member)
    if stacked.is_cuda:  # the lane uses a different stream
        torch.cuda.current_stream(stacked.device).synchronize()
    return stacked


@contextmanager
def _memory_to_read(batch: WeightBatch) -> Iterator[None]:
    """Raises DeviceError if memory runs out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"there is no memory to read {batch.members[0][0].name}") from error


def _in_memory_of(device: torch.device, make: Callable[[torch.device], torch.Tensor]) -> torch.Tensor:
    """What `make` makes in the memory of a GPU; in main memory for another device, or if the GPU has no memory left."""
    if device.type == "cuda":
        try:
            return make(device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
    return make(torch.device("cpu"))
