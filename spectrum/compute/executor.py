"""Score batches of weights: read ahead, stage, decompose, on every lane of every device."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from spectrum.compute import snr
from spectrum.compute.batches import WeightBatch
from spectrum.compute.devices import (
    NO_MEMORY,
    all_cores,
    give_memory_back,
    is_out_of_memory,
    lane,
    one_core_a_thread,
    problem_of,
    warm_up,
)
from spectrum.compute.lanes import Crew, Scan, StoppedError
from spectrum.errors import DeviceError
from spectrum.records import BulkEdge, LayerWeight, MatrixScore

Reader = Callable[[LayerWeight, int], torch.Tensor]
_Read = tuple[WeightBatch, torch.Tensor]

# torch keeps pinned memory for later, in powers of two. Larger matrices are few: a slower copy of them does not matter.
_MOST_PINNED = 1 << 30  # bytes


def score(
    batches: Sequence[WeightBatch],
    read: Reader,
    devices: Sequence[torch.device],
    warn: Callable[[str], None] = lambda message: None,
    processes: int = 1,
) -> Generator[tuple[WeightBatch, list[MatrixScore]], None, None]:
    """Batches and their scores, in the order in which they are done.

    read: matrix `index` of a weight, (n, m), on any device. warn: told, from another thread, of what a device could not
    do and the CPU does. processes: how many share the devices. An exception of `read` or the kernel is raised here;
    DeviceError for a GPU that cannot be used, and where the CPU has no memory for a matrix, or cannot decompose it.
    """
    results: queue.Queue[tuple[WeightBatch, list[MatrixScore]] | BaseException] = queue.Queue()
    todo = iter(batches)
    taking = threading.Lock()
    scan = Scan(warn)

    def next_read(crew: Crew) -> _Read | None:
        with taking:
            batch = next(todo, None)
        if batch is None:
            return None
        crew.memory.take(crew.bytes(batch))
        return None if scan.stopped.is_set() else (batch, _stack(batch, read, crew.device))

    def work(crew: Crew, following: Callable[[], _Read | None]) -> None:
        try:
            with lane(crew.device):
                while (current := following()) is not None:
                    batch, stored = current
                    del current
                    scores = _scores(stored, batch, crew)
                    del stored
                    crew.time.give(crew.share(batch))
                    crew.memory.give(crew.bytes(batch))
                    results.put((batch, scores))
        except BaseException as error:  # the consumer raises it
            scan.stopped.set()
            results.put(error)

    warm_up(devices)  # all, before any thread is started
    crews = [Crew(scan, device, batches, processes) for device in devices]
    with one_core_a_thread(devices):
        readers: list[ThreadPoolExecutor] = []
        workers: list[threading.Thread] = []
        interrupted = False
        try:
            for crew in crews:
                # One thread reads, for good: each new one would get an arena of the allocator, and leave it fragmented.
                readers.append(ThreadPoolExecutor(1, thread_name_prefix="read ahead"))
                with _no_memory_for_a_thread():
                    following = _read_ahead(readers[-1], partial(next_read, crew), crew)
                for number in range(crew.size):
                    name = f"score {crew.device}"
                    worker = threading.Thread(target=work, args=(crew, following), daemon=True, name=name)
                    try:
                        with _no_memory_for_a_thread():
                            worker.start()
                    except DeviceError:
                        if number == 0:
                            raise
                        break  # there are fewer lanes, then
                    workers.append(worker)
            for _ in batches:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                yield result
        except KeyboardInterrupt:
            interrupted = True  # whoever interrupts does not want to wait for the decompositions that are under way
            raise
        finally:
            scan.stopped.set()
            for crew in crews:
                crew.memory.close()
                crew.time.close()
            if not interrupted:
                for worker in workers:  # a thread that is in torch's code when Python ends takes the process down
                    worker.join()
            for reader in readers:
                reader.shutdown(wait=not interrupted)
            if not interrupted:
                give_memory_back(devices)


@contextmanager
def _no_memory_for_a_thread() -> Iterator[None]:
    """Raise DeviceError where a thread cannot be started, of which Python only says so."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError("there is no memory for a thread, or the system allows no more of them") from error


def _read_ahead(
    reader: ThreadPoolExecutor, next_read: Callable[[], _Read | None], crew: Crew
) -> Callable[[], _Read | None]:
    """A function that returns the results of `next_read` in turn, each to a lane that has taken its time share.

    The next read begins when a lane takes the one before it. So one batch is read ahead, however many lanes wait.
    """
    turn = threading.Lock()
    ahead = reader.submit(next_read)

    def following() -> _Read | None:
        nonlocal ahead
        with turn:
            current = ahead.result()
            if current is not None:
                crew.time.take(crew.share(current[0]))
                ahead = reader.submit(next_read)
            return current

    return following


def _scores(stored: torch.Tensor, batch: WeightBatch, crew: Crew) -> list[MatrixScore]:
    """Scores of a batch on a crew's device; of halves of it, where it is too much.

    A matrix for which the device has no memory is tried again once the other lanes are done and have freed theirs. If
    that fails, the CPU takes it, on all cores, for one lane at a time.
    """
    if crew.scan.stopped.is_set():
        raise StoppedError
    found = _attempt(stored, crew.device)
    if isinstance(found, str) and (half := len(batch.members) // 2) > 0:
        parts = (slice(0, half), slice(half, None))
        halves = [(stored[part], replace(batch, members=batch.members[part])) for part in parts]
        return [score for part in halves for score in _scores(*part, crew)]
    name, share = batch.members[0][0].name, crew.share(batch)
    if found == NO_MEMORY:
        with crew.alone(share):
            found = _attempt(stored, crew.device)
    if isinstance(found, str) and crew.device.type != "cpu":
        with crew.away(share), crew.scan.standing_in:
            if crew.scan.stopped.is_set():
                raise StoppedError
            crew.scan.warn(f"{crew.device} {found} {name}; the CPU takes it")
            with all_cores():
                found = _attempt(stored, torch.device("cpu"))
    if isinstance(found, str):
        raise DeviceError(f"the CPU {found} {name}, {' x '.join(map(str, batch.matrix))}")
    return found


def _attempt(stored: torch.Tensor, device: torch.device) -> list[MatrixScore] | str:
    """Scores of matrices on a device, or what it could not do."""
    try:
        # Only to a GPU: the CPU would compute before a copy that does not block has arrived (pytorch#127612).
        here = stored.to(device, non_blocking=device.type == "cuda")
        rows = torch.stack(snr.score(here), dim=1).tolist()
        return [
            MatrixScore(ratio, BulkEdge(int(above), int(below), gap, jump)) for ratio, above, below, gap, jump in rows
        ]
    except (MemoryError, RuntimeError) as error:
        problem = problem_of(error)
        if problem is None:
            raise
    # What the failed attempt held is free only from here on.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return problem


def _stack(batch: WeightBatch, read: Reader, device: torch.device) -> torch.Tensor:
    """A batch's matrices in one tensor. A single matrix is copied only to pin it.

    Matrices that are in GPU memory stay there if a GPU scores them. All others are put in main memory, which is pinned
    if a GPU scores them.
    """
    for_gpu = device.type == "cuda"

    def matrix(member: tuple[LayerWeight, int]) -> torch.Tensor:
        value = read(*member)
        return value if for_gpu else value.cpu()

    try:
        first = matrix(batch.members[0])
        shape = (len(batch.members), *first.shape)
        pin = for_gpu and first.is_cpu and math.prod(shape) * first.itemsize <= _MOST_PINNED
        if len(batch.members) == 1 and not pin:
            stacked = first.unsqueeze(0)
        else:
            stacked = _empty(first, shape, pin)
            stacked[0] = first
            for i, member in enumerate(batch.members[1:], 1):
                stacked[i] = matrix(member)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(f"there is no memory to read {batch.members[0][0].name}") from error
    if first.is_cuda:  # the lane has another stream than this thread
        torch.cuda.current_stream(first.device).synchronize()
    return stacked


def _empty(like: torch.Tensor, shape: tuple[int, ...], pin: bool) -> torch.Tensor:
    """Memory for a batch: where its matrices are, or pinned. If there is none, plain main memory."""
    try:
        return like.new_empty(shape, pin_memory=pin)
    except (MemoryError, RuntimeError) as error:
        if not (pin or (like.is_cuda and is_out_of_memory(error))):
            raise
        return torch.empty(shape, dtype=like.dtype)
