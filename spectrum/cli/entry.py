"""START here: the command from its arguments to its exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from spectrum.cli import commands
from spectrum.cli.options import DEFAULT_FORMAT, hyphenated, parser
from spectrum.cli.terminal import coloured_columns, fail, note, prepare_streams, print_result, with_progress
from spectrum.errors import ProcessError, SpectrumError, UnmetError
from spectrum.layer_types import match_types
from spectrum.scanning import distributed
from spectrum.scanning.job import follow, lead
from spectrum.scanning.request import ScanCallbacks, ScanRequest

if TYPE_CHECKING:
    from spectrum.checkpoint.reader import Checkpoint


# 128 + the signal's number, as shells report it.
INTERRUPTED = 130
TERMINATED = 143


def command() -> NoReturn:
    """Run the command as a process of its own, and end that."""
    signal.signal(signal.SIGTERM, _terminate)
    prepare_streams()
    status = main()
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
        with distributed.telling(note):
            outcome = _run(args)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        cause = interrupt.__cause__ or interrupt
        if distributed.rank() == 0:
            note(f"interrupted{''.join(f'; {word}' for word in interrupt.args)}")
        return TERMINATED if isinstance(cause, _Terminated) else INTERRUPTED
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
        note=note,
        warn=lambda message: note(f"warning: {message}"),
        ask=partial(_answers, args),
        progress=partial(with_progress, quiet=args.quiet),
    )
    if distributed.rank() > 0:
        follow(attendant)
        return commands.Outcome("")
    if args.check is not None or args.plot_spectrum is not None:
        with lead():  # the others have nothing to do, but wait for this one
            return commands.check(args, attendant) if args.check is not None else commands.plot_layer(args)
    return commands.select(args, attendant, coloured_columns())


def _answers(args: argparse.Namespace, request: ScanRequest, checkpoint: Checkpoint) -> tuple[int | None, list[str]]:
    """Batch size and layer types: from flags, else asked, else the defaults."""
    all_types = checkpoint.provenance.info.layer_types
    batch_size = _number(args.batch_size)
    types = match_types(request.layer_types or ["all"], all_types)
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
        layers = Counter(weight.layer_type for weight in checkpoint.weights)
        types = dialogs.ask_layer_types([(name, layers[name]) for name in all_types])
    return batch_size, types


def _number(batch_size: int | str | None) -> int | None:
    return batch_size if isinstance(batch_size, int) else None
