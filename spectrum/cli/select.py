"""START HERE: the mode that scans a model, selects layers and writes the list.

A cached selection starts in 0.2 s, because functions import what it does not need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.cli import report
from spectrum.cli.console.options import ModelOptions, SelectOptions
from spectrum.cli.outcome import ModeOutcome
from spectrum.errors import SelectionError, SpectrumError
from spectrum.files import selection_path, sorted_path, write_atomically
from spectrum.records import ScanResult
from spectrum.scanning import scan_json
from spectrum.scanning.job import lead
from spectrum.scanning.request import ScanCallbacks, ScanOutcome, ScanRequest, check_request
from spectrum.scanning.scan import scan as run_scan
from spectrum.selection import margins, selection
from spectrum.selection.order import control
from spectrum.selection.selection import Selection
from spectrum.text import command_words, in_line, listed, visible, wrapped
from spectrum.trainers.formats import formats

if TYPE_CHECKING:
    from spectrum.plots.page.page import PageSettings


def select(
    model: ModelOptions,
    options: SelectOptions,
    callbacks: ScanCallbacks,
    *,
    quiet: bool,
    columns: int | None,
    colours: bool = False,
) -> ModeOutcome:
    """Scan a model, select layers, and write the list and the other files that the options ask for.

    Args:
        model: the model.
        options: what to select and to write.
        callbacks: how the scan reports.
        quiet: whether the output is only the path of the list.
        columns: the width that the output should fit; None if it is not for a terminal.
        colours: whether the terminal shows colours and block characters.
    """
    scan, other = _scans(model, options, callbacks)
    chosen = _chosen(options, scan.result)
    _check_any(chosen, callbacks)
    for warning in margins.warnings(chosen.types):
        callbacks.warn(warning)
    compared, problem = "", None
    if other is not None:
        limited = other if options.layer_types is None else other.only(scan.result.scanned)
        compared, problem = _compared(chosen, limited, columns)
    list_file, files, notes = _write(model, options, scan, chosen, other if problem is None else None)
    equivalent = ""
    if options.top_params is not None:
        equivalent = report.equivalent_percent(options.top_params, chosen)
    if quiet:
        if equivalent:
            callbacks.info(equivalent)  # not on stdout, which holds the path alone
        return ModeOutcome(in_line(str(list_file)), problem)
    form = formats.FORMATS[options.format]
    # The end is what stays on a small screen: what trains, what was written, what to do with it.
    parts = [
        wrapped(in_line(scan.origin), columns, "  "),
        wrapped(report.control(chosen), columns, "  "),
        report.summary(chosen, columns, colours=colours),  # only this part may hold escape sequences: colours
        wrapped(visible("\n".join(_notes(chosen, adapters=form.adapters))), columns, "  "),
        wrapped(visible(compared), columns, "  "),
        wrapped(equivalent, columns, "  "),
        "" if form.adapters else report.training_plan_of(chosen, options.training_gpus, columns),
        wrapped(visible("\n".join(notes)), columns, "  "),
        report.written(files, columns),
        report.next_steps(form.use, list_file, _check_command(model, list_file) if form.can_check else (), columns),
    ]
    return ModeOutcome("\n\n".join(filter(None, parts)), problem)


def selection_of(model: ModelOptions, options: SelectOptions, callbacks: ScanCallbacks) -> Selection:
    """Within `lead`: scan a model, select layers, write nothing but the cache. The arguments are those of `select`."""
    return _chosen(options, run_scan(scan_request(model, options, ()), callbacks).result)


def _notes(chosen: Selection, *, adapters: bool) -> list[str]:
    """Notes on a selection, below its table. adapters: whether the list is for adapters; embeddings get none."""
    info = chosen.result.info
    unscored = None if info is None else selection.unscored_note(info)
    embeddings = [] if adapters else chosen.always_training()
    frozen = "input embedding and output head train too, selected or not; --no-embeddings keeps them frozen"
    return [
        *([f"{listed(embeddings)}: {frozen}"] if embeddings else []),
        *margins.notes(chosen.types),
        *([unscored] if unscored else []),
    ]


def _check_command(model: ModelOptions, list_file: Path) -> list[str]:
    """The words of the command that checks the list for this model."""
    return [*_command(model), "--check", str(list_file)]


def _command(model: ModelOptions) -> list[str]:
    """The first words of a command for this model."""
    words = command_words(model.model_name, model.revision, model.model_class)
    return [*words, *(["--trust-remote-code"] if model.trust_remote_code else [])]


def _scans(
    model: ModelOptions, options: SelectOptions, callbacks: ScanCallbacks
) -> tuple[ScanOutcome, ScanResult | None]:
    """The scan of the model, and the scan to compare it with; None if there is none."""
    request = scan_request(model, options, _also_written(model, options))
    with lead():  # the other processes learn of any error
        check_request(request)  # again in the scan, but nothing slow comes before this one
        other = None
        if options.compare is not None and options.compare.lower().endswith(".json"):  # the file of a scan
            other = scan_json.read_published(Path(options.compare))
        elif options.compare is not None:
            # Both are versions of one model, so --model-class stands for both.
            of_other = replace(request, model=options.compare, revision=None, rescan=False)
            check_request(of_other)
        if options.plot is not None:
            from spectrum.plots.page import draw

            draw.check_can_draw(options.plot)
        scan = run_scan(request, callbacks)
        if options.compare is not None and other is None:
            other = run_scan(of_other, callbacks).result
        return scan, other


def scan_request(model: ModelOptions, options: SelectOptions, also_written: Sequence[Path]) -> ScanRequest:
    """What is to be scanned. also_written: files that are written after the scan."""
    return ScanRequest(
        model=model.model_name,
        results_dir=options.results_dir,
        revision=model.revision,
        model_class=model.model_class,
        trust_remote_code=model.trust_remote_code,
        layer_types=options.layer_types,
        device=options.device,
        rescan=options.rescan,
        download=options.download,
        also_written=also_written,
    )


def _also_written(model: ModelOptions, options: SelectOptions) -> list[Path]:
    """The files that this run writes besides the scan. Before the scan it is checked that they can be written."""
    paths = [sorted_path(options.output_dir, model.model_name)]
    if options.top_params is None:  # otherwise the percentage in the name is known only after the scan
        paths.append(_list_path(model, options, options.top_percent))
    return [*paths, *([] if options.plot is None else [options.plot])]


def _list_path(model: ModelOptions, options: SelectOptions, percent: str) -> Path:
    form, word = formats.FORMATS[options.format], control(options.order)
    return selection_path(options.output_dir, model.model_name, form.name, percent, form.ending, control=word)


def _chosen(options: SelectOptions, result: ScanResult) -> Selection:
    if options.top_params is not None:
        return selection.top_params(result, options.top_params, embeddings=options.embeddings, order=options.order)
    return selection.top_percent(result, options.top_percent, embeddings=options.embeddings, order=options.order)


def _check_any(chosen: Selection, callbacks: ScanCallbacks) -> None:
    """Warn if nothing but embeddings trains. Raises SpectrumError if nothing at all would train."""
    if any(chosen.layers().values()) and not chosen.only_embeddings():
        return
    if chosen.only_embeddings():
        reason = "no other layer is selected; choose other --layer-types, or raise --top-percent"
    elif any(ranked.num_selected for ranked in chosen.types):
        reason = "--no-embeddings keeps every selected layer frozen"
    else:
        reason = selection.no_whole_layer(chosen)
    if not chosen.embedding_parameters():
        raise SpectrumError(f"nothing to train: {reason}")
    callbacks.warn(f"nothing but input embedding and output head trains: {reason}")


def _write(
    model: ModelOptions,
    options: SelectOptions,
    scan: ScanOutcome,
    chosen: Selection,
    other: ScanResult | None,
) -> tuple[Path, list[tuple[str, Path]], Sequence[str]]:
    """Write all files of a selection. Return the list's path, all paths with their labels, and notes on the list.

    The first four arguments are those of `select`, or follow from them. other: the scan to compare with on a page.
    """
    form = formats.FORMATS[options.format]
    exported = form.render(chosen)
    sorted_file = sorted_path(options.output_dir, model.model_name)
    write_atomically(sorted_file, scan_json.sorted_json(scan.result.whole))
    list_file = _list_path(model, options, chosen.percent)
    write_atomically(list_file, exported.text)
    files = [("scores", scan.path), ("sorted scores", sorted_file)]
    if options.plot is not None:
        from spectrum.plots.page import draw

        draw.draw(chosen, options.plot, _page_settings(model, options, other))
        files.append(("page" if draw.is_page(options.plot) else "picture", options.plot))
    return list_file, [*files, ("list", list_file)], exported.notes


def _page_settings(model: ModelOptions, options: SelectOptions, other: ScanResult | None) -> PageSettings:
    from spectrum.plots.page.page import PageSettings

    usual = SelectOptions()
    words = _command(model)
    if options.results_dir != usual.results_dir:
        words += ["--results-dir", str(options.results_dir)]
    if options.output_dir != usual.output_dir:
        words += ["--output-dir", str(options.output_dir)]
    return PageSettings(
        command=tuple(words),
        top_params=options.top_params,
        format=options.format,
        devices=options.training_gpus,
        other=other,
    )


def _compared(chosen: Selection, other: ScanResult, columns: int | None) -> tuple[str, str | None]:
    """The comparison with the same selection from another scan, or the reason why they cannot be compared.

    columns: as of `select`.
    """
    from spectrum.selection import comparison

    other_selection = selection.top_percent(other, chosen.percent, embeddings=chosen.embeddings, order=chosen.order)
    try:
        return comparison.described(comparison.compare(chosen, other_selection), columns), None
    except SelectionError as error:
        return "", str(error)
