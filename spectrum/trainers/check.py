"""Does a list of unfrozen parameters do what it says, for the model that trains? Their names are compared."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers import axolotl_config, matching, remedies
from spectrum.trainers.lists import EntryList
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING
from spectrum.trainers.names import ModelNames

_MAX_ALIKE = 3  # entries with the same mistake that are reported one by one

Matches = Mapping[str, frozenset[str]]  # entry -> the parameters that it matches


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of a check.

    Args:
        trained: for each rule, the parameters that train. Of tied parameters, only the owner is among them.
        num_matching: for each rule, how many entries match a parameter.
        rules_differ: whether the rules differ in what trains, apart from patterns that only some of them know.
        problems: why the list does not do what it says, one line for each problem.
        notes: other lines that inform the user.
    """

    trained: Mapping[str, frozenset[str]]
    num_matching: Mapping[str, int]
    rules_differ: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_list(
    entry_list: EntryList, model: ModelInfo, renamed: Callable[[str], str] = lambda name: name
) -> CheckReport:
    """Compare a list with a model's parameters, under the rule of each program that reads lists.

    Args:
        entry_list: the list.
        model: the model.
        renamed: the model's name for the parameter that a stored tensor of some name becomes; any other name as it is.
    """
    # Trainers go through `named_parameters()`, which yields tied parameters once.
    seen = [name for name, parameter in model.parameters.items() if parameter.tied_to is None]
    matches = {rule: matching.matched(rule, entry_list.entries, seen) for rule in RULES}
    trained = {rule: frozenset().union(*matches[rule].values()) for rule in RULES}
    by_axolotl, trained_by_axolotl = matches[AXOLOTL], trained[AXOLOTL]
    owners = _owners([entry for entry, names in by_axolotl.items() if not names], model)
    named = {*model.parameters, *model.modules}

    repeated = entry_list.repeated_list()
    problems = [*([] if repeated is None else [repeated]), *_tied_problems(owners, trained_by_axolotl)]
    nothing = [entry for entry, owner in owners.items() if owner is None]
    if nothing:
        problems += remedies.problems(nothing, ModelNames.of(model, renamed), len(by_axolotl))
    problems += _wrong_matches(by_axolotl, model, named)
    notes = [*_tied_notes(owners, trained_by_axolotl), *_prefix_notes(by_axolotl, named)]
    if not trained_by_axolotl:
        problems.append("nothing trains")
    elif len(trained_by_axolotl) == len(seen):
        notes.append("every parameter trains")

    rules_differ = False
    if entry_list.settings:  # a trainer's config, which only Axolotl reads
        problems += axolotl_config.problems(entry_list, sorted(trained_by_axolotl))
    else:
        differences = list(_rule_differences(matches))
        rules_differ = bool(differences) or any(matches[rule][entry] for rule in RULES for entry in nothing)
        problems += [*differences, *(_line_differences(entry_list) if repeated is None else [])]
        notes += _pattern_notes(by_axolotl)
    if any(map(matching.selects_rows, by_axolotl)):
        notes.append("entries that select rows: the other rows have no gradients, but weight decay still changes them")
    num_matching = {rule: sum(map(bool, matches[rule].values())) for rule in RULES}
    return CheckReport(trained, num_matching, rules_differ, tuple(problems), tuple(notes))


def _in_brief(texts: Sequence[str], more: str) -> Iterator[str]:
    """The first few texts, and how many more there are."""
    yield from texts[:_MAX_ALIKE]
    if len(texts) > _MAX_ALIKE:
        yield f"{len(texts) - _MAX_ALIKE} more {more}"


# Entries without a match.


def _owners(entries: Sequence[str], model: ModelInfo) -> dict[str, str | None]:
    """For each entry, the owner of the tied parameter that it matches; None if it matches no tied parameter."""
    tied = model.tied()
    matches = matching.matched(AXOLOTL, entries, list(tied))
    return {entry: next((tied[name] for name in tied if name in matches[entry]), None) for entry in entries}


def _tied_problems(owners: Mapping[str, str | None], trained: Container[str]) -> Iterator[str]:
    """Problems of entries that match only a tied parameter whose owner does not train. owners: as of `_owners`."""
    for entry, owner in owners.items():
        if owner is not None and owner not in trained:
            yield f"{entry} is tied to {owner}, the only one of the two that trainers see; write ^{owner}$"


def _tied_notes(owners: Mapping[str, str | None], trained: Container[str]) -> Iterator[str]:
    """Notes on entries that match a tied parameter whose owner trains."""
    for entry, owner in owners.items():
        if owner in trained:
            yield f"{entry} is tied to {owner}, and trains through it"


# Entries that match what they should not.


def _wrong_matches(matches: Matches, model: ModelInfo, named: Container[str]) -> Iterator[str]:
    """Problems of entries that match more than the module that they name, or select rows that do not exist.

    named: all names of modules and parameters.
    """
    named_by_entry = {n for entry, names in matches.items() for n in names if _is_within(n, matching.name_in(entry))}
    beyond = [
        text
        for entry, names in matches.items()
        for text in _matches_outside(entry, names, model, named, named_by_entry)
    ]
    yield from _in_brief(beyond, "also match what they do not name")
    missing = [text for entry, names in matches.items() for text in _missing_rows(entry, names, model)]
    yield from _in_brief(missing, "select rows that are not there")


def _is_within(parameter: str, name: str | None) -> bool:
    """Whether a parameter has this name, or is in the module of this name. The bias beside a bare parameter is, too."""
    return name is not None and (parameter in (name, f"{name}_bias") or parameter.startswith(f"{name}."))


def _matches_outside(
    entry: str, names: Iterable[str], model: ModelInfo, named: Container[str], named_by_entry: Container[str]
) -> Iterator[str]:
    """The problem of an entry that also matches parameters that neither it nor another entry names.

    A pattern may match anything.

    Args:
        entry: the entry.
        names: the parameters that it matches.
        model: the model.
        named: all names of modules and parameters.
        named_by_entry: the parameters that are named by an entry, or are in a module that is.
    """
    name = matching.name_in(entry)
    if name is None or name not in named:
        return
    beyond = sorted(n for n in names if n not in named_by_entry)
    if beyond:
        if name in model.parameters:
            advice = f"write ^{name}$"
        elif f"{name}.weight" in model.parameters:
            advice = f"write {name}.weight"
        else:
            advice = "name the modules in it instead"
        yield f"{entry} also matches {listed(beyond, 2)}; {advice}"


def _missing_rows(entry: str, names: Iterable[str], model: ModelInfo) -> Iterator[str]:
    """The problem of an entry that selects no rows, or rows that a parameter does not have."""
    rows = matching.rows(entry)
    if rows is None:
        return
    start, end = rows
    if end is not None and start >= end:
        yield f"{entry} selects no row, which Axolotl refuses"
        return
    needed = max(start + 1, end or 0)
    short = [name for name in sorted(names) if needed > (model.parameters[name].shape or (0,))[0]]
    if short:
        yield f"{entry} selects rows that {listed(short, 2)} does not have, which Axolotl refuses"


def _prefix_notes(matches: Matches, named: Container[str]) -> Iterator[str]:
    """Notes on entries that are not the name of a module or parameter, but the beginning of names.

    named: as of `_wrong_matches`.
    """
    beginnings = [
        f"{entry} is not the name of a module; it matches all names that start so: {listed(sorted(names), 2)}"
        for entry, names in matches.items()
        if names and matching.is_plain_name(entry) and entry not in named
    ]
    yield from _in_brief(beginnings, "are beginnings of names")


# Programs that read the list in another way than Axolotl.


def _rule_differences(matches: Mapping[str, Matches]) -> Iterator[str]:
    """Where another rule trains other parameters than Axolotl's rule does, by entries that Axolotl matches.

    By the substring rule, patterns cannot match, so only plain names are expected to.
    """
    for rule in (REGULAR_EXPRESSION, SUBSTRING):
        entries = [
            entry
            for entry, names in matches[AXOLOTL].items()
            if names and (rule != SUBSTRING or matching.is_plain_name(entry))
        ]
        expected = frozenset[str]().union(*(matches[AXOLOTL][entry] for entry in entries))
        found = frozenset[str]().union(*(matches[rule][entry] for entry in entries))
        for names, verb in ((found - expected, "trains"), (expected - found, "does not train")):
            if names:
                yield f"{rule}: {verb} {listed(sorted(names), 2)}, unlike Axolotl"


def _line_differences(entry_list: EntryList) -> Iterator[str]:
    """How the entries differ for a program that reads lines instead of YAML."""
    if entry_list.lines == entry_list.entries:
        return
    advice = "write each entry on a line of its own, not indented, without quotes and comments"
    if len(entry_list.lines) != len(entry_list.entries):
        entries = plural(len(entry_list.lines), "entry", "entries")
        seen = f"{entries}, not {len(entry_list.entries)}"
    else:
        different = (line for line, entry in zip(entry_list.lines, entry_list.entries, strict=True) if line != entry)
        seen = f"other entries, for example {next(different)}"
    yield f"programs that read lines that begin with '- ' see {seen}: {advice}"


def _pattern_notes(matches: Matches) -> Iterator[str]:
    """The note on entries that are patterns."""
    patterns = [entry for entry, names in matches.items() if names and not matching.is_plain_name(entry)]
    if patterns:
        yield f"{SUBSTRING}: entries that are more than a name match nothing: {listed(patterns, 2)}"
