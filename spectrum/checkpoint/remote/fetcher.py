"""Fetches byte ranges from the Hub into memory: large ones in parts, many parts at once, and ahead of the reads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from spectrum.checkpoint.remote.answers import RepositoryFile
from spectrum.checkpoint.remote.connection import Connection
from spectrum.checkpoint.remote.threads import Threads
from spectrum.errors import DeviceError

if TYPE_CHECKING:
    import torch

_T = TypeVar("_T")
_R = TypeVar("_R")

# Measured in tests/benchmarks: enough for all that a core can read over 30 ms, and for 250 MB/s over 100 ms. Parts that
# are fetched at once share the line, so with larger parts the first matrices, and the last ones, would arrive later.
_NUM_CONNECTIONS = 16
_PART_BYTES = 4 << 20

# Nothing further is fetched ahead while more than this is fetched and not read. The last matrix may exceed it.
_AHEAD_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class ByteRange:
    """A part of a file. offset, size: in bytes."""

    file: RepositoryFile
    offset: int
    size: int


class _Fetch:
    """A range that is being fetched. Raises DeviceError if there is no memory for it."""

    def __init__(self, wanted: ByteRange, threads: Threads, connection: Connection) -> None:
        import torch

        self.uses = 1  # planned reads that have not been done
        try:
            self._bytes = torch.empty(wanted.size, dtype=torch.uint8)
        except (MemoryError, RuntimeError) as error:
            raise DeviceError(f"there is no memory to read {wanted.file}") from error
        view = memoryview(self._bytes.numpy())  # type: ignore[arg-type]
        self._parts = [
            threads.submit(connection.read_into, view[start : start + _PART_BYTES], wanted.file, wanted.offset + start)
            for start in range(0, wanted.size, _PART_BYTES)
        ]

    def wait(self) -> torch.Tensor:
        """The bytes, as uint8. Raises HubError if they cannot be had."""
        for part in self._parts:
            part.result()
        return self._bytes


class Fetcher:
    """Fetches ranges of a repository's files. Threads may share it.

    Args:
        connection: to the repository.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._ahead: _Ahead | None = None
        self._at_work: set[Threads] = set()

    def stop(self) -> None:
        """Give up all that is being fetched, for good. Whoever waits for it gets an exception at once."""
        self._connection.stop()
        for threads in list(self._at_work):
            threads.close()

    def read(self, wanted: ByteRange) -> torch.Tensor:
        """The bytes of a range, as uint8. Raises HubError if they cannot be had, DeviceError if there is no memory."""
        ahead = self._ahead
        if ahead is not None:
            return ahead.fetch(wanted).wait()
        with self._threads() as threads:
            return self._start(wanted, threads).wait()

    def read_now(self, wanted: ByteRange) -> bytes:
        """The bytes of a short range, in the calling thread. Raises HubError if they cannot be had."""
        content = bytearray(wanted.size)
        self._connection.read_into(memoryview(content), wanted.file, wanted.offset)
        return bytes(content)

    def at_once(self, call: Callable[[_T], _R], items: Sequence[_T]) -> list[_R]:
        """The results of a call for each item, which reads by `read_now`. Many calls are made at once.

        Raises what the first call that fails raises, without waiting for the others.
        """
        with self._threads() as threads:
            results = [threads.submit(call, item) for item in items]
            done, _ = wait(results, return_when=FIRST_EXCEPTION)
            for result in done:
                result.result()
            return [result.result() for result in results]

    @contextmanager
    def ahead(self, plan: Iterable[tuple[Hashable, Sequence[ByteRange]]]) -> Iterator[None]:
        """Within the context, fetch what will be read before it is asked for. An exception ends all fetches for good.

        Raises DeviceError if no thread can be started.

        Args:
            plan: what will be read, about in this order: a key for each read, and its ranges.
        """
        with self._threads() as threads:
            self._ahead = ahead = _Ahead(partial(self._start, threads=threads), plan)
            try:
                yield
            finally:
                self._ahead = None
                ahead.close()

    def done(self, key: Hashable) -> None:
        """Free what was fetched for the read of this key, and fetch further ahead in its place."""
        ahead = self._ahead
        if ahead is not None:
            ahead.done(key)

    def _start(self, wanted: ByteRange, threads: Threads) -> _Fetch:
        return _Fetch(wanted, threads, self._connection)

    @contextmanager
    def _threads(self) -> Iterator[Threads]:
        """Threads to fetch in. What they have not fetched when the context ends is given up."""
        threads = Threads(_NUM_CONNECTIONS, "fetch")
        self._at_work.add(threads)
        try:
            yield threads
        except BaseException:
            self.stop()
            raise
        finally:
            self._at_work.discard(threads)
            threads.close()


class _Ahead:
    """What is fetched before it is read.

    Args:
        start: starts to fetch a range.
        plan: as for `Fetcher.ahead`.
    """

    def __init__(
        self, start: Callable[[ByteRange], _Fetch], plan: Iterable[tuple[Hashable, Sequence[ByteRange]]]
    ) -> None:
        self._start = start
        self._plan = deque(plan)
        self._planned: dict[Hashable, list[ByteRange]] = {}  # reads that have been started and not done
        self._fetches: dict[ByteRange, _Fetch] = {}  # for them
        self._early: set[Hashable] = set()  # reads that were done before their turn
        self._held = 0  # bytes
        self._lock = threading.Lock()
        self._fill()

    def fetch(self, wanted: ByteRange) -> _Fetch:
        """The fetch of a range, which is started now if it was not before."""
        with self._lock:
            return self._fetches.get(wanted) or self._start(wanted)

    def done(self, key: Hashable) -> None:
        """Free what was fetched for a read, and start what the memory then has room for."""
        with self._lock:
            ranges = self._planned.pop(key, None)
            if ranges is None:
                self._early.add(key)
            for wanted in ranges or ():
                self._fetches[wanted].uses -= 1
                if not self._fetches[wanted].uses:
                    del self._fetches[wanted]
                    self._held -= wanted.size
            self._fill()

    def close(self) -> None:
        """Start nothing further."""
        with self._lock:
            self._plan.clear()

    def _fill(self) -> None:
        while self._plan and self._held < _AHEAD_BYTES:
            key, ranges = self._plan.popleft()
            if key in self._early:
                self._early.remove(key)
            elif key not in self._planned:
                self._planned[key] = []
                for wanted in ranges:
                    self._fetch_ahead(wanted, self._planned[key])

    def _fetch_ahead(self, wanted: ByteRange, started: list[ByteRange]) -> None:
        if wanted in self._fetches:
            self._fetches[wanted].uses += 1
        else:
            try:
                self._fetches[wanted] = self._start(wanted)
            except DeviceError:  # there is less memory than expected, so each range is fetched when it is read
                self._plan.clear()
                return
            self._held += wanted.size
        started.append(wanted)


def plan_bytes(plan: Iterable[tuple[Hashable, Sequence[ByteRange]]]) -> int:
    """How many bytes a plan fetches. What several reads need is fetched once."""
    return sum(wanted.size for wanted in {wanted for _, ranges in plan for wanted in ranges})
