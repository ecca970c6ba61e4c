"""Errors that a user can meet. Each message is one line: what was found, where, what to do.

SpectrumError
├── CheckpointError     a model directory, its config, a shard, an index or a weight
│   └── HubError        a repository that does not exist, is closed to the user, or cannot be reached
├── LayerTypeError      a layer type that the model does not have
├── SelectionError      a selection that is not possible, or does not fit a model
├── ResultsError        a cached scan that cannot be read; a file that cannot be written
├── DeviceError         a device that this machine does not have, or that cannot do the work
├── ProcessError        processes of one run that lost contact with each other
│   └── UnmetError      processes of one run that never made contact
└── Cancelled           a dialog that the user closed
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from spectrum.text import in_line

_P = ParamSpec("_P")
_T = TypeVar("_T")


class SpectrumError(Exception):
    """The job cannot be done. The message is one line, even if names in it hold line breaks."""

    def __init__(self, message: str) -> None:
        super().__init__(in_line(message))


class CheckpointError(SpectrumError):
    """A checkpoint is missing or damaged, or its format is not supported."""


class HubError(CheckpointError):
    """A checkpoint cannot be downloaded from the Hugging Face Hub."""


class LayerTypeError(SpectrumError):
    """The model does not have a requested layer type."""


class SelectionError(SpectrumError):
    """A selection is not possible, or names parameters that the model does not have."""


class ResultsError(SpectrumError):
    """A results file is malformed, or cannot be written."""


class DeviceError(SpectrumError):
    """A device does not exist on this machine, or cannot do the work."""


class ProcessError(SpectrumError):
    """A process of this run cannot be reached, or has ended."""


class UnmetError(ProcessError):
    """The processes of this run never made contact."""


class Cancelled(SpectrumError):  # noqa: N818 - the user's choice, not an error
    """The user cancelled a dialog. Nothing is scanned or written."""


class StoppedError(Exception):
    """The scan has ended while a thread was at work. This exception ends the thread's work; no caller sees it."""


def short_traceback(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function for users of Python. The traceback of its SpectrumErrors has their line and one of ours, no more.

    So has that of a KeyboardInterrupt which says what is kept. The exceptions of libraries that led to the error are
    not shown; SPECTRUM_DEBUG=1 shows them, and all frames.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except (SpectrumError, KeyboardInterrupt) as error:
            if os.environ.get("SPECTRUM_DEBUG") == "1" or not error.args:
                raise
            raise error.with_traceback(None) from None

    return call


@contextmanager
def thread_errors() -> Iterator[None]:
    """Raises DeviceError if a thread cannot be started in the block. Python raises only a RuntimeError then."""
    try:
        yield
    except RuntimeError as error:
        raise DeviceError("there is no memory for a thread, or the system allows no more of them") from error


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, with the second if the first ends in a colon."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return f"{lines[0]} {lines[1]}"
    return next(iter(lines), type(error).__name__)
