"""START here: the command from its arguments to its exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from spectrum.cli import commands
from spectrum.cli.options import DEFAULT_FORMAT, hyphenated, parser
from spectrum.cli.terminal import coloured_columns, fail, note, prepare_streams, print_result, progress_bar
from spectrum.errors import ProcessError, SpectrumError, UnmetError
from spectrum.scanning import distributed
from spectrum.scanning.job import follow, lead
from spectrum.scanning.request import ScanCallbacks

if TYPE_CHECKING:
    pass


# 128 + the signal's number, as shells report it.
INTERRUPTED = 130
TERMINATED = 143


def command() -> NoReturn:
    """Run the command as a process of its own, and end that."""
    prepare_streams()
    try:
        _raise_on_signals()
        status = main()
    except KeyboardInterrupt as interrupt:  # outside of the job, which `main` sees to
        if os.environ.get("SPECTRUM_DEBUG") == "1":
            raise
        status = _interrupted(interrupt)
    if status in (INTERRUPTED, TERMINATED) or distributed.count() > 1:
        # Threads may be in the midst of a decomposition, or of talking to other processes, which Python neither ends
        # nor survives.
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


class _Terminated(KeyboardInterrupt):
    """Whoever keeps the machine wants it back: all ends as if the user had interrupted it."""


def _raise_on_signals() -> None:
    """Have interrupts raise KeyboardInterrupt, in place of what `spectrum.__main__` does while modules are imported."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    """Say that the command was interrupted; return its exit status."""
    if distributed.rank() == 0:
        note(f"interrupted{''.join(f'; {word}' for word in interrupt.args)}")
    return TERMINATED if isinstance(interrupt.__cause__ or interrupt, _Terminated) else INTERRUPTED


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. No exception leaves, unless SPECTRUM_DEBUG=1."""
    grammar = parser()
    args = grammar.parse_args(hyphenated(sys.argv[1:] if argv is None else argv))
    if args.model_name is None:  # after whatever else is wrong, such as its misspelling
        grammar.error("the following arguments are required: --model-name")
    mode = "--check" if args.check else "--plot-spectrum" if args.plot_spectrum else None
    if mode and (args.top_percent or args.top_params or args.plot or args.compare or args.format != DEFAULT_FORMAT):
        grammar.error(f"{mode} selects nothing: leave out --top-percent, --top-params, --format, --plot and --compare")
    debug = os.environ.get("SPECTRUM_DEBUG") == "1"
    try:
        Path.cwd()
    except OSError as error:  # libraries end the process then
        return fail(f"the working directory is gone: {error.strerror}; change to one that is there")
    try:
        with distributed.long_waits_told(note):
            outcome = _run(args)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        return _interrupted(interrupt)
    except SpectrumError as error:
        if debug:
            raise
        if isinstance(error, ProcessError) and not isinstance(error, UnmetError) and distributed.rank():
            return 1  # the process that ended first has said why, or the main one says that it is gone
        return fail(str(error))
    except Exception as error:
        if debug:
            raise
        return fail(_reason(error))
    if distributed.rank() > 0 or not outcome.text:
        return fail(outcome.problem) if outcome.problem else 0
    return print_result(outcome.text) or (fail(outcome.problem) if outcome.problem else 0)


def _reason(error: Exception) -> str:
    """What to say of an exception that nothing below has made an error of."""
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):  # the latter of libraries in C++
        return "there is no memory left; free some, or raise the limit that this process is under"
    if isinstance(error, OSError):  # a directory that may not be entered, a path that is too long
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    if isinstance(error, RecursionError):
        return "a path, or what a file holds, is nested too deep"
    return f"unexpected {type(error).__name__}: {error}; SPECTRUM_DEBUG=1 shows where"


def _run(args: argparse.Namespace) -> commands.Outcome:
    """Do the job."""
    attendant = ScanCallbacks(
        info=note,
        warn=lambda message: note(f"warning: {message}"),
        choose=partial(_choose, args),
        progress=partial(progress_bar, quiet=args.quiet),
    )
    if distributed.rank() > 0:
        follow(attendant)
        return commands.Outcome("")
    if args.check is not None or args.plot_spectrum is not None:
        with lead():  # the others have nothing to do, but wait for this one
            return commands.check(args, attendant) if args.check is not None else commands.plot_layer(args)
    return commands.select(args, attendant, coloured_columns())


def _choose(args: argparse.Namespace, layer_counts: Sequence[tuple[str, int]]) -> tuple[int | None, list[str]]:
    """Batch size and layer types: from flags, else asked, else the defaults."""
    batch_size = _number(args.batch_size)
    types = [layer_type for layer_type, _ in layer_counts]
    unanswered = []
    if args.batch_size is None:
        unanswered.append("batch size auto")
    if args.layer_types is None:
        unanswered.append("layer types all")
    if not unanswered:
        return batch_size, types
    # A stream that was closed before the start is None.
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    # A notebook's cell is a terminal to whatever it runs, but takes no keys.
    terminal = terminal and "JPY_PARENT_PID" not in os.environ
    if args.yes or not terminal:
        if not args.quiet:
            note(f"{'--yes' if args.yes else 'no terminal to ask on'}: {', '.join(unanswered)}")
        return batch_size, types
    from spectrum.cli import dialogs

    if args.batch_size is None:
        batch_size = dialogs.ask_batch_size()
    if args.layer_types is None:
        types = dialogs.ask_layer_types(layer_counts)
    return batch_size, types


def _number(batch_size: int | str | None) -> int | None:
    return batch_size if isinstance(batch_size, int) else None
