"""The mode that checks a list against the model that is to be trained."""

from __future__ import annotations

from spectrum.checkpoint.local import read_config_file, resolve_local
from spectrum.cli import report
from spectrum.cli.console.options import CheckOptions, ModelOptions
from spectrum.cli.outcome import ModeOutcome
from spectrum.scanning.request import ScanCallbacks
from spectrum.text import plural, visible
from spectrum.trainers.memory import DEFAULT_DEVICES


def check(
    model: ModelOptions, options: CheckOptions, callbacks: ScanCallbacks, *, quiet: bool, columns: int | None
) -> ModeOutcome:
    """Compare a list with the names in the model that is to be trained. Last three arguments: as of `select.select`."""
    from spectrum.trainers.checking.any_list import check_any
    from spectrum.trainers.lists import EntryList
    from spectrum.trainers.readers.files import read_any

    some_list = read_any(options.check)
    local = resolve_local(model.model_name)
    if local is not None:
        read_config_file(local.directory)
    callbacks.wait(f"opening {model.model_name}")
    from spectrum.checkpoint.reader import describe_model  # only now, because it imports torch

    info, warnings, renamed = describe_model(
        model.model_name,
        revision=model.revision,
        model_class=model.model_class,
        trust_remote_code=model.trust_remote_code,
    )
    for warning in warnings:
        callbacks.warn(warning)
    found = check_any(some_list, info, renamed)
    if isinstance(some_list, EntryList):
        entries = plural(len(some_list.entries), "entry", "entries")
    else:
        entries = f"{plural(some_list.num_entries, 'entry', 'entries')} of {some_list.reader}"
    title = f"{options.check}, {entries}, against {info.model_class} of {model.model_name}"
    parts = [report.check_summary(found, title, columns)]
    trained = next(iter(found.trained.values()))  # by the rule of the list's own reader
    # What a wrong list takes to train is of interest only if it is asked for.
    if trained and not found.adapters and (options.training_gpus is not None or not found.problems):
        parts.append(report.training_plan(trained, info, options.training_gpus or DEFAULT_DEVICES, columns))
    text = "" if quiet else visible("\n\n".join(parts))
    return ModeOutcome(text, report.failure(str(options.check), found.problems, quiet=quiet))
