"""Score the weights of a model: read ahead, stage to a device, decompose, batch after batch."""

from __future__ import annotations

import queue
import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isnan, nan

import torch

from spectrum import snr
from spectrum.batching import plan
from spectrum.errors import DeviceError
from spectrum.layers import LayerSnr, LayerWeight, WeightBatch

Reader = Callable[[LayerWeight, int], torch.Tensor]


def devices_for(name: str) -> list[torch.device]:
    """The devices that a `--device` means: `auto` is every visible GPU, else the CPU.

    Raises DeviceError for a name that is no device, or one that this machine lacks.
    """
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if name == "auto":
        return gpus or [torch.device("cpu")]
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"{name!r} is no device; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda":
        found = f"this machine has {len(gpus)} GPU(s) that torch can use"
        if (device.index or 0) >= len(gpus):
            raise DeviceError(f"there is no device {name!r}: {found}")
        return [device]
    if device.type != "cpu":
        raise DeviceError(f"{name!r} has no float64 eigensolver in torch; use cpu")
    return [device]


def scan(
    weights: Sequence[LayerWeight],
    read: Reader,
    devices: Sequence[torch.device],
    batch_size: int | None = None,
) -> Iterator[LayerSnr]:
    """Scores in the order in which they are done; those of tied weights come together.

    read: matrix `index` of a weight, (n, m). Each device has a worker that takes the next batch and, while it
    decomposes that, reads the one after. batch_size: see `batching.plan`. An exception of `read`, or of the kernel,
    is raised here.
    """
    owners: dict[str, list[LayerWeight]] = {}
    for weight in weights:
        owners.setdefault(weight.parameter, []).append(weight)
    parts: dict[str, list[float]] = {weight.parameter: [nan] * weight.count for weight in weights}
    waiting = {weight.parameter: weight.count for weight in weights}
    for batch, scores in _scored(plan(weights, batch_size), read, devices):
        for (weight, index), value in zip(batch.members, scores, strict=True):
            parts[weight.parameter][index] = value
            waiting[weight.parameter] -= 1
            if not waiting[weight.parameter]:
                values = parts.pop(weight.parameter)
                for owner in owners[weight.parameter]:
                    yield _layer_snr(owner, values)


def _layer_snr(weight: LayerWeight, values: list[float]) -> LayerSnr:
    if weight.count == 1:
        return LayerSnr(weight.name, weight.layer_type, values[0])
    median = nan if any(map(isnan, values)) else statistics.median(values)
    return LayerSnr(weight.name, weight.layer_type, median, tuple(values))


def _scored(
    batches: Sequence[WeightBatch], read: Reader, devices: Sequence[torch.device]
) -> Iterator[tuple[WeightBatch, list[float]]]:
    """Batches and their scores, as workers finish them."""
    results: queue.Queue[tuple[WeightBatch, list[float]] | BaseException] = queue.Queue()
    todo = iter(batches)
    lock = threading.Lock()
    stopped = threading.Event()

    def next_batch() -> tuple[WeightBatch, torch.Tensor] | None:
        with lock:
            batch = None if stopped.is_set() else next(todo, None)
        return None if batch is None else (batch, _stack(batch, read))

    def work(device: torch.device) -> None:
        # One thread reads, for good: each new one would get an arena of the allocator, and leave it fragmented.
        with ThreadPoolExecutor(1, thread_name_prefix="read ahead") as reader:
            try:
                ahead = reader.submit(next_batch)
                while (current := ahead.result()) is not None:
                    ahead = reader.submit(next_batch)
                    batch, stored = current
                    del current
                    results.put((batch, _score(batch, stored, device)))
                    del stored
            except BaseException as error:  # the consumer raises it
                results.put(error)

    for device in devices:
        if device.type == "cuda":  # torch's first use of it must not be in two threads at once (pytorch#90613)
            torch.linalg.eigvalsh(torch.eye(2, dtype=torch.float64, device=device))
    workers = [threading.Thread(target=work, args=(device,), daemon=True, name=f"score {device}") for device in devices]
    for worker in workers:
        worker.start()
    try:
        for _ in batches:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    except KeyboardInterrupt:
        stopped.set()  # whoever interrupts does not want to wait for the decomposition that is under way
        raise
    finally:
        if not stopped.is_set():
            stopped.set()
            for worker in workers:  # a thread that is in torch's code when Python ends takes the process down
                worker.join()


def _score(batch: WeightBatch, stored: torch.Tensor, device: torch.device) -> list[float]:
    first, count = batch.members[0][0].name, len(batch.members)
    try:
        scores: list[float] = snr.score(stored.to(device)).tolist()
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceError(
            f"{device} has no memory for {count} of {first}; use a smaller --batch-size, or --device cpu"
        ) from error
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise DeviceError(f"{device} cannot decompose {first}, or one of {count} batched with it: {error}") from error
    return scores


def _stack(batch: WeightBatch, read: Reader) -> torch.Tensor:
    """The batch's matrices in one tensor; a single one is not copied."""
    if len(batch.members) == 1:
        return read(*batch.members[0]).unsqueeze(0)
    stacked: torch.Tensor | None = None
    for i, (weight, index) in enumerate(batch.members):
        matrix = read(weight, index)
        if stacked is None:
            stacked = matrix.new_empty((len(batch.members), *matrix.shape))
        stacked[i] = matrix
    assert stacked is not None
    return stacked
