"""Scores found so far, kept on disk line by line, so that a scan that was cut short goes on from there.

A journal begins with a line that says which weights it is of, under which class and versions. Each line after that is
a list of `[parameter, index, SNR, edge]`, the edge being a list in turn. What is appended is with the operating system
at once, so the end of the process loses nothing, and on the disk within seconds, so the end of the machine loses
little.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from spectrum.files import in_directory
from spectrum.layers import Edge, MatrixScore

Matrix = tuple[str, int]  # a parameter's name, and the index in its stack

_SYNC_EVERY = 2.0  # seconds


class Journal:
    """A journal that is open for writing, by one process at a time.

    known: what it held already. problem: why it can no longer be written, if so; it then takes no more.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.problem: str | None = None
        self.known: dict[Matrix, MatrixScore] = {}
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()
        self._head = _line(identity)
        try:
            self._end, self.known = _understood(path, self._head)
        except OSError as error:
            self._give_up(error)

    def append(self, scores: Sequence[tuple[Matrix, MatrixScore]]) -> None:
        """Add scores."""
        if self.problem is not None:
            return
        try:
            if self._file is None:
                self._open()
            self._write(_line([(*matrix, *score) for matrix, score in scores]))
            if time.monotonic() - self._synced > _SYNC_EVERY:
                self._sync()
        except OSError as error:
            self._give_up(error)

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
        mode = "r+b" if self._end else "wb"
        self._file = in_directory(self.path.parent, lambda: self.path.open(mode, buffering=0))
        self._file.truncate(self._end)
        self._file.seek(self._end)
        if not self._end:
            self._write(self._head)

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


def _understood(path: Path, head: bytes) -> tuple[int, dict[Matrix, MatrixScore]]:
    """How much of a journal is whole, and the scores in that. What follows was being written when its run ended."""
    known: dict[Matrix, MatrixScore] = {}
    try:
        with path.open("rb") as file:
            if file.readline(len(head)) != head:  # of other weights, or none: whatever it holds is not read
                return 0, {}
            end = len(head)
            for line in file:
                try:
                    entries = {(str(name), int(index)): _score(*score) for name, index, *score in json.loads(line)}
                except (ValueError, TypeError, RecursionError, OverflowError):
                    break
                if not line.endswith(b"\n"):
                    break
                known |= entries
                end += len(line)
    except FileNotFoundError:
        return 0, {}
    return end, known


def _score(snr: Any, edge: Any) -> MatrixScore:
    above, below, gap, jump = edge
    return MatrixScore(float(snr), Edge(int(above), int(below), float(gap), float(jump)))


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
