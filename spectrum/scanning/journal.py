"""Scores found so far, kept on disk line by line, so that a scan that was cut short goes on from there.

A journal begins with a line that says which weights it is of, under which class and versions. Where there are results
already, which those of its scan will replace, a second line has their digest. Each line after that is a list of
`[parameter, index, SNR, edge]`, the edge being a list in turn. What is appended is with the operating system at once,
so the end of the process loses nothing, and on the disk within seconds, so the end of the machine loses little.

A directory of results may be a stranger's. So a journal is a regular file of this user's, under one name; whatever else
has its name is not read, not written to, and replaced.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

from spectrum import files
from spectrum.records import BulkEdge, MatrixScore

Matrix = tuple[str, int]  # a parameter's name, and the index in its stack
_SYNC_EVERY = 2.0  # seconds

# What is read at most: a line of a scan of a trillion parameters has 1,000 scores, and all its lines 10 MB.
_LONGEST_LINE = 2 << 20  # bytes
_LONGEST = 32 << 20
_SCORES_IN_A_LINE = 1_000
_PRECEDES = "precedes"


class Journal:
    """A journal that is open for writing, by one process at a time.

    precedes: the digest of the results that are there as the scan begins, None where there are none. known: what the
    journal held already. problem: why it can no longer be written, if so; it then takes no more. foreign: whether what
    is there is no journal of this scan.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], precedes: str | None = None) -> None:
        self.path = path
        self.problem: str | None = None
        self.known: dict[Matrix, MatrixScore] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._head = _line(identity)
        self._precedes = precedes
        try:
            self._end, self.known = _understood(path, self._head)
        except OSError as error:
            self._end = 0
            self._give_up(error)
        self.foreign = not self._end and os.path.lexists(path)
        if self._end and is_outdated(path, precedes):
            self._end = 0  # a new one has the scores of this one, and says what it precedes

    def append(self, scores: Sequence[tuple[Matrix, MatrixScore]]) -> None:
        """Add scores."""
        if self.problem is not None:
            return
        try:
            if self._file is None:
                self._open()
            self._write_scores(scores)
            if time.monotonic() - self._synced > _SYNC_EVERY:
                self._sync()
        except OSError as error:
            self._give_up(error)

    def begin_anew(self) -> None:
        """Forget what the journal held: it is replaced at the first score."""
        self._end, self.known = 0, {}

    def close(self) -> None:
        """Leave the journal for the next run."""
        if self._file is not None:
            with suppress(OSError):
                self._sync()
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self) -> None:
        """Open the file behind its whole part: for the first score, since a scan that finds none should leave none."""
        if self._end:
            descriptor = _owned(self.path, os.O_RDWR)
            self._file = FileIO(descriptor, "r+")
            self._file.truncate(self._end)
            self._file.seek(self._end)
        else:
            files.in_directory(self.path.parent, self._replace)
            files.sweep(self.path)

    def _replace(self) -> None:
        """Begin a new file, which takes the place of whatever file or link has the journal's name."""
        files.check_place(self.path)
        new = files.beside(self.path)
        self._file = FileIO(files.create(new), "r+")
        try:
            self._write(self._head)
            if self._precedes is not None:
                self._write(_line({_PRECEDES: self._precedes}))
            self._write_scores(list(self.known.items()))
            new.replace(self.path)
        except BaseException:
            self._file.close()
            self._file = None
            with suppress(OSError):
                new.unlink()
            raise

    def _write_scores(self, scores: Sequence[tuple[Matrix, MatrixScore]]) -> None:
        for start in range(0, len(scores), _SCORES_IN_A_LINE):
            part = scores[start : start + _SCORES_IN_A_LINE]
            self._write(_line([(*matrix, *score) for matrix, score in part]))

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        written = self._file.write(line)  # unbuffered: with the operating system, or not at all
        if written != len(line):  # a disk that fills up takes the beginning
            raise OSError(f"only {written} of {len(line)} bytes could be written")

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        self.problem = error.strerror or str(error)
        self.close()


def read(path: Path, identity: Mapping[str, Any]) -> dict[Matrix, MatrixScore]:
    """The scores in a journal, none where it is of something else, damaged or not there."""
    try:
        return _understood(path, _line(identity))[1]
    except OSError:
        return {}


def is_outdated(path: Path, results: str | None) -> bool:
    """Whether results have been written since a journal began, by the digest of those that are there.

    What is no journal, or another user's, is not.
    """
    try:
        with _reading(path) as file:
            if not isinstance(_parsed(file.readline(_LONGEST_LINE)), dict):
                return False
            second = _parsed(file.readline(_LONGEST_LINE))
    except OSError:
        return False
    return (second.get(_PRECEDES) if isinstance(second, dict) else None) != results


def _understood(path: Path, head: bytes) -> tuple[int, dict[Matrix, MatrixScore]]:
    """How much of a journal is whole, and the scores in that. What follows was being written when its run ended."""
    known: dict[Matrix, MatrixScore] = {}
    try:
        with _reading(path) as file:
            if file.readline(len(head)) != head:  # of other weights, or none: whatever it holds is not read
                return 0, {}
            end = len(head)
            while end < _LONGEST and (line := file.readline(_LONGEST_LINE)).endswith(b"\n"):
                content = _parsed(line)
                if not (end == len(head) and isinstance(content, dict) and content.keys() == {_PRECEDES}):
                    try:
                        entries = {(str(name), int(index)): _score(*score) for name, index, *score in content}
                    except (ValueError, TypeError, OverflowError):
                        break
                    known |= entries
                end += len(line)
    except (FileNotFoundError, _NotOursError):
        return 0, {}
    return end, known


class _NotOursError(OSError):
    """What has a journal's name was not written as one by this user."""


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(_owned(path, os.O_RDONLY), "rb") as file:
        yield file


def _owned(path: Path, access: int) -> int:
    """The descriptor of a journal that this user wrote. Raises _NotOursError for anything else of that name."""
    if not stat.S_ISREG(path.lstat().st_mode):  # before it is opened, since to open a device may have an effect
        raise _NotOursError(errno.EINVAL, "it is no regular file")
    try:
        descriptor = os.open(path, access | files.FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a FIFO or a socket since
            raise _NotOursError(error.errno, error.strerror) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _is_ours(status, path.parent)):
            raise _NotOursError(errno.EPERM, "it is no journal of this user's")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_ours(status: os.stat_result, directory: Path) -> bool:
    try:
        return status.st_uid == files.owner(directory)
    except OSError:
        return False


def _parsed(line: bytes) -> Any:
    try:
        return files.parse_json(line)
    except ValueError:
        return None


def _score(snr: Any, edge: Any) -> MatrixScore:
    return MatrixScore(float(snr), BulkEdge.parse(edge))


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
