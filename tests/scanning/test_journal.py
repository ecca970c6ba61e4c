"""The journal: what is appended is known later, whatever became of the file, and no failure to write raises."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import struct
import time
import tracemalloc
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spectrum.records import BulkEdge, MatrixScore
from spectrum.scanning.journal import Journal, Matrix, is_outdated, read
from tests.helpers.journals import EDGE, IDENTITY, SCORES, Score, score

HEAD = json.dumps(IDENTITY, separators=(",", ":")).encode() + b"\n"


def write(path: Path, *lines: Sequence[Score], identity: dict[str, Any] = IDENTITY) -> Journal:
    journal = Journal(path, identity)
    for line in lines:
        journal.append(line)
    journal.close()
    return journal


def line(*entries: str) -> bytes:
    """A line of a journal, of entries as JSON; `written_as` makes sound ones."""
    return f"[{','.join(entries)}]\n".encode()


def written_as(name: str, index: int, snr: float) -> str:
    """How a score with the usual edge stands in a journal."""
    return f'["{name}",{index},{snr},[3,60,0.25,0.5]]'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "scan.journal-0.jsonl"


def test_what_is_appended_is_known_to_the_next_journal_and_to_read(path: Path) -> None:
    assert write(path, SCORES[:2], SCORES[2:]).scores == {}
    again = Journal(path, IDENTITY)
    assert again.scores == read(path, IDENTITY) == dict(SCORES)
    assert again.write_error is None


def test_what_is_appended_is_there_before_the_journal_is_closed(path: Path) -> None:
    journal = Journal(path, IDENTITY)
    for i in range(1, 4):
        journal.append(SCORES[i - 1 : i])
        assert read(path, IDENTITY) == dict(SCORES[:i])
    journal.close()


def test_a_journal_that_is_gone_on_with_keeps_what_it_had(path: Path) -> None:
    for i in range(3):
        assert write(path, SCORES[i : i + 1]).scores == dict(SCORES[:i])
    assert read(path, IDENTITY) == dict(SCORES)
    assert path.read_bytes().count(HEAD) == 1


def test_the_last_of_two_scores_counts(path: Path) -> None:
    last = score("w", 0, 2.0, BulkEdge(1, 2, 0.5, 0.25))
    write(path, [score("w", 0, 1.0)], [last, score("w", 1, 3.0)])
    assert read(path, IDENTITY) == dict([last, score("w", 1, 3.0)])


def test_what_is_cut_off_is_dropped_and_the_rest_is_gone_on_with(path: Path) -> None:
    write(path, *([score] for score in SCORES))
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 1 + len(SCORES)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        lines = sum(end <= cut for end in ends[1:])
        assert read(path, IDENTITY) == dict(SCORES[:lines]), cut
        assert write(path, [score("next", 0, 0.5)]).scores == dict(SCORES[:lines]), cut
        start = whole[: ends[lines]]
        assert path.read_bytes() == start + line(written_as("next", 0, 0.5)), cut
        assert read(path, IDENTITY) == dict([*SCORES[:lines], score("next", 0, 0.5)]), cut


def test_a_cut_journal_is_left_alone_until_there_is_a_score(path: Path) -> None:
    write(path, SCORES)
    torn = path.read_bytes() + b'[["ne'
    path.write_bytes(torn)
    write(path)
    assert path.read_bytes() == torn


def test_nothing_after_a_damaged_line_is_used(path: Path) -> None:
    write(path, *([score] for score in SCORES))
    head, first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(head + first + b"\0" * (len(second) - 1) + b"\n" + third)
    assert read(path, IDENTITY) == dict(SCORES[:1])
    write(path, SCORES[1:])
    assert path.read_bytes().startswith(head + first + b"[[")
    assert read(path, IDENTITY) == dict(SCORES)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "0f3b"},
        {"class": "MistralForCausalLM"},
        {"score": 2},
        {"versions": {"torch": "2.13.1"}},
        {"versions": {"torch": "2.13.0", "transformers": "5.0.0"}},
        {"weights": None},
        {"more": 1},
    ],
)
def test_the_journal_of_something_else_is_not_used_and_overwritten_at_the_first_score(
    change: dict[str, Any], path: Path
) -> None:
    write(path, SCORES)
    before = path.read_bytes()
    other = IDENTITY | change
    assert read(path, other) == {}
    assert write(path, identity=other).scores == {}
    assert path.read_bytes() == before
    write(path, [score("w", 0, 1.5)], identity=other)
    assert read(path, other) == dict([score("w", 0, 1.5)])
    assert read(path, IDENTITY) == {}


def test_no_file_is_made_before_the_first_score(path: Path, tmp_path: Path) -> None:
    journal = Journal(path, IDENTITY)
    assert journal.scores == read(path, IDENTITY) == {}
    assert list(tmp_path.iterdir()) == []
    journal.close()
    assert list(tmp_path.iterdir()) == []
    journal = Journal(path, IDENTITY)
    journal.append(SCORES)
    assert path.is_file()
    journal.close()


# Garbage.


DAMAGED = [
    b"",
    b"\n",
    b"\0" * 5000,
    b"null\n",
    b"[]\n",
    b"\xff\xfe\x00\n",
    b"x" * 3_000_000,
    b"[" * 200_000 + b"\n",
    HEAD[:-1],
    HEAD[:-1] + b" \n",
    b"\n" + HEAD,
    b"\xef\xbb\xbf" + HEAD,
    HEAD.replace(b"\n", b"\r\n"),
]


@pytest.mark.parametrize("content", DAMAGED, ids=[f"{content[:12]!r}" for content in DAMAGED])
def test_what_is_no_journal_is_overwritten(content: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(content + line(written_as("w", 0, 1.0)))
    assert read(path, IDENTITY) == {}
    journal = write(path, SCORES)
    assert (journal.scores, journal.write_error) == ({}, None)
    assert path.read_bytes().startswith(HEAD + b"[[")
    assert read(path, IDENTITY) == dict(SCORES)


NO_SCORES = [
    b"\xff\xfe\x00",
    b"\0\0\0\0",
    b"null",
    b"true",
    b"17",
    b"1" * 5000,
    b"[null]",
    b"[17]",
    b"[[]]",
    b'[["w"]]',
    b'[["w",0]]',
    b'[["w",0,1.0]]',  # as journals were before they had edges
    b'[["w",0,1.0,2.0]]',
    b'[["w",0,1.0,3,60,0.25,0.5]]',
    b'[["w",0,1.0,[3,60,0.25,0.5],1.0]]',
    b'[["w",0,1.0,null]]',
    b'[["w",0,1.0,[]]]',
    b'[["w",0,1.0,[3,60,0.25]]]',
    b'[["w",0,1.0,[3,60,0.25,0.5,0.5]]]',
    b'[["w",0,1.0,[null,60,0.25,0.5]]]',
    b'[["w",0,1.0,[Infinity,60,0.25,0.5]]]',
    b'[["w",0,1.0,[3,NaN,0.25,0.5]]]',
    b'[["w",0,1.0,[3,60,null,0.5]]]',
    b'[["w",0,1.0,[3,60,0.25,{}]]]',
    b'[["w",null,1.0,[3,60,0.25,0.5]]]',
    b'[["w",0,null,[3,60,0.25,0.5]]]',
    b'[["w",0,[1.0],[3,60,0.25,0.5]]]',
    b'[["w",{},1.0,[3,60,0.25,0.5]]]',
    b'[["w",Infinity,1.0,[3,60,0.25,0.5]]]',
    b'[["w",NaN,1.0,[3,60,0.25,0.5]]]',
    b'[["w",0,1' + b"0" * 400 + b",[3,60,0.25,0.5]]]",
    b'[["w",0,1.0,[3,60,0.25,0.5]],["w",1,nul,[3,60,0.25,0.5]]]',
    b'[["w",0,1.0,[3,60,0.25,0.5]]] [["w",1,1.0,[3,60,0.25,0.5]]]',
    b"[" * 200_000,
    b"",
]


@pytest.mark.parametrize("bad", NO_SCORES, ids=[f"{bad[:40]!r}" for bad in NO_SCORES])
def test_a_line_that_holds_no_scores_ends_the_journal(bad: bytes, path: Path) -> None:
    write(path, SCORES[:1])
    start = path.read_bytes()
    path.write_bytes(start + bad + b"\n" + line(written_as("w", 0, 1.0)))
    assert read(path, IDENTITY) == dict(SCORES[:1])
    assert write(path, SCORES[1:2]).scores == dict(SCORES[:1])
    assert path.read_bytes().startswith(start + b"[[")
    assert read(path, IDENTITY) == dict(SCORES[:2])


def test_a_journal_from_before_edges_were_in_it_gives_nothing_and_is_gone_on_with(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(HEAD + b'[["first",0,0.25]]\n[["second",0,0.5],["second",1,0.75]]\n')
    assert read(path, IDENTITY) == {}
    journal = write(path, SCORES)
    assert (journal.scores, journal.write_error) == ({}, None)
    assert read(path, IDENTITY) == dict(SCORES)
    assert b"first" not in path.read_bytes()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
garbage = st.binary(max_size=60) | json_values.map(lambda value: json.dumps(value).encode() + b"\n")


@given(st.booleans(), st.lists(garbage, max_size=4))
def test_garbage_raises_nothing_and_what_is_added_to_it_is_known(
    tmp_path_factory: pytest.TempPathFactory, begun: bool, parts: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.jsonl"
    start = HEAD + line(written_as("first", 0, 0.25)) if begun else b""
    path.write_bytes(start + b"".join(parts))
    before = read(path, IDENTITY)
    for (name, index), (snr, edge) in before.items():
        assert [type(value) for value in (name, index, snr, *edge)] == [str, int, float, int, int, float, float]
    if begun:
        assert ("first", 0) in before
    journal = write(path, [score("added", 1, 0.5)])
    assert journal.write_error is None
    assert repr(journal.scores) == repr(before)  # NaN is not equal to itself
    assert repr(read(path, IDENTITY)) == repr(before | dict([score("added", 1, 0.5)]))


@given(st.binary(max_size=300), st.integers(0, 300))
def test_bytes_written_over_a_journal_raise_nothing_and_leave_what_was_before_them(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "overwritten.jsonl"
    path.unlink(missing_ok=True)
    write(path, *([score] for score in SCORES))
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + noise + whole[at + len(noise) :])
    untouched = max(0, whole[:at].count(b"\n") - 1)
    found = read(path, IDENTITY)
    for matrix, known in SCORES[:untouched]:
        assert found[matrix] == known
    write(path, [score("added", 1, 0.5)])
    assert read(path, IDENTITY)["added", 1] == MatrixScore(0.5, EDGE)


# Numbers and names.


@pytest.mark.parametrize(
    "number",
    [0.0, -0.0, 5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 0.1 + 0.2, math.inf, -math.inf, math.nan],
)
def test_extreme_scores_come_back_as_they_were(number: float, path: Path) -> None:
    write(path, [score("w", 0, number, BulkEdge(0, 1 << 62, number, number))])
    snr, edge = read(path, IDENTITY)["w", 0]
    assert struct.pack("3d", snr, edge.nearest, edge.sensitivity) == struct.pack("3d", number, number, number)
    assert edge[:2] == (0, 1 << 62)


counts = st.integers(0, 1 << 40)


@given(
    st.dictionaries(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), counts),
        st.builds(MatrixScore, st.floats(), st.builds(BulkEdge, counts, counts, st.floats(), st.floats())),
        min_size=1,
    )
)
def test_all_scores_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[Matrix, MatrixScore]
) -> None:
    path = tmp_path_factory.getbasetemp() / "numbers.jsonl"
    path.unlink(missing_ok=True)
    write(path, list(scores.items()))
    # A float's repr tells it from every other one, zeros of either sign too, but for the bits of NaNs, which nothing
    # reads.
    assert repr(read(path, IDENTITY)) == repr(scores)


# Failures to write and to read.


class FullDisk:
    """A disk that takes so many more bytes, and what it was asked to take after that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self.refused = 0
        disk = self

        class File(FileIO):
            def write(self, data: Any) -> int:
                taken = min(len(data), disk.room)
                disk.room -= taken
                if not taken:
                    disk.refused += 1
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(data[:taken])

        monkeypatch.setattr("spectrum.scanning.journal.FileIO", File)


LINE = line(written_as("w", 0, 1.0))


@pytest.mark.parametrize("room", [len(HEAD), len(HEAD) + 5, len(HEAD + LINE), len(HEAD + LINE) + 5])
def test_a_disk_that_fills_up_is_a_problem_and_leaves_what_was_there(
    room: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch, room)
    journal = Journal(path, IDENTITY)
    lines = (room - len(HEAD)) // len(LINE)
    for i in range(lines):
        journal.append([score("w", i, 1.0)])
        assert journal.write_error is None
    journal.append([score("w", lines, 1.0)])
    assert journal.write_error
    problem, refused, left = journal.write_error, disk.refused, path.read_bytes()
    disk.room = 1000  # it has made up its mind: half a line may be there
    journal.append([score("w", 9, 1.0)])
    journal.close()
    assert (journal.write_error, disk.refused, path.read_bytes()) == (problem, refused, left)
    assert read(path, IDENTITY) == dict(score("w", i, 1.0) for i in range(lines))


@pytest.mark.parametrize("room", [0, 5])
def test_a_disk_that_is_full_before_the_first_score_is_a_problem(
    room: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FullDisk(monkeypatch, room)
    journal = Journal(path, IDENTITY)
    journal.append(SCORES)
    assert journal.write_error == (
        f"only {room} of {len(HEAD)} bytes could be written" if room else os.strerror(errno.ENOSPC)
    )
    journal.append(SCORES)
    journal.close()
    assert read(path, IDENTITY) == {}


def test_a_failing_fsync_is_a_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    journal = Journal(path, IDENTITY)
    journal.append(SCORES[:1])

    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    clock.now += 10
    journal.append(SCORES[1:2])
    assert journal.write_error == os.strerror(errno.EIO)
    before = path.read_bytes()
    journal.append(SCORES[2:])
    journal.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("where", ["a directory", "below a file"])
def test_a_journal_that_cannot_be_opened_is_a_problem(where: str, tmp_path: Path) -> None:
    if where == "a directory":
        path = tmp_path
    else:
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "scan.journal-0.jsonl"
    assert read(path, IDENTITY) == {}
    journal = write(path, SCORES)
    assert journal.scores == {}
    assert journal.write_error
    assert [p.name for p in tmp_path.iterdir()] == (["file"] if where == "below a file" else [])


def test_a_directory_that_takes_no_file_is_a_problem(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    journal = write(path, SCORES)
    assert journal.write_error == os.strerror(errno.EACCES)


# What a stranger may have put in its place.


def content(identity: dict[str, Any] = IDENTITY) -> bytes:
    """A journal with a score."""
    return json.dumps(identity, separators=(",", ":")).encode() + b"\n" + line(written_as("w", 0, 1.0))


@pytest.mark.parametrize("link", ["symbolic", "hard", "dangling"])
@pytest.mark.parametrize("held", [b"something of the user's\n" * 100, content(), content({"weights": "other"})])
def test_a_link_is_replaced_and_what_it_leads_to_is_left_alone(
    link: str, held: bytes, path: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(held)
    path.parent.mkdir()
    if link == "hard":
        path.hardlink_to(outside)
    else:
        path.symlink_to(outside if link == "symbolic" else tmp_path / "nowhere")
    assert read(path, IDENTITY) == {}
    journal = write(path, SCORES)
    assert (journal.scores, journal.write_error) == ({}, None)
    assert outside.read_bytes() == held
    assert not (tmp_path / "nowhere").exists()
    assert not path.is_symlink()
    assert path.stat().st_nlink == 1
    assert read(path, IDENTITY) == dict(SCORES)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_link_within_the_directory_is_replaced_too(path: Path) -> None:
    other = path.with_name("other.jsonl")
    write(other, SCORES)
    path.symlink_to(other.name)
    assert read(path, IDENTITY) == {}
    write(path, SCORES[:1])
    assert read(other, IDENTITY) == dict(SCORES)
    assert read(path, IDENTITY) == dict(SCORES[:1])


def test_a_journal_that_becomes_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    write(path, SCORES[:1])
    journal = Journal(path, IDENTITY)
    outside = tmp_path / "outside"
    outside.write_bytes(path.read_bytes() + b"more that is the user's")
    before = outside.read_bytes()
    path.unlink()
    path.symlink_to(outside)
    journal.append(SCORES[1:])
    journal.close()
    assert journal.write_error
    assert outside.read_bytes() == before


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_what_is_no_file_hangs_nothing_and_stays(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir()
    monkeypatch.chdir(path.parent)  # the paths of sockets are short
    if kind == "FIFO":
        os.mkfifo(path.name)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    assert read(path, IDENTITY) == {}
    assert not is_outdated(path, None)
    journal = write(path, SCORES)
    assert journal.write_error == "it exists and is not a file"
    assert not path.is_file()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_what_another_user_wrote_is_not_believed(path: Path) -> None:
    write(path, SCORES)
    os.chown(path, 12345, -1)
    assert read(path, IDENTITY) == {}
    assert write(path, SCORES[:1]).scores == {}
    assert read(path, IDENTITY) == dict(SCORES[:1])


@pytest.mark.parametrize("more", [b"[" + b" " * 3_000_000 + b"]\n", b" " * 3_000_000], ids=["whole", "endless"])
def test_an_endless_line_is_not_read(more: bytes, path: Path) -> None:
    write(path, SCORES[:1])
    with path.open("ab") as file:
        file.write(more)
        file.write(line(written_as("w", 0, 1.0)))
    assert read(path, IDENTITY) == dict(SCORES[:1])


def test_a_sparse_file_takes_no_memory(path: Path) -> None:
    write(path, SCORES[:1])
    os.truncate(path, 8 << 30)
    tracemalloc.start()
    try:
        assert read(path, IDENTITY) == dict(SCORES[:1])
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_many_scores_at_once_are_lines_that_can_be_read(path: Path) -> None:
    many = [score(f"model.layers.{i}.{'x' * 250}", i, float(i)) for i in range(20_000)]
    write(path, many)
    assert read(path, IDENTITY) == dict(many)


# Which results it precedes.


@pytest.mark.parametrize("at_the_start", [None, "0f3a", "1234"])
@pytest.mark.parametrize("now", [None, "0f3a", "1234"])
def test_a_journal_is_outdated_once_results_are_written(at_the_start: str | None, now: str | None, path: Path) -> None:
    journal = Journal(path, IDENTITY, at_the_start)
    journal.append(SCORES)
    journal.close()
    assert is_outdated(path, now) is (at_the_start != now)
    again = Journal(path, IDENTITY, now)
    assert again.scores == read(path, IDENTITY) == dict(SCORES)
    again.append([score("w", 0, 1.0)])
    again.close()
    assert read(path, IDENTITY) == dict([*SCORES, score("w", 0, 1.0)])
    assert not is_outdated(path, now)  # what is added to it is not removed with what it was begun for


# How soon it is on the disk.


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_what_is_appended_is_flushed_to_the_disk_every_two_seconds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    flushed: list[tuple[float, int]] = []

    def record(file: int) -> None:
        flushed.append((clock.now, os.fstat(file).st_size))

    monkeypatch.setattr(os, "fsync", record)
    journal = Journal(path, IDENTITY)
    appended: list[tuple[float, int]] = []
    for i in range(100):
        clock.now += 0.25
        journal.append([score("w", i, 1.0)])
        appended.append((clock.now, path.stat().st_size))
    assert 0 < len(flushed) <= 13  # not at each, which would take longer than the scores
    for when, size in appended[:-9]:
        assert any(size <= flushed_size and then - when <= 2.25 for then, flushed_size in flushed), (when, size)
    journal.close()
    assert flushed[-1] == appended[-1]


def test_a_slow_scan_flushes_every_score(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append(os.fstat(file).st_size))
    journal = Journal(path, IDENTITY)
    sizes = []
    for i in range(5):
        clock.now += 60
        journal.append([score("w", i, 1.0)])
        sizes.append(path.stat().st_size)
    assert flushed == sizes
    journal.close()
