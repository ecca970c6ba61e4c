"""Does a list of what trains, or of what is frozen, do what it says? By the rule of its own reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers.checking.names import ModelNames
from spectrum.trainers.checking.report import CheckReport, in_brief
from spectrum.trainers.checking.whole_names import name_for
from spectrum.trainers.readers import parameter_lists, rules
from spectrum.trainers.readers.files import ParameterLists
from spectrum.trainers.readers.parameter_lists import ParameterList, Step, Trained
from spectrum.trainers.untrusted_yaml import in_lines

_EXACT = (rules.PARAMETER, rules.MODULE)  # rules by which an entry is a name


def check(found: ParameterLists, model: ModelInfo, renamed: Callable[[str], str]) -> CheckReport:
    """Compare the lists in one file with a model. The last argument: as of `check_list`."""
    names = ModelNames.of(model, renamed)
    results = {own: parameter_lists.trained(own, model) for own in found.lists}
    by_reader = {own.reader: result.names for own, result in results.items()}
    problems = list(_repeated(found))
    notes: list[str] = []
    for own, result in results.items():
        problems += [*own.problems, *_problems(own, result, names)]
        notes += [*own.notes, *_tied_notes(own, result, model)]
        if not result.names:
            problems.append(f"{own.program}: nothing trains" if len(found.lists) > 1 else "nothing trains")
        elif len(result.names) == len(names.seen):
            notes.append("every parameter trains")
    differ = len(set(by_reader.values())) > 1
    if differ:
        problems.append("the lists in this file differ in what trains")
    return CheckReport(
        trained=by_reader,
        num_matching={
            own.reader: sum(bool(selected) for by_entry in result.by_entry for selected in by_entry.values())
            for own, result in results.items()
        },
        rules_differ=differ,
        problems=tuple(dict.fromkeys(problems)),
        notes=tuple(dict.fromkeys(notes)),
    )


def _repeated(found: ParameterLists) -> Iterator[str]:
    """Keys that stand several times, if they have to do with a list."""
    used = {step.key for own in found.lists for step in own.steps}
    for key, lines in found.repeated:
        within_repeated = key.rpartition(".")[0] in dict(found.repeated)
        if not within_repeated and any(f"{own}.".startswith(f"{key}.") for own in used):
            yield f"{key} stands {in_lines(lines)}, and only the last counts; merge them"


def _problems(found: ParameterList, result: Trained, names: ModelNames) -> Iterator[str]:
    """Entries that select nothing, and entries that select more than they name."""
    for step, by_entry in zip(found.steps, result.by_entry, strict=True):
        if step.rule == rules.IN_MODULE:  # parts of names that its reader looks for in any model
            continue
        verb = f", at which {found.program} stops" if step.must_match else ""
        yield from in_brief(
            [entry for entry in _unmatched(step, by_entry) if not _through(entry, step, found, result, names.model)],
            f"match nothing{verb}",
            lambda entry: f"{_short(entry)} matches nothing{verb}{_why(entry, step, found, names)}",  # noqa: B023
        )
        beyond = dict(_beyond(step, by_entry, found.prefix, names))
        effect = "trains" if step.trains else "freezes"
        yield from in_brief(
            list(beyond),
            f"also {effect.removesuffix('s')} what they do not name",
            lambda entry: f"{_short(entry)} also {effect} {listed(sorted(beyond[entry]), 2)}",  # noqa: B023
        )


def _unmatched(step: Step, by_entry: Mapping[str, frozenset[str]]) -> list[str]:
    return [entry for entry in step.entries if not by_entry[entry]]


def _through(entry: str, step: Step, found: ParameterList, result: Trained, model: ModelInfo) -> bool:
    """Whether an entry names a tied parameter, or its module, that trains with its owner, which alone trainers see."""
    owners = _owners(entry.removeprefix(found.prefix), model)
    return step.trains and not step.must_match and bool(owners) and owners <= result.names


def _owners(name: str, model: ModelInfo) -> set[str]:
    """The owners of the tied parameter of a name, or of those in the module of that name."""
    return {owner for tied, owner in model.tied().items() if tied == name or tied.startswith(f"{name}.")}


def _tied_notes(found: ParameterList, result: Trained, model: ModelInfo) -> Iterator[str]:
    for step, by_entry in zip(found.steps, result.by_entry, strict=True):
        for entry in _unmatched(step, by_entry):
            if _through(entry, step, found, result, model):
                owners = sorted(_owners(entry.removeprefix(found.prefix), model))
                yield f"{entry} is tied to {listed(owners, 2)}, and trains through it"


def _short(entry: str) -> str:
    return entry if len(entry) <= 200 else f"{entry[:200]}..."


def _why(entry: str, step: Step, found: ParameterList, names: ModelNames) -> str:
    """The end of the problem of an entry that selects nothing: why, and what to do. Empty if nothing is known."""
    name, program, model = entry.removeprefix(found.prefix), found.program, names.model
    if name in model.tied():
        advice = f"; write {found.prefix}{model.owner(name)}" if step.trains else "; leave it out"
        return f": it is tied to {model.owner(name)}, the only one of the two that trainers see{advice}"
    if step.rule not in _EXACT:
        return "" if step.must_match else f"; {found.program} says nothing of it"
    if found.prefix and not entry.startswith(found.prefix) and name in names.with_parameters:
        return f": it keeps the model in its own, as {found.prefix.rstrip('.')}; write {found.prefix}{name}"
    if step.rule == rules.PARAMETER and name in names.with_parameters:
        own = sorted(found.prefix + inner for inner in names.below([name]))
        return f": it is a module; write {listed(own, 3)}"
    if step.rule == rules.MODULE and name in model.parameters:
        parent = name.rpartition(".")[0]
        others = len(names.below([parent])) - 1 if parent else 0
        also = f", which also holds {plural(others, 'other parameter')}" if others > 0 else ""
        return f": it is a parameter, and {program} selects modules; write {parent}{also}" if parent else ""
    reason, new = name_for(name, names)
    if new is None:
        return f": {reason}" if reason else ""
    if step.rule == rules.PARAMETER and new not in model.parameters:
        inside = sorted(names.below([new]))
        new = f"{new}.weight" if f"{new}.weight" in inside else next(iter(inside), new)
    if step.rule == rules.MODULE and new not in model.modules:
        new = new.rpartition(".")[0] or new
    return f": {reason}; write {found.prefix}{new}" if reason else f"; did you mean {found.prefix}{new}?"


def _beyond(
    step: Step, by_entry: Mapping[str, frozenset[str]], prefix: str, names: ModelNames
) -> Iterator[tuple[str, frozenset[str]]]:
    """Entries that are the name of a module or parameter, each with what else it selects."""
    if step.rule not in (rules.SUBSTRING, rules.SEARCH, rules.PREFIX):
        return
    meant = {entry: _name_in(entry).removeprefix(prefix) for entry in by_entry}
    named = {entry: name for entry, name in meant.items() if name in names.with_parameters}
    own = {entry: names.below([name]) for entry, name in named.items()}
    all_named = frozenset[str]().union(*own.values())
    for entry in named:
        more = frozenset(name.removeprefix(prefix) for name in by_entry[entry]) - all_named
        if more:
            yield entry, more


def _name_in(entry: str) -> str:
    """The name that an entry consists of, without anchors and escapes."""
    return re.sub(r"\\(.)", r"\1", entry).removeprefix("^").removesuffix("$")
