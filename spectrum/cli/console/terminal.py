"""How does the command use the terminal? Streams, messages, the progress bar, colours."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TextIO

from tqdm import tqdm

from spectrum.compute.batches import WeightBatch
from spectrum.scanning import distributed
from spectrum.scanning.request import ProgressBar
from spectrum.text import in_line, wrapped

_MAX_NOTE_LENGTH = 4_000  # characters
_USUAL_COLUMNS = 80  # of a terminal that does not say how wide it is
_MIN_COLUMNS = 20  # that lines are fitted to; on a narrower terminal, the terminal breaks them


def prepare_streams() -> None:
    """Make writing to stderr never fail, and stdout escape characters that its encoding lacks."""
    # If a standard stream was closed before the start, the next file that is opened would get its number. C libraries
    # would write their messages into that file. So /dev/null takes the number first.
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    if sys.stderr is None:
        sys.stderr = _lossy_stream(spare, "utf-8")
    else:
        os.close(spare)
        sys.stderr = _lossy_stream(sys.stderr.fileno(), sys.stderr.encoding)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _lossy_stream(descriptor: int, encoding: str) -> io.TextIOWrapper:
    """A text stream on a descriptor that never fails."""
    raw = _LossyFile(descriptor, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


class _LossyFile(io.FileIO):
    """A file that drops what it cannot write, so that a full disk or a closed pipe behind stderr does not end the run.

    Everything on stderr goes through it: our messages, the progress bars of libraries, and what Python writes at exit.
    """

    def write(self, data: Any, /) -> int:
        with suppress(OSError):
            return super().write(data) or len(data)
        return len(data)


def print_result(text: str) -> int:
    """Print a result, and return the exit status: 1 if stdout cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return fail(f"cannot print the result: {error.strerror or error}; files, if any, are written")
    return 0


def can_ask() -> bool:
    """Whether a user at a terminal can answer questions."""
    # A stream that was closed before the start is None.
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    # The cell of a notebook looks like a terminal, but takes no keys. A dumb terminal cannot draw a dialog.
    return terminal and "JPY_PARENT_PID" not in os.environ and os.environ.get("TERM") != "dumb"


def text_columns(stream: TextIO | None) -> int | None:
    """How many columns a line on this stream may take, if the stream is a terminal. None for pipes and files.

    The last column stays free, since some terminals begin a new line as soon as it is written. COLUMNS overrides what
    the terminal says, as for other programs.
    """
    if stream is None or not stream.isatty():  # a stream that was closed before the start is None
        return None
    said = os.environ.get("COLUMNS", "")
    columns = int(said) if re.fullmatch(r"\d{1,6}", said, re.ASCII) else 0
    if not columns:
        with suppress(OSError):
            columns = os.get_terminal_size(stream.fileno()).columns
    return max(columns or _USUAL_COLUMNS, _MIN_COLUMNS) - 1


def shows_colours() -> bool:
    """Whether stdout is a terminal that shows colours and block characters.

    False also if the user wants no colours (no-color.org).
    """
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return False
    return os.environ.get("TERM") != "dumb" and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def progress_bar(batches: Sequence[WeightBatch], *, quiet: bool) -> ProgressBar:
    """A progress bar on stderr for the scan of these batches, shown by the main process alone."""
    unit = "weights" if distributed.count() == 1 else "weights of the main process"
    return ProgressBar(batches, partial(_bar, quiet=quiet), unit)


def byte_bar(num_bytes: int, *, quiet: bool) -> Any:
    """A progress bar on stderr for so many bytes that are read, shown by the main process alone."""
    return _bar(total=num_bytes, unit="B", unit_scale=True, quiet=quiet)


def _bar(*, quiet: bool, **arguments: Any) -> Any:
    shown = sys.stderr is not None and not quiet and distributed.rank() == 0
    interval = 0.1 if shown and sys.stderr.isatty() else 10.0  # seconds; a log file needs few updates
    return tqdm(file=sys.stderr, disable=not shown, mininterval=interval, **arguments)


def note(message: str) -> None:
    """Print one line on stderr. On a terminal, a long one is broken between words."""
    if sys.stderr is None:  # closed before the start
        return
    process = f" (process {distributed.rank()})" if distributed.rank() else ""
    text = in_line(message)
    if len(text) > _MAX_NOTE_LENGTH:  # an untrusted file may hold endless names
        text = f"{text[: _MAX_NOTE_LENGTH // 2]} ... {text[-_MAX_NOTE_LENGTH // 2 :]}"
    with tqdm.external_write_mode(file=sys.stderr):  # clears a progress bar, and draws it again below
        print(for_stderr(f"spectrum{process}: {text}"), file=sys.stderr, flush=True)


def tell_of_wait(message: str, *, quiet: bool) -> None:
    """Say to someone at a terminal what the next seconds are for."""
    if not quiet and sys.stderr is not None and sys.stderr.isatty():
        note(f"{message} ...")


def for_stderr(text: str) -> str:
    """Text as stderr gets it: on a terminal, long lines are broken between words; scripts get each line whole."""
    return wrapped(text, text_columns(sys.stderr), "  ")


def warn(message: str) -> None:
    """Print one line on stderr about something that may make the result unexpected."""
    note(f"warning: {message}")


def fail(message: str) -> int:
    """Print one line on stderr about an error, and return the exit status for it."""
    note(f"error: {' '.join(message.split())}")
    return 1
