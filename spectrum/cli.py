"""The command line: arguments, questions, progress, messages, exit status. Nothing else prints."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from spectrum import commands, formats, processes, progress, scans, selection, tables
from spectrum.batching import parse_batch_size
from spectrum.errors import ProcessError, SpectrumError, UnmetError
from spectrum.layers import WeightBatch, match_types
from spectrum.version import __version__

if TYPE_CHECKING:
    from spectrum.checkpoint import Checkpoint

# 128 + the signal's number, as shells report it.
INTERRUPTED = 130
TERMINATED = 143


_FORMAT = "axolotl"

_LONGEST_NOTE = 4_000  # characters


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {tables.in_line(message)} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    p = _Parser(
        prog="spectrum",
        description="Score the weight matrices of a Hugging Face model by signal-to-noise ratio and write the list "
        "of the top percent of each layer type, to be left trainable in fine-tuning.",
        epilog="Long options take hyphens or underscores. See also https://arxiv.org/abs/2406.06623.",
        allow_abbrev=False,
    )
    p.add_argument("--model-name", type=_name, metavar="NAME_OR_PATH", help="local directory, or Hugging Face repo id")
    share = p.add_mutually_exclusive_group()
    share.add_argument(
        "--top-percent",
        type=_percent,
        metavar="P",
        help="percent of each layer type to leave trainable, 0 < P <= 100 (default: 50)",
    )
    share.add_argument(
        "--top-params",
        type=_percent,
        metavar="P",
        help="in its place: the most of each layer type that makes at most P percent of all parameters trainable",
    )
    p.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N",
        help="same-shape matrices decomposed together: a number, or auto (asked; default: auto)",
    )
    p.add_argument(
        "--layer-types",
        nargs="+",
        metavar="TYPE",
        help="layer types to scan: exact types or shell patterns ('mlp.*'), or all (asked; default: all)",
    )
    p.add_argument("-y", "--yes", action="store_true", help="ask nothing, take the defaults")
    p.add_argument(
        "--results-dir",
        type=Path,
        default=Path("model_snr_results"),
        metavar="DIR",
        help="where scans are cached (default: model_snr_results)",
    )
    p.add_argument(
        "--output-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where the YAML and the sorted JSON go (default: the working directory)",
    )
    p.add_argument("--rescan", action="store_true", help="ignore a cached scan")
    p.add_argument(
        "--device",
        default="auto",
        help="auto (every visible GPU, else the CPU), cpu, cuda, cuda:1, ... (default: auto)",
    )
    p.add_argument("--revision", metavar="REV", help="Hub revision (default: the repository's own)")
    p.add_argument(
        "--model-class",
        metavar="CLASS",
        help="transformers class to take module names from (default: from the checkpoint's config)",
    )
    p.add_argument("--trust-remote-code", action="store_true", help="allow code from the model's repository")
    p.add_argument("--no-embeddings", action="store_true", help="leave input embedding and output head frozen")
    p.add_argument(
        "--format",
        choices=formats.FORMATS,
        default=_FORMAT,
        help="for Axolotl and scripts, as parameter names, for ms-swift, for PEFT, as JSON (default: axolotl)",
    )
    p.add_argument(
        "--gpus",
        type=_gpus,
        default=8,
        metavar="N",
        help="devices that training is sharded over, where its memory is estimated (default: 8)",
    )
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw all scores and the selection (.png, .svg, .pdf)")
    p.add_argument(
        "--compare", type=_name, metavar="OTHER", help="also select from another model, or a scan's file, and compare"
    )
    instead = p.add_mutually_exclusive_group()
    instead.add_argument(
        "--plot-spectrum",
        nargs=2,
        metavar=("LAYER", "FILE"),
        help="only draw the singular values of one layer, or of LAYER[i], a matrix of a stack",
    )
    instead.add_argument(
        "--check",
        type=Path,
        metavar="CONFIG",
        help="only check the unfrozen_parameters of a YAML file against the model's parameters",
    )
    p.add_argument("-q", "--quiet", action="store_true", help="print only the path of the file that is written")
    p.add_argument("--version", action="version", version=f"spectrum {__version__}")
    return p


def command() -> NoReturn:
    """Run the command as a process of its own, and end that."""
    signal.signal(signal.SIGTERM, _terminate)
    _prepare_streams()
    status = main()
    if status in (INTERRUPTED, TERMINATED) or processes.count() > 1:
        # Threads may be in the midst of a decomposition, or of talking to other processes, which Python neither ends
        # nor survives.
        with suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()
            sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _prepare_streams() -> None:
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


class _Terminated(KeyboardInterrupt):
    """Whoever keeps the machine wants it back: all ends as if the user had interrupted it."""


def _terminate(number: int, frame: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough
    raise _Terminated


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. No exception leaves, unless SPECTRUM_DEBUG=1."""
    grammar = parser()
    args = grammar.parse_args(_hyphenated(sys.argv[1:] if argv is None else argv))
    if args.model_name is None:  # after whatever else is wrong, such as its misspelling
        grammar.error("the following arguments are required: --model-name")
    mode = "--check" if args.check else "--plot-spectrum" if args.plot_spectrum else None
    if mode and (args.top_percent or args.top_params or args.plot or args.compare or args.format != _FORMAT):
        grammar.error(f"{mode} selects nothing: leave out --top-percent, --top-params, --format, --plot and --compare")
    debug = os.environ.get("SPECTRUM_DEBUG") == "1"
    try:
        Path.cwd()
    except OSError as error:  # libraries end the process then
        return _fail(f"the working directory is gone: {error.strerror}; change to one that is there")
    try:
        with processes.telling(_note):
            outcome = _run(args)
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        cause = interrupt.__cause__ or interrupt
        if processes.rank() == 0:
            _note(f"interrupted{''.join(f'; {word}' for word in interrupt.args)}")
        return TERMINATED if isinstance(cause, _Terminated) else INTERRUPTED
    except SpectrumError as error:
        if debug:
            raise
        if isinstance(error, ProcessError) and not isinstance(error, UnmetError) and processes.rank():
            return 1  # the process that ended first has said why, or the main one says that it is gone
        return _fail(str(error))
    except Exception as error:
        if debug:
            raise
        return _fail(_reason(error))
    if processes.rank() > 0 or not outcome.text:
        return _fail(outcome.problem) if outcome.problem else 0
    return _print(outcome.text) or (_fail(outcome.problem) if outcome.problem else 0)


def _reason(error: Exception) -> str:
    """What to say of an exception that nothing below has made an error of."""
    if isinstance(error, MemoryError) or "bad_alloc" in str(error):  # the latter of libraries in C++
        return "there is no memory left; free some, or raise the limit that this process is under"
    if isinstance(error, OSError):  # a directory that may not be entered, a path that is too long
        return f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}"
    if isinstance(error, RecursionError):
        return "a path, or what a file holds, is nested too deep"
    return f"unexpected {type(error).__name__}: {error}; SPECTRUM_DEBUG=1 shows where"


def _print(text: str) -> int:
    """Print a result; the exit status of that."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # whoever reads stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"the result cannot be printed: {error.strerror or error}; files, if any, are written")
    return 0


def _run(args: argparse.Namespace) -> commands.Outcome:
    """Do the job."""
    attendant = scans.Attendant(
        note=_note,
        warn=lambda message: _note(f"warning: {message}"),
        ask=partial(_answers, args),
        progress=partial(_with_progress, quiet=args.quiet),
    )
    if processes.rank() > 0:
        scans.assist(attendant)
        return commands.Outcome("")
    if args.check is not None or args.plot_spectrum is not None:
        with scans.leading():  # the others have nothing to do, but wait for this one
            return commands.check(args, attendant) if args.check is not None else commands.plot_layer(args)
    return commands.select(args, attendant, _coloured_columns())


def _coloured_columns() -> int | None:
    """The width of stdout where that is a terminal with colours, and bars, that the user wants (no-color.org)."""
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return None
    if os.environ.get("TERM") == "dumb" or (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return None
    return shutil.get_terminal_size().columns


def _answers(args: argparse.Namespace, request: scans.Request, checkpoint: Checkpoint) -> tuple[int | None, list[str]]:
    """Batch size and layer types: from flags, else asked, else the defaults."""
    all_types = checkpoint.provenance.layer_types
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
            _note(f"{'--yes' if args.yes else 'no terminal to ask on'}: {', '.join(unanswered)}")
        return batch_size, types
    from spectrum import prompts

    if args.batch_size is None:
        batch_size = prompts.ask_batch_size()
    if args.layer_types is None:
        layers = Counter(weight.layer_type for weight in checkpoint.weights)
        types = prompts.ask_layer_types([(name, layers[name]) for name in all_types])
    return batch_size, types


def _number(batch_size: int | str | None) -> int | None:
    return batch_size if isinstance(batch_size, int) else None


def _with_progress(scored: scans.Scored, batches: Sequence[WeightBatch], *, quiet: bool) -> scans.Scored:
    unit = "weights" if processes.count() == 1 else "weights of the main process"
    # A log file needs no bar redrawn ten times a second; of several processes, one bar tells enough.
    shown = sys.stderr is not None and not quiet and processes.rank() == 0
    interval = 0.1 if shown and sys.stderr.isatty() else 10.0
    bar = partial(tqdm, file=sys.stderr, disable=not shown, mininterval=interval)
    return progress.shown(scored, batches, bar, unit)


def _note(message: str) -> None:
    if sys.stderr is None:  # closed before the start
        return
    who = f" (process {processes.rank()})" if processes.rank() else ""
    text = tables.in_line(message)
    if len(text) > _LONGEST_NOTE:  # for a name in it that is as long as a book
        text = f"{text[: _LONGEST_NOTE // 2]} ... {text[-_LONGEST_NOTE // 2 :]}"
    with tqdm.external_write_mode(file=sys.stderr):  # a progress bar makes way
        print(f"spectrum{who}: {text}", file=sys.stderr, flush=True)


def _fail(message: str) -> int:
    _note(f"error: {' '.join(message.split())}")
    return 1


def _hyphenated(argv: Sequence[str]) -> list[str]:
    """Long options written with underscores, as accelerate accepts them, with hyphens; values as they are."""
    tokens = []
    for token in argv:
        name, equals, value = token.partition("=")
        tokens.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else token)
    return tokens


def _name(text: str) -> str:
    """A model's name without the slash that shells complete a directory's with."""
    return text.rstrip("/") or text[:1]


def _percent(text: str) -> str:
    try:
        return selection.parse_percent(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _gpus(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"a number of devices is expected, such as 8, not {text!r}")
    return int(text)


def _batch_size(text: str) -> int | str:
    try:
        return parse_batch_size(text) or text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
