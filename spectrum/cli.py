"""The command line: arguments, questions, progress, messages, exit status. Nothing else prints."""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

import spectrum
from spectrum import hub, report, results, selection, shards, unfrozen
from spectrum.batching import matrix_cost, parse_batch_size
from spectrum.errors import CheckpointError, SpectrumError
from spectrum.layers import LayerSnr, LayerWeight, ScanResult, assemble, display_order, match_types, merge

if TYPE_CHECKING:
    from spectrum.checkpoint import Checkpoint

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

_M_MMAP_THRESHOLD = -3  # from malloc.h

_LONGEST_PERCENT = 20  # characters: it becomes part of a file's name
_PERCENT = re.compile(r"\d+(\.\d+)?|\.\d+", re.ASCII)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    p = _Parser(
        prog="spectrum",
        description="Score the weight matrices of a Hugging Face model by signal-to-noise ratio and write the list "
        "of the top percent of each layer type, to be left trainable in fine-tuning.",
        epilog="Long options take hyphens or underscores. See also https://arxiv.org/abs/2406.06623.",
        allow_abbrev=False,
    )
    p.add_argument(
        "--model-name", required=True, metavar="NAME_OR_PATH", help="local directory, or Hugging Face repo id"
    )
    p.add_argument(
        "--top-percent",
        type=_percent,
        default="50",
        metavar="P",
        help="percent of each layer type to leave trainable, 0 < P <= 100 (default: 50)",
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
    p.add_argument("-q", "--quiet", action="store_true", help="print only the path of the YAML")
    p.add_argument("--version", action="version", version=f"spectrum {spectrum.__version__}")
    return p


def command() -> NoReturn:
    """Run the command as a process of its own, and end that."""
    status = main()
    if status == INTERRUPTED:
        # Threads may be in the midst of a decomposition, which Python neither ends nor survives.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status. No exception leaves, unless SPECTRUM_DEBUG=1."""
    args = parser().parse_args(_hyphenated(sys.argv[1:] if argv is None else argv))
    debug = os.environ.get("SPECTRUM_DEBUG") == "1"
    try:
        report_text = _run(args)
    except KeyboardInterrupt:
        if debug:
            raise
        return _fail("interrupted", INTERRUPTED)
    except SpectrumError as error:
        if debug:
            raise
        return _fail(str(error))
    except Exception as error:
        if debug:
            raise
        return _fail(f"unexpected {type(error).__name__}: {error}; SPECTRUM_DEBUG=1 shows where")
    try:
        print(report_text, flush=True)
    except BrokenPipeError:  # whoever reads stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _run(args: argparse.Namespace) -> str:
    """Do the job; return what to say of it on stdout."""
    results.check_name(args.model_name)
    cached = None if args.rescan else _usable_cache(args)
    wanted: Sequence[str] | None
    if cached is None:
        scanned = _scan(args)
        result, wanted, origin = scanned.result, scanned.layer_types, scanned.origin
        scan_file = results.save(args.results_dir, result)
    else:
        wanted, missing = _in_cache(cached, args.layer_types)
        result = cached
        scan_file = results.scan_path(args.results_dir, args.model_name)
        origin = f"{report.plural(len(result.layers), 'layer')} of {args.model_name}, from the cached scan."
        if missing:
            scanned = _scan(_as_cached(args, cached), missing)
            if not _same_weights(cached, scanned.result):
                _note(f"the cached scan {scan_file} is of other weights than those found now; scanning all anew")
                scanned = _scan(args, args.layer_types)
                cached = scanned.result
            result, origin = _with_request_of(cached, merge(cached, scanned.result)), scanned.origin
            wanted = match_types(args.layer_types, display_order([*result.scanned, *scanned.layer_types]))
            results.save(args.results_dir, result)
    if result.left_out:
        _warn(f"left out for NaN or infinity in their weights: {report.listed(result.left_out)}")
    return _write(args, result, wanted, scan_file, origin)


def _as_cached(args: argparse.Namespace, cached: ScanResult) -> argparse.Namespace:
    """The arguments, with the class and the commit that a cached scan was made with where none are given."""
    made = cached.provenance
    if made is None:
        return args
    asked = {
        "model_class": args.model_class or made.class_asked,
        "revision": args.revision or made.revision or made.commit,
    }
    return argparse.Namespace(**{**vars(args), **asked})


def _with_request_of(cached: ScanResult, result: ScanResult) -> ScanResult:
    """A result that is recorded as made for what the cached scan was asked for, not for how it was added to."""
    asked, made = cached.provenance, result.provenance
    if asked is None or made is None:
        return result
    return replace(result, provenance=replace(made, revision=asked.revision, class_asked=asked.class_asked))


def _same_weights(cached: ScanResult, new: ScanResult) -> bool:
    """Whether two scans are of the same weights under the same names; taken on trust where one does not say."""
    a, b = cached.provenance, new.provenance
    if a is None or b is None:
        return True
    return (a.commit, a.fingerprint, a.model_class) == (b.commit, b.fingerprint, b.model_class)


def _write(
    args: argparse.Namespace, result: ScanResult, wanted: Sequence[str] | None, scan_file: Path, origin: str
) -> str:
    limited = result
    if wanted is not None:
        limited = replace(result, layers=tuple(layer for layer in result.layers if layer.layer_type in wanted))
    chosen = selection.top_percent(limited, args.top_percent)
    entries = unfrozen.unfrozen_entries(chosen, result, embeddings=not args.no_embeddings)
    embeddings = () if args.no_embeddings else unfrozen.embedding_names(result.provenance)
    if not any(entries.values()):
        if any(kind.count for kind in chosen.types):
            reason = "all that is selected is left frozen by --no-embeddings"
        else:
            reason = f"{args.top_percent} percent of no layer type is a whole layer; raise --top-percent"
        if not any(embeddings):
            raise SpectrumError(f"nothing to train: {reason}")
        _warn(reason)
    sorted_file = results.save_sorted(args.output_dir, result)
    yaml_file = results.yaml_path(args.output_dir, args.model_name, args.top_percent)
    results.write_atomically(yaml_file, unfrozen.render_axolotl(entries, embeddings))
    if args.quiet:
        return str(yaml_file)
    paths = report.written([("scores", scan_file), ("sorted", sorted_file), ("unfrozen parameters", yaml_file)])
    return "\n\n".join([origin, report.summary_table(chosen), paths])


def _usable_cache(args: argparse.Namespace) -> ScanResult | None:
    cached = results.load(args.results_dir, args.model_name)
    if cached is None:
        return None
    stale = "its two files do not belong together" if not cached.whole else _why_stale(args, cached.result)
    if stale is None:
        return cached.result
    path = results.scan_path(args.results_dir, args.model_name)
    _note(f"the cached scan {path} is not used: {stale}; scanning again")
    return None


def _why_stale(args: argparse.Namespace, cached: ScanResult) -> str | None:
    """Why a cached scan is not one of the weights that are asked for; None where nothing speaks against it."""
    made = cached.provenance
    if made is None:
        return None
    if cached.model != args.model_name:
        return f"it is of {cached.model!r}, whose files have the same name"
    if args.model_class not in (None, made.model_class, made.class_asked):
        return f"its names are those of {made.model_class}, not of {args.model_class}"
    try:
        directory = hub.local_directory(args.model_name)
    except CheckpointError:
        return None  # the cache is enough
    if directory is not None:
        if shards.has_weights(directory) and shards.fingerprint(directory) != made.fingerprint:
            return f"the weights in {directory} are not those that were scanned"
        return None
    if made.commit is None:
        return None
    if args.revision not in (made.revision, made.commit):
        return f"it is of revision {made.revision or 'default'}"
    on_disk = hub.cached_snapshot(args.model_name, args.revision)
    if on_disk is not None and on_disk.name != made.commit:
        return f"it is of commit {made.commit[:8]}, the Hub's cache now has {on_disk.name[:8]}"
    return None


def _in_cache(cached: ScanResult, wanted: Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """The layer types that `--layer-types` means, and those of them that a cache lacks."""
    if wanted is None:
        known = len(cached.provenance.layer_types) if cached.provenance else 0
        if len(cached.scanned) < known:
            _warn(
                f"the cached scan has {len(cached.scanned)} of the model's {known} layer types; only these "
                "are selected from, --layer-types all adds the rest"
            )
        return None, []
    if cached.provenance is not None:
        types = match_types(wanted, cached.provenance.layer_types)
        return types, [name for name in types if name not in cached.scanned]
    if set(wanted) - set(cached.scanned):
        _note("the cached scan does not say which layer types the model has; patterns match those in it (or --rescan)")
    missing = []
    types = []
    for pattern in wanted:
        try:
            types += match_types([pattern], cached.scanned)
        except SpectrumError:
            missing.append(pattern)  # the model may have it
    return [*types, *missing], missing


@dataclass(frozen=True, slots=True)
class _Scanned:
    """A finished scan, the layer types that it was asked for, and a line that says what was done."""

    result: ScanResult
    layer_types: tuple[str, ...]
    origin: str


def _scan(args: argparse.Namespace, patterns: Sequence[str] | None = None) -> _Scanned:
    """Scan the layer types that `patterns` name; without these, those that the user chooses."""
    started = time.monotonic()
    results.check_writable([args.results_dir, args.output_dir])
    _give_freed_memory_back()
    from spectrum.checkpoint import open_checkpoint
    from spectrum.devices import devices_for
    from spectrum.scanning import scan

    devices = devices_for(args.device, _warn)
    checkpoint = open_checkpoint(
        args.model_name,
        revision=args.revision,
        model_class=args.model_class,
        trust_remote_code=args.trust_remote_code,
    )
    for warning in checkpoint.warnings:
        _warn(warning)
    made = checkpoint.provenance
    if patterns is None:
        asked = time.monotonic()
        batch_size, types = _answers(args, checkpoint)
        started += time.monotonic() - asked
    else:
        batch_size, types = _number(args.batch_size), match_types(patterns, made.layer_types)
    weights = [weight for weight in checkpoint.weights if weight.layer_type in types]
    scores = list(_with_progress(scan(weights, checkpoint.read, devices, batch_size, _warn), weights, quiet=args.quiet))
    result = assemble(args.model_name, weights, scores, made)
    if not result.layers:
        raise SpectrumError(f"every weight scanned holds NaN or infinity: {report.listed(result.left_out)}")
    origin = (
        f"Scanned {report.plural(len(weights), 'layer')} of {args.model_name} ({made.model_class}) "
        f"on {', '.join(map(str, devices))} in {report.duration(time.monotonic() - started)}."
    )
    return _Scanned(result, tuple(types), origin)


def _give_freed_memory_back() -> None:
    """Have glibc return what large tensors took when they are freed.

    By default it keeps blocks of up to 32 MiB for later, in a pool for each thread: over a long scan that is more
    than the tensors themselves. Other C libraries do not have the setting.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 8 << 20)


def _answers(args: argparse.Namespace, checkpoint: Checkpoint) -> tuple[int | None, list[str]]:
    """Batch size and layer types: from flags, else asked, else the defaults."""
    all_types = checkpoint.provenance.layer_types
    batch_size = _number(args.batch_size)
    types = match_types(args.layer_types or ["all"], all_types)
    unanswered = []
    if args.batch_size is None:
        unanswered.append("batch size auto")
    if args.layer_types is None:
        unanswered.append("layer types all")
    if not unanswered:
        return batch_size, types
    # A stream that was closed before the start is None.
    terminal = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
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


def _with_progress(scores: Iterable[LayerSnr], weights: Sequence[LayerWeight], *, quiet: bool) -> Iterator[LayerSnr]:
    """Scores as they come, under a bar that moves by the work done: weights differ in that by orders of magnitude."""
    work = {weight.name: weight.count * matrix_cost(weight.matrix) for weight in weights}
    # A log file needs no bar redrawn ten times a second.
    shown = sys.stderr is not None and not quiet
    interval = 0.1 if shown and sys.stderr.isatty() else 10.0
    form = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"
    total, count = sum(work.values()), len(weights)
    with tqdm(total=total, bar_format=form, file=sys.stderr, disable=not shown, mininterval=interval) as bar:
        bar.set_description_str(f"0/{count} weights")
        for done, score in enumerate(scores, 1):
            bar.set_description_str(f"{done}/{count} weights, {score.layer_type}", refresh=False)
            bar.update(work[score.name])
            yield score
        bar.set_description_str(f"{count}/{count} weights", refresh=False)


def _warn(message: str) -> None:
    _note(f"warning: {message}")


def _note(message: str) -> None:
    with suppress(BrokenPipeError):  # the job goes on without whoever listened
        print(f"spectrum: {message}", file=sys.stderr, flush=True)


def _fail(message: str, status: int = 1) -> int:
    _note(f"error: {' '.join(message.split())}")
    return status


def _hyphenated(argv: Sequence[str]) -> list[str]:
    """Long options written with underscores, as accelerate accepts them, with hyphens; values as they are."""
    tokens = []
    for token in argv:
        name, equals, value = token.partition("=")
        tokens.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else token)
    return tokens


def _percent(text: str) -> str:
    if len(text) > _LONGEST_PERCENT or not _PERCENT.fullmatch(text) or not 0 < Decimal(text) <= 100:
        raise argparse.ArgumentTypeError(
            f"a number over 0 and at most 100 is expected, such as 25 or 12.5, not {text!r}"
        )
    return text


def _batch_size(text: str) -> int | str:
    try:
        return parse_batch_size(text) or text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
