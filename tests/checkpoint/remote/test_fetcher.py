"""Fetching ahead of the reads: in parts, at once, about in order, within a bound of memory, in nobody's way."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spectrum.checkpoint.remote import fetcher as module
from spectrum.checkpoint.remote.answers import RepositoryFile
from spectrum.checkpoint.remote.fetcher import ByteRange, Fetcher, _Ahead
from spectrum.checkpoint.remote.threads import Threads
from spectrum.errors import DeviceError, HubError

LIMIT = 100
CONTENT = random.Random(0).randbytes(5_000)
FILE = RepositoryFile("org/model", "a" * 40, "model.safetensors", len(CONTENT))
GUARD = 20  # seconds, against hangs


def part(offset: int, size: int) -> ByteRange:
    return ByteRange(FILE, offset, size)


def content(wanted: ByteRange) -> torch.Tensor:
    return torch.frombuffer(bytearray(CONTENT[wanted.offset : wanted.offset + wanted.size]), dtype=torch.uint8)


# What is fetched ahead.


class Started:
    """Stands for a fetch."""

    def __init__(self) -> None:
        self.uses = 1


class Starter:
    """Stands for what starts fetches, and writes down which."""

    def __init__(self) -> None:
        self.ranges: list[ByteRange] = []

    def __call__(self, wanted: ByteRange) -> Any:
        self.ranges.append(wanted)
        return Started()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD_BYTES", LIMIT)
    monkeypatch.setattr(module, "_PART_BYTES", 64)


Plan = list[tuple[int, list[ByteRange]]]

# Ranges of one size at one offset, so that reads share them whole.
RANGES = st.integers(0, 12).map(lambda i: part(100 * i, 7 * i))
PLANS = st.lists(st.lists(RANGES, max_size=4), max_size=30).map(lambda reads: list(enumerate(reads)))


@given(PLANS, st.randoms(use_true_random=False), st.integers(0, 5))
def test_memory_is_bounded_and_freed_in_whatever_order_reads_are_done(
    plan: Plan, chance: random.Random, disorder: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_AHEAD_BYTES", LIMIT)
        starter = Starter()
        ahead = _Ahead(starter, plan)
        largest = max((sum(wanted.size for wanted in set(ranges)) for _, ranges in plan), default=0)
        order = sorted(plan, key=lambda read: read[0] + disorder * chance.random())
        for key, ranges in order:
            assert ahead._held == sum(wanted.size for wanted in ahead._fetches)
            assert ahead._held < LIMIT + largest or not ahead._held
            for wanted in ranges:
                ahead.fetch(wanted)
            ahead.done(key)
        assert (ahead._held, dict(ahead._fetches), dict(ahead._planned), list(ahead._plan)) == (0, {}, {}, [])
        assert ahead._early == set()
        if not disorder:  # then every read finds what was fetched for it
            planned = [wanted for _, ranges in plan for wanted in ranges]
            assert not Counter(starter.ranges) - Counter(planned)
            first_met = list(dict.fromkeys(starter.ranges))
            assert first_met == list(dict.fromkeys(planned))


def test_as_much_is_fetched_ahead_as_memory_allows_and_one_read_more() -> None:
    starter = Starter()
    ahead = _Ahead(starter, [(i, [part(100 * i, 40)]) for i in range(10)])
    assert len(starter.ranges) == 3  # 80 bytes are not yet the limit
    ahead.done(0)
    assert len(starter.ranges) == 4
    ahead.done(7)  # before its turn, so it will not be fetched
    ahead.done(1)
    ahead.done(2)
    ahead.done(3)
    assert [wanted.offset // 100 for wanted in starter.ranges] == [0, 1, 2, 3, 4, 5, 6]
    ahead.done(4)
    assert starter.ranges[-1] == part(800, 40)


def test_a_range_of_two_planned_reads_is_fetched_once_and_kept_for_both() -> None:
    starter, scale = Starter(), part(0, 10)
    ahead = _Ahead(starter, [("a", [part(100, 20), scale]), ("b", [part(200, 20), scale])])
    assert starter.ranges == [part(100, 20), scale, part(200, 20)]
    kept = ahead.fetch(scale)
    ahead.done("a")
    assert ahead.fetch(scale) is kept
    ahead.done("b")
    assert ahead._held == 0


def test_a_read_that_is_done_twice_frees_nothing_of_others() -> None:
    ahead = _Ahead(Starter(), [("a", [part(0, 10)]), ("b", [part(0, 10)])])
    ahead.done("a")
    ahead.done("a")
    assert ahead._held == 10


def test_where_memory_is_short_each_range_is_fetched_when_it_is_read() -> None:
    starter = Starter()

    def short(wanted: ByteRange) -> Any:
        if len(starter.ranges) == 2:
            raise DeviceError("no memory")
        return starter(wanted)

    ahead = _Ahead(short, [(i, [part(100 * i, 10), part(100 * i + 50, 10)]) for i in range(10)])
    assert starter.ranges == [part(0, 10), part(50, 10)]
    for key in range(10):
        ahead.done(key)
    assert ahead._held == 0


# Fetching.


class Line:
    """Stands for a connection: gives the content, or what is to happen instead."""

    def __init__(self, happens: Callable[[int, int], object] = lambda start, end: None) -> None:
        self.read: list[tuple[int, int]] = []
        self.at_once = self.most_at_once = 0
        self.stopped = threading.Event()
        self._happens, self._lock = happens, threading.Lock()

    def stop(self) -> None:
        self.stopped.set()

    def read_into(self, view: memoryview, file: RepositoryFile, offset: int) -> None:
        end = offset + len(view)
        with self._lock:
            self.read.append((offset, end))
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._happens(offset, end)
            view[:] = CONTENT[offset:end]
        finally:
            with self._lock:
                self.at_once -= 1


def over(line: Line) -> Fetcher:
    connection: Any = line
    return Fetcher(connection)


def plan_of(*ranges: ByteRange) -> list[tuple[ByteRange, Sequence[ByteRange]]]:
    return [(wanted, [wanted]) for wanted in ranges]


def test_a_large_range_comes_in_parts_at_once_and_whole() -> None:
    meeting = threading.Barrier(4)
    line = Line(lambda start, end: meeting.wait(GUARD))
    assert torch.equal(over(line).read(part(10, 200)), content(part(10, 200)))
    assert sorted(line.read) == [(10, 74), (74, 138), (138, 202), (202, 210)]


def test_ranges_come_about_in_the_order_of_their_reads_and_each_once() -> None:
    ranges = [part(i * 50, 40 + i) for i in range(50)]
    line = Line()
    fetcher = over(line)
    with fetcher.ahead(plan_of(*ranges)):
        for wanted in ranges:
            assert torch.equal(fetcher.read(wanted), content(wanted))
            fetcher.done(wanted)
    assert sorted(line.read) == sorted(span for wanted in ranges for span in spans(wanted))
    starts = [start for start, _ in line.read]
    assert all(abs(place - sorted(starts).index(start)) <= 16 for place, start in enumerate(starts))


def spans(wanted: ByteRange) -> list[tuple[int, int]]:
    end = wanted.offset + wanted.size
    return [(start, min(start + 64, end)) for start in range(wanted.offset, end, 64)]


def test_nothing_and_reads_that_are_not_planned_are_read_too() -> None:
    fetcher = over(Line())
    with fetcher.ahead(plan_of(part(0, 10), part(5, 0))):
        assert fetcher.read(part(5, 0)).tolist() == []
        assert torch.equal(fetcher.read(part(700, 90)), content(part(700, 90)))
    assert fetcher.read_now(part(3, 4)) == CONTENT[3:7]


def test_the_failure_of_a_part_is_raised_where_it_is_needed_and_nowhere_else() -> None:
    def happens(start: int, end: int) -> None:
        if start <= 1_100 < end:
            raise HubError("no byte 1100")

    fetcher = over(Line(happens))
    sound, broken = [part(0, 50), part(2_000, 100)], part(1_000, 200)
    with fetcher.ahead(plan_of(sound[0], broken, sound[1])):
        for wanted in sound:
            assert torch.equal(fetcher.read(wanted), content(wanted))
            fetcher.done(wanted)
        with pytest.raises(HubError, match="no byte 1100"):
            fetcher.read(broken)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceError])
def test_nobody_waits_for_a_line_that_hangs_once_a_scan_has_ended(error: type[BaseException]) -> None:
    hanging, line = threading.Event(), Line(lambda start, end: hanging.wait(GUARD))
    fetcher = over(line)
    wanted, ends = part(0, 500), []

    def read() -> None:
        try:
            fetcher.read(wanted)
        except BaseException as failure:
            ends.append(type(failure))

    reader = threading.Thread(target=read)
    begun = time.monotonic()

    def scan() -> None:
        with fetcher.ahead(plan_of(wanted, part(600, 500))):
            reader.start()
            while not line.read:
                time.sleep(0.001)
            raise error("the end")

    with pytest.raises(error):
        scan()
    reader.join(GUARD)
    assert time.monotonic() - begun < GUARD / 2
    assert ends == [CancelledError]
    assert line.stopped.is_set()
    asked = len(line.read)
    hanging.set()
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join(GUARD)
    assert len(line.read) == asked <= 16  # no part was begun any more


def test_reads_that_have_not_begun_are_given_up_with_the_scan_and_the_threads_end() -> None:
    fetcher = over(Line())
    with fetcher.ahead(plan_of(*(part(i, 90) for i in range(100)))):
        fetcher.read(part(0, 90))
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join(GUARD)
            assert not thread.is_alive()


def test_reads_without_a_plan_are_not_in_the_way_of_each_other() -> None:
    slow = threading.Event()
    fetcher = over(Line(lambda start, end: start or slow.wait(GUARD)))
    got: list[torch.Tensor] = []
    other = threading.Thread(target=lambda: got.append(fetcher.read(part(0, 50))))
    other.start()
    assert torch.equal(fetcher.read(part(100, 50)), content(part(100, 50)))
    slow.set()
    other.join(GUARD)
    assert torch.equal(got[0], content(part(0, 50)))


def test_the_first_failure_of_calls_at_once_is_not_kept_waiting() -> None:
    hanging, line = threading.Event(), Line()
    fetcher = over(line)
    ended: list[int] = []

    def call(item: int) -> int:
        if item == 3:
            raise HubError("the fourth")
        if item < 3:
            hanging.wait(GUARD)
        ended.append(item)
        return item

    with pytest.raises(HubError, match="the fourth"):
        fetcher.at_once(call, range(6))
    assert line.stopped.is_set()
    assert not set(ended) & {0, 1, 2}
    hanging.set()
    assert over(Line()).at_once(call, [4, 5, 0]) == [4, 5, 0]


def test_a_range_that_no_memory_holds_is_one_line() -> None:
    with pytest.raises(DeviceError, match=r"no memory to read org/model/model\.safetensors"):
        over(Line()).read(part(0, 1 << 60))


# Threads.


def test_threads_hold_nothing_of_a_call_that_is_over() -> None:
    class Held:
        pass

    import weakref

    held = Held()
    seen = weakref.ref(held)
    running = Threads(1, "fetch")
    running.submit(lambda thing: None, held).result(GUARD)
    del held
    for _ in range(1_000):
        if seen() is None:
            break
        time.sleep(0.01)
    assert seen() is None
    running.close()
    running.close()
    with pytest.raises(CancelledError):
        running.submit(int).result(GUARD)


def test_there_are_as_many_threads_as_the_system_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = [2]

    class Thread(threading.Thread):
        def start(self) -> None:
            if not allowed[0]:
                raise RuntimeError("can't start new thread")
            allowed[0] -= 1
            super().start()

    monkeypatch.setattr("threading.Thread", Thread)
    running = Threads(16, "fetch")
    assert [running.submit(abs, -i).result(GUARD) for i in range(5)] == [0, 1, 2, 3, 4]
    running.close()
    with pytest.raises(DeviceError, match="no memory for a thread"):
        Threads(16, "fetch")
