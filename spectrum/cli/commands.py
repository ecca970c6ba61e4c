"""What the command line can be asked for: a selection, a check, a picture of one layer. Arguments in, text out."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, replace
from pathlib import Path

from spectrum.cli import report
from spectrum.errors import SelectionError, SpectrumError
from spectrum.files import check_writable, selection_path, sorted_path, write_atomically
from spectrum.plots import figure, heatmap
from spectrum.plots.histogram import spectrum_histogram
from spectrum.records import ScanResult
from spectrum.scanning import scan_json, uncached
from spectrum.scanning.job import lead
from spectrum.scanning.request import ScanCallbacks, ScanOutcome, ScanRequest
from spectrum.scanning.scan import scan as run_scan
from spectrum.selection import comparison, margins, selection
from spectrum.selection.selection import Selection
from spectrum.text import in_line, plural, visible
from spectrum.trainers import formats

# A layer, and which of its matrices where it is a stack of them.
_LAYER = re.compile(r"([^\[\]]+)(?:\[(\d{1,9})\])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to print, fit for a terminal; and what is wrong with what was looked at, if anything is."""

    text: str
    problem: str | None = None


def select(args: argparse.Namespace, attendant: ScanCallbacks, columns: int | None) -> Outcome:
    """Scan a model, select, and write the list and what else is wanted. columns: of a terminal that has colour."""
    request = _request(args)
    with lead():  # whatever goes wrong from here on, the other processes are told
        if args.plot is not None:
            figure.check(args.plot)
        other = scan_json.read_published(Path(args.compare)) if _is_file(args.compare) else None
        scan = run_scan(request, attendant)
        if args.compare is not None and other is None:
            wanted = replace(request, model=args.compare, revision=None, rescan=False)
            other = run_scan(wanted, attendant).result
    chosen = _chosen(args, scan)
    _check_any(args, chosen, attendant)
    for warning in margins.warnings(chosen.types):
        attendant.warn(warning)
    render, name, ending = formats.FORMATS[args.format]
    rendered = render(chosen)
    for note in () if args.quiet else rendered.notes:
        attendant.info(note)
    sorted_file = sorted_path(args.output_dir, args.model_name)
    write_atomically(sorted_file, scan_json.sorted_json(scan.result.whole))
    list_file = selection_path(args.output_dir, args.model_name, name, chosen.percent, ending)
    write_atomically(list_file, rendered.text)
    if args.plot is not None:
        heatmap.heatmap(chosen, args.plot)
    compared, problem = "", None
    if other is not None:
        compared, problem = _compared(chosen, other if args.layer_types is None else other.only(scan.result.scanned))
    if args.quiet:
        return Outcome(in_line(str(list_file)), problem)
    label = "unfrozen parameters" if args.format == "axolotl" else args.format
    paths = [("scores", scan.path), ("sorted", sorted_file), (label, list_file)]
    paths += [] if args.plot is None else [("picture", args.plot)]
    before = [scan.origin, _by_share(args, chosen)]
    after = ["\n".join(margins.notes(chosen.types)), _plan(args, chosen), compared, report.written(paths)]
    # The table alone may hold what a terminal obeys.
    parts = [*map(in_line, before), report.summary(chosen, columns), *map(visible, after)]
    return Outcome("\n\n".join(filter(None, parts)), problem)


def check(args: argparse.Namespace, attendant: ScanCallbacks) -> Outcome:
    """Compare a list with the names of the model that is to train."""
    from spectrum.checkpoint.reader import describe_model
    from spectrum.trainers import lists, matching
    from spectrum.trainers.check import check_list

    read = lists.read_list(args.check)
    model, warnings = describe_model(
        args.model_name,
        revision=args.revision,
        model_class=args.model_class,
        trust_remote_code=args.trust_remote_code,
    )
    for warning in warnings:
        attendant.warn(warning)
    found = check_list(read, model)
    entries = plural(len(read.entries), "entry", "entries")
    title = f"{args.check}, {entries}, against {model.model_class} of {args.model_name}"
    trained = found.trained[matching.AXOLOTL]
    parts = [report.checked(found, title)]
    if trained:
        parts.append(report.plan(trained, model, args.gpus))
    problem = None
    if found.problems:
        others = f", and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
        problem = f"{args.check}: {found.problems[0]}{others}"
    return Outcome("" if args.quiet else visible("\n\n".join(parts)), problem)


def plot_layer(args: argparse.Namespace) -> Outcome:
    """Draw the singular values of one layer."""
    layer, file = args.plot_spectrum
    path = Path(file)
    figure.check(path)
    check_writable([path])
    named = _LAYER.fullmatch(layer)
    if named is None:
        raise SelectionError(f"{layer!r} is no layer; write its name, or name[7] for a matrix of a stack")
    index = None if named[2] is None else int(named[2])
    spectrum = uncached.layer_spectrum(_request(args), named[1], index)
    spectrum_histogram(spectrum, args.model_name, path)
    return Outcome(in_line(str(path)))


def _request(args: argparse.Namespace) -> ScanRequest:
    _, name, ending = formats.FORMATS[args.format]
    written = [sorted_path(args.output_dir, args.model_name)]
    if args.top_params is None:  # else the percentage comes of the scan
        percent = args.top_percent or selection.DEFAULT_PERCENT
        written.append(selection_path(args.output_dir, args.model_name, name, percent, ending))
    return ScanRequest(
        model=args.model_name,
        results_dir=args.results_dir,
        revision=args.revision,
        model_class=args.model_class,
        trust_remote_code=args.trust_remote_code,
        layer_types=args.layer_types,
        device=args.device,
        rescan=args.rescan,
        also_written=[*written, *([] if args.plot is None else [args.plot])],
    )


def _is_file(compared: str | None) -> bool:
    """Whether what to compare with is a scan's file; else it is a model of its own."""
    return compared is not None and compared.endswith(".json")


def _compared(chosen: Selection, other: ScanResult) -> tuple[str, str | None]:
    """The comparison with what another scan makes of the same; and why there is none, if so."""
    alike = selection.top_percent(other, chosen.percent, embeddings=chosen.embeddings)
    try:
        return comparison.described(comparison.compare(chosen, alike)), None
    except SelectionError as error:
        return "", str(error)


def _chosen(args: argparse.Namespace, scan: ScanOutcome) -> Selection:
    embeddings = not args.no_embeddings
    if args.top_params is not None:
        return selection.top_params(scan.result, args.top_params, embeddings=embeddings)
    percent = args.top_percent or selection.DEFAULT_PERCENT
    return selection.top_percent(scan.result, percent, embeddings=embeddings)


def _check_any(args: argparse.Namespace, chosen: Selection, attendant: ScanCallbacks) -> None:
    """Raises SpectrumError where nothing at all is selected."""
    if any(chosen.layers().values()):
        return
    if any(ranked.num_selected for ranked in chosen.types):
        reason = "all that is selected is left frozen by --no-embeddings"
    else:
        reason = f"{chosen.percent} percent of no layer type is a whole layer; raise --top-percent"
    if not chosen.embedding_parameters():
        raise SpectrumError(f"nothing to train: {reason}")
    attendant.warn(reason)


def _by_share(args: argparse.Namespace, chosen: Selection) -> str:
    if args.top_params is None:
        return ""
    return f"At most {args.top_params} percent of all parameters: --top-percent {chosen.percent}."


def _plan(args: argparse.Namespace, chosen: Selection) -> str:
    if args.format == "peft":  # what adapters take depends on their rank
        return ""
    info = chosen.result.info
    if info is None or not info.knows_modules():
        return "This scan does not say how large parameters are, so not what training takes; --rescan finds out."
    return report.plan(chosen.trained(), info, args.gpus)
