"""START HERE. How does the command begin and end? Arguments, signals and exit statuses."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from spectrum.cli import check, plot_spectrum, select, verify
from spectrum.cli.console.options import CheckOptions, Options, SelectOptions, VerifyOptions, parse
from spectrum.cli.console.terminal import (
    can_ask,
    fail,
    note,
    prepare_streams,
    print_result,
    progress_bar,
    shows_colours,
    tell_of_wait,
    text_columns,
    warn,
)
from spectrum.cli.outcome import ModeOutcome
from spectrum.errors import ProcessError, SpectrumError, UnmetError
from spectrum.scanning import distributed
from spectrum.scanning.job import follow, lead
from spectrum.scanning.request import ScanCallbacks

# 128 + the signal's number, as shells report it.
INTERRUPTED = 130
TERMINATED = 143


def command() -> NoReturn:
    """Run the command as a process of its own, and end the process."""
    prepare_streams()
    try:
        _raise_on_signals()
        status = main()
    except KeyboardInterrupt as interrupt:  # before or after `main`, which handles its own
        if os.environ.get("SPECTRUM_DEBUG") == "1":
            raise
        status = _interrupted(interrupt)
    if status in (INTERRUPTED, TERMINATED) or distributed.count() > 1:
        # A thread may still decompose a matrix or wait for other processes. Python cannot stop it, and may crash if it
        # exits while the thread runs.
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _raise_on_signals() -> None:
    """Make SIGINT and SIGTERM raise KeyboardInterrupt, in place of the handlers that `spectrum.__main__` sets."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    Catches every exception, unless SPECTRUM_DEBUG=1. Wrong usage raises SystemExit(2).
    """
    options = parse(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("SPECTRUM_DEBUG") == "1"
    try:
        Path.cwd()
    except OSError as error:  # checked here, because some libraries exit the process in this case
        return fail(f"the working directory is gone: {error.strerror}; change to one that exists")
    try:
        with distributed.report_long_waits(note):
            outcome = _run(options)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        return _interrupted(interrupt)
    except SpectrumError as error:
        if debug:
            raise
        if _received:  # a library that was being imported has turned the interrupt into an error
            return _interrupted(_received[0])
        if isinstance(error, ProcessError) and not isinstance(error, UnmetError) and distributed.rank():
            return 1  # the process that failed first, or the main process, prints the reason
        return fail(str(error))
    except Exception as error:
        if debug:
            raise
        return _interrupted(_received[0]) if _received else fail(_reason(error))
    if outcome.text and (status := print_result(outcome.text)):
        return status
    return fail(outcome.problem) if outcome.problem else 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM was received. The command ends as after Ctrl-C, but with another exit status."""


# The interrupts that signals have raised.
_received: list[KeyboardInterrupt] = []


def _interrupt(number: int, frame: object) -> NoReturn:
    _received.append(KeyboardInterrupt())
    raise _received[-1]


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clean-up
    _received.append(_Terminated())
    raise _received[-1]


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    """Print that the run was interrupted; return the exit status."""
    if distributed.rank() == 0:
        note("; ".join(["interrupted", *map(str, interrupt.args)]))
    cause = interrupt.__cause__ or interrupt
    return TERMINATED if isinstance(cause, _Terminated) else INTERRUPTED


def _reason(error: Exception) -> str:
    """The message for an exception that is not a SpectrumError."""
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):  # C++ libraries raise the latter
        return "there is no memory left; free some, or raise the memory limit of this process"
    if isinstance(error, OSError):  # for example a directory without permission, or a path that is too long
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    if isinstance(error, RecursionError):
        return "a path, or the content of a file, is nested too deep"
    return f"unexpected {type(error).__name__}: {error}; SPECTRUM_DEBUG=1 shows where"


def _run(options: Options) -> ModeOutcome:
    """Run the mode that the options ask for. If there are several processes, the others help the main one to scan."""
    model, mode, quiet = options.model, options.mode, options.quiet
    callbacks = ScanCallbacks(
        info=note,
        warn=warn,
        choose=partial(_choose, options),
        progress=partial(progress_bar, quiet=quiet),
        wait=partial(tell_of_wait, quiet=quiet),
    )
    if distributed.rank() > 0:
        follow(callbacks)
        return ModeOutcome("")
    for warning in options.warnings:
        warn(warning)
    columns = text_columns(sys.stdout)
    if isinstance(mode, SelectOptions):
        return select.select(model, mode, callbacks, quiet=quiet, columns=columns, colours=shows_colours())
    if isinstance(mode, VerifyOptions) and mode.list is None:  # the other processes help to scan
        return verify.verify(model, mode, callbacks, quiet=quiet, columns=columns)
    with lead():  # the other processes wait until this ends
        if isinstance(mode, VerifyOptions):
            return verify.verify(model, mode, callbacks, quiet=quiet, columns=columns)
        if isinstance(mode, CheckOptions):
            return check.check(model, mode, callbacks, quiet=quiet, columns=columns)
        return plot_spectrum.plot_spectrum(model, mode, callbacks)


def _choose(options: Options, layer_counts: Sequence[tuple[str, int]]) -> tuple[int | None, list[str]]:
    """The batch size (None for `auto`) and the layer types.

    Each comes from an option if that is given, otherwise from a dialog if there is a terminal, otherwise it is the
    default.

    Args:
        options: the options of the command.
        layer_counts: the layer types that --layer-types allows, each with its number of layers.
    """
    layer_types = [layer_type for layer_type, _ in layer_counts]
    mode = options.mode.select if isinstance(options.mode, VerifyOptions) else options.mode
    asked = mode if isinstance(mode, SelectOptions) else SelectOptions()  # no other mode scans
    batch_size = asked.batch_size if isinstance(asked.batch_size, int) else None
    open_questions = []
    if asked.batch_size is None:
        open_questions.append("batch size auto")
    if asked.layer_types is None:
        open_questions.append("layer types all")
    if not open_questions:
        return batch_size, layer_types
    if options.yes or not can_ask():
        if not options.quiet:
            note(f"{'--yes' if options.yes else 'no terminal to ask on'}: {', '.join(open_questions)}")
        return batch_size, layer_types
    from spectrum.cli.console import dialogs

    if asked.batch_size is None:
        batch_size = dialogs.ask_batch_size()
    if asked.layer_types is None:
        layer_types = dialogs.ask_layer_types(layer_counts)
    return batch_size, layer_types
