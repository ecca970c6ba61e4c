"""What the command writes to a terminal: streams, messages, the progress bar."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from tqdm import tqdm

from spectrum.compute.batches import WeightBatch
from spectrum.scanning import distributed
from spectrum.scanning.request import ProgressBar
from spectrum.text import in_line

_LONGEST_NOTE = 4_000  # characters


def prepare_streams() -> None:
    """Have no stream fail for what is written to it: stderr for any reason, stdout for what its encoding lacks."""
    # A file that was opened under the number of a stream that was closed before the start would get what C libraries
    # write there.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    if sys.stderr is None:
        sys.stderr = _unfailing(spare, "utf-8")
    else:
        os.close(spare)
        sys.stderr = _unfailing(sys.stderr.fileno(), sys.stderr.encoding)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _unfailing(descriptor: int, encoding: str) -> io.TextIOWrapper:
    raw = _Unfailing(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


class _Unfailing(io.FileIO):
    """A file that loses what cannot be written: a log's disk is full, or its reader is gone, but the job goes on.

    Whoever writes to stderr, be it a library's bar or Python at its exit, gets here.
    """

    def write(self, data: Any, /) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def print_result(text: str) -> int:
    """Print a result; the exit status of that."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail(f"the result cannot be printed: {error.strerror or error}; files, if any, are written")
    return 0


def coloured_columns() -> int | None:
    """The width of stdout where that is a terminal with colours, and bars, that the user wants (no-color.org)."""
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return None
    if os.environ.get("TERM") == "dumb" or (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return None
    return shutil.get_terminal_size().columns


def progress_bar(batches: Sequence[WeightBatch], *, quiet: bool) -> ProgressBar:
    """A progress bar on stderr."""
    unit = "weights" if distributed.count() == 1 else "weights of the main process"
    # A log file needs no bar redrawn ten times a second; of several processes, one bar tells enough.
    shown = sys.stderr is not None and not quiet and distributed.rank() == 0
    interval = 0.1 if shown and sys.stderr.isatty() else 10.0
    bar = partial(tqdm, file=sys.stderr, disable=not shown, mininterval=interval)
    return ProgressBar(batches, bar, unit)


def note(message: str) -> None:
    """Print one line on stderr."""
    if sys.stderr is None:  # closed before the start
        return
    who = f" (process {distributed.rank()})" if distributed.rank() else ""
    text = in_line(message)
    if len(text) > _LONGEST_NOTE:  # for a name in it that is as long as a book
        text = f"{text[: _LONGEST_NOTE // 2]} ... {text[-_LONGEST_NOTE // 2 :]}"
    with tqdm.external_write_mode(file=sys.stderr):  # a progress bar makes way
        print(f"spectrum{who}: {text}", file=sys.stderr, flush=True)


def fail(message: str) -> int:
    """Print an error; return its exit status."""
    note(f"error: {' '.join(message.split())}")
    return 1
