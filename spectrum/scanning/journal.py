"""The journal: the scores found so far, on disk line by line, from which an interrupted scan resumes.

The first line says what scores depend on: the weights, the class, the versions. If the scan will replace a cached scan,
the second line has the digest of that one's scores. Each line after that is a list of `[parameter, index, SNR, edge]`,
where the edge is a list too. A line is handed to the operating system at once, so a killed process loses nothing. It is
flushed to disk within seconds, so a power cut loses little.

A results directory may be untrusted. So a file counts as a journal only if it is a regular file that this user owns and
that has no other hard link. Anything else that has a journal's name is not read and not written to, but replaced.
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
from spectrum.text import plural

Matrix = tuple[str, int]  # a parameter's name, and the index of a matrix in its stack

_SYNC_EVERY = 2.0  # seconds

# The largest line and file that are read. A scan of a trillion parameters has 1,000 scores in its longest line, and
# 10 MB in all.
_MAX_LINE_BYTES = 2 << 20
_MAX_BYTES = 32 << 20
_SCORES_PER_LINE = 1_000

_REPLACED_KEY = "precedes"  # the key in the second line


class Journal:
    """The journal that one process writes.

    Args:
        path: the file, which need not exist.
        identity: what scores depend on, as JSON values. A journal of another identity is not resumed.
        replaced_digest: the digest of the cached scores when the scan began; None if there were none.

    Attributes:
        scores: the scores that the journal held when it was opened.
        num_kept: how many scores are in the file.
        write_error: why the journal cannot be written; None while it can. After an error it takes no more scores.
        is_foreign: whether a file has the journal's name, but is not a journal of this scan.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], replaced_digest: str | None = None) -> None:
        self.path = path
        self.write_error: str | None = None
        self._is_disk_full = False
        self.scores: dict[Matrix, MatrixScore] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._head = _to_line(identity)
        self._replaced_digest = replaced_digest
        try:
            self._end, self.scores = _read_intact(path, self._head)
        except OSError as error:
            self._end = 0
            self._give_up(error)
        self.num_kept = len(self.scores)
        self.is_foreign = not self._end and os.path.lexists(path)
        if self._end and is_outdated(path, replaced_digest):
            self._end = 0  # a new journal will have the same scores, and the digest of the scan that it replaces

    def append(self, scores: Sequence[tuple[Matrix, MatrixScore]]) -> None:
        """Add scores. If that fails, `write_error` says why."""
        if self.write_error is not None:
            return
        try:
            if self._file is None:
                self._open()
            self._write_scores(scores)
            self.num_kept += len(scores)
            if time.monotonic() - self._synced > _SYNC_EVERY:
                self._sync()
        except OSError as error:
            self._give_up(error)

    def start_over(self) -> None:
        """Forget the scores that the journal held. The next score replaces the file."""
        self._end, self.scores, self.num_kept = 0, {}, 0

    def failure(self) -> str:
        """What a user should know once the journal cannot be written."""
        kept = f"only {plural(self.num_kept, 'score')} will be kept" if self.num_kept else "no score will be kept"
        remedy = "; free some space until then" if self._is_disk_full else ""
        return (
            f"cannot write {self.path}: {self.write_error}; the scan goes on and is saved at its end{remedy}; if it is "
            f"interrupted before, {kept}"
        )

    def close(self) -> None:
        """Flush and close the file. It stays for the next run."""
        if self._file is not None:
            with suppress(OSError):
                self._sync()
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _open(self) -> None:
        """Open the file for the first score. A scan that finds no score leaves no journal."""
        if self._end:
            self._file = FileIO(_open_owned(self.path, os.O_RDWR), "r+")
            self._file.truncate(self._end)  # cuts off a line that was being written when its run ended
            self._file.seek(self._end)
        else:
            files.in_directory(self.path.parent, self._replace)
            files.remove_abandoned(self.path)

    def _replace(self) -> None:
        """Start a new file in place of any file or link that has the journal's name."""
        files.check_place(self.path)
        new = files.beside(self.path)
        self._file = FileIO(files.create(new), "r+")
        try:
            self._write(self._head)
            if self._replaced_digest is not None:
                self._write(_to_line({_REPLACED_KEY: self._replaced_digest}))
            self._write_scores(list(self.scores.items()))
            new.replace(self.path)
        except BaseException:
            self._file.close()
            self._file = None
            with suppress(OSError):
                new.unlink()
            raise

    def _write_scores(self, scores: Sequence[tuple[Matrix, MatrixScore]]) -> None:
        for start in range(0, len(scores), _SCORES_PER_LINE):
            part = scores[start : start + _SCORES_PER_LINE]
            self._write(_to_line([(*matrix, *score) for matrix, score in part]))

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        written = self._file.write(line)  # unbuffered: one system call
        if written != len(line):  # a disk that fills up takes the beginning of a line
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written")

    def _sync(self) -> None:
        assert self._file is not None
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        self.write_error = error.strerror or str(error)
        self._is_disk_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self.close()


def read(path: Path, identity: Mapping[str, Any]) -> dict[Matrix, MatrixScore]:
    """The scores in a journal; none if it is missing, damaged or of another identity."""
    try:
        return _read_intact(path, _to_line(identity))[1]
    except OSError:
        return {}


def is_outdated(path: Path, digest: str | None) -> bool:
    """Whether a scan was cached after a journal began. False for a file that is not a journal of this user.

    Args:
        path: the journal.
        digest: the digest of the scores that are cached now; None if there are none.
    """
    try:
        with _open_for_reading(path) as file:
            if not isinstance(_parse(file.readline(_MAX_LINE_BYTES)), dict):
                return False
            second = _parse(file.readline(_MAX_LINE_BYTES))
    except OSError:
        return False
    return (second.get(_REPLACED_KEY) if isinstance(second, dict) else None) != digest


def _read_intact(path: Path, head: bytes) -> tuple[int, dict[Matrix, MatrixScore]]:
    """The size of a journal's intact part in bytes, and the scores in it.

    What follows the intact part was being written when the run ended. A journal with another first line counts as
    empty.
    """
    scores: dict[Matrix, MatrixScore] = {}
    try:
        with _open_for_reading(path) as file:
            if file.readline(len(head)) != head:
                return 0, {}
            end = len(head)
            while end < _MAX_BYTES and (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                content = _parse(line)
                is_second = end == len(head) and isinstance(content, dict) and content.keys() == {_REPLACED_KEY}
                if not is_second:
                    try:
                        scores |= {(str(name), int(index)): _to_score(*score) for name, index, *score in content}
                    except (ValueError, TypeError, OverflowError):
                        break
                end += len(line)
    except (FileNotFoundError, _NotOwnedError):
        return 0, {}
    return end, scores


class _NotOwnedError(OSError):
    """The file that has a journal's name does not count as one; see the top of this module."""


@contextmanager
def _open_for_reading(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(_open_owned(path, os.O_RDONLY), "rb") as file:
        yield file


def _open_owned(path: Path, access: int) -> int:
    """The descriptor of an open journal. Raises _NotOwnedError for a file that does not count as one."""
    if not stat.S_ISREG(path.lstat().st_mode):  # before it is opened, since opening a device may have an effect
        raise _NotOwnedError(errno.EINVAL, "it is not a regular file")
    try:
        descriptor = os.open(path, access | files.OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # it has become a link, a FIFO or a socket
            raise _NotOwnedError(error.errno, error.strerror) from error
        raise
    try:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and _is_owned(status, path.parent)):
            raise _NotOwnedError(errno.EPERM, "it is not a journal of this user")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _is_owned(status: os.stat_result, directory: Path) -> bool:
    try:
        return status.st_uid == files.user_of(directory)
    except OSError:
        return False


def _parse(line: bytes) -> Any:
    try:
        return files.parse_json(line)
    except ValueError:
        return None


def _to_score(snr: Any, edge: Any) -> MatrixScore:
    return MatrixScore(float(snr), BulkEdge.parse(edge))


def _to_line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
