"""Does a list of what gets an adapter do what it says? By PEFT's rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers.checking.names import ModelNames
from spectrum.trainers.checking.report import CheckReport, in_brief
from spectrum.trainers.checking.whole_names import name_for
from spectrum.trainers.readers.adapter_lists import AdapterList
from spectrum.trainers.readers.adapters import Adapted, adapted

NO_MODULE = "$^"  # a regular expression that is to match no module


def check(found: AdapterList, model: ModelInfo, renamed: Callable[[str], str]) -> CheckReport:
    """Compare a list for adapters with a model. The last argument: as of `check_list`."""
    names, result = ModelNames.of(model, renamed), adapted(found, model)
    problems = [*found.problems, *_problems(found, result, names)]
    notes = [*found.notes, *_former_notes(found, result)]
    if result.names:
        parameters = [plural(len(result.parameters), "parameter")] if result.parameters else []
        kinds = " and ".join([plural(len(result.modules), "module"), *parameters])
        notes.append(f"{kinds} get an adapter, for example {listed(sorted(result.modules | result.parameters), 2)}")
    else:
        problems.append("nothing that is listed gets an adapter")
    return CheckReport(
        trained={found.reader: result.names},
        num_matching={found.reader: sum(map(bool, result.by_entry.values()))},
        rules_differ=False,
        problems=tuple(problems),
        notes=tuple(notes),
        adapters=True,
    )


def _problems(found: AdapterList, result: Adapted, names: ModelNames) -> Iterator[str]:
    # PEFT stops if all match nothing.
    silence = ", which PEFT does not tell" if result.names else ""
    nothing = [entry for entry, selected in result.by_entry.items() if not selected and entry != NO_MODULE]
    yield from in_brief(
        nothing,
        "match nothing",
        lambda entry: f"{entry[:200]} matches nothing{silence}{_why(entry, found, names)}",
    )
    # A name that is also the end of another one.
    whole = {
        entry for entry in (*found.modules, *found.parameters) if entry in (names.model.modules | names.with_parameters)
    }
    beyond = {
        entry: sorted(more)
        for entry in whole - result.former
        if "." in entry and (more := result.by_entry[entry] - {entry, *found.modules, *found.parameters})
    }
    yield from in_brief(
        sorted(beyond),
        "also match what they do not name",
        lambda entry: f"{entry} also adapts {listed(beyond[entry], 2)}{_instead(found)}",
    )
    yield from in_brief(
        sorted(result.halves),
        "name half of a fused matrix",
        lambda entry: f"{entry} is fused with another matrix in this model, so PEFT stops unless both are listed",
    )
    if result.widened and found.pattern is not None:
        yield (
            f"in this model, PEFT takes only the ends of the names that {found.pattern[:100]} matches, so others "
            f"get an adapter too: {listed(sorted(result.widened), 2)}; list whole names instead"
        )
    unfit: dict[str, list[str]] = {}
    for path, why in result.unfit.items():
        unfit.setdefault(why, []).append(path)
    # By a pattern or for whole towers, LLaMA-Factory also selects the modules that hold others.
    for why, paths in unfit.items():
        yield f"{listed(sorted(paths), 2)} cannot be adapted, because {why}: {found.program} stops; leave it out"


def _instead(found: AdapterList) -> str:
    """What to do about a name that selects more."""
    if found.program == "LLaMA-Factory":  # which takes no regular expression
        return ""
    return ", which ends so; write target_modules as one regular expression for whole paths"


def _former_notes(found: AdapterList, result: Adapted) -> Iterator[str]:
    former = [entry for entry in found.modules if entry in result.former]
    if former:
        selected = sorted(frozenset[str]().union(*(result.by_entry[entry] for entry in former)))
        yield (
            f"{listed(former, 3)}: in this model, PEFT takes such a name for fused experts or routers of all layers: "
            f"{listed(selected, 2)}"
        )


def _why(entry: str, found: AdapterList, names: ModelNames) -> str:
    """The end of the problem of an entry that selects nothing. Empty if nothing is known."""
    model = names.model
    if entry == found.pattern:
        is_end = any(f".{path}".endswith(f".{entry}") for path in model.modules)
        return rf": it is a regular expression for whole paths; write (.*\.)?{entry}, or a list" if is_end else ""
    parent = entry.rpartition(".")[0]
    if entry in found.modules and entry in model.parameters:
        if parent in model.modules and entry == f"{parent}.weight":
            return f": it is a parameter; write {parent}"
        return ": it is a parameter; list it as a target parameter"
    if entry in found.parameters and any(f".{path}".endswith(f".{entry}") for path in model.modules):
        return f": it is a module; list it as a target module, or write {entry}.weight"
    reason, new = name_for(entry, names)
    if new is None:
        return f": {reason}" if reason else ""
    return f": {reason}; write {new}" if reason else f"; did you mean {new}?"
