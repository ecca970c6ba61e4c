"""Does a list of unfrozen parameters do what it says, for the model that trains? Their names are compared."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers import axolotl_config, matching
from spectrum.trainers.lists import EntryList
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING

_MAX_UNMATCHED = 5  # entries without a match that are reported one by one

Matches = Mapping[str, frozenset[str]]  # entry -> the parameters that it matches


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of a check.

    Args:
        trained: for each rule, the parameters that train. Of tied parameters, only the owner is among them.
        num_matching: for each rule, how many entries match a parameter.
        problems: why the list does not do what it says, one line for each problem.
        notes: other lines that inform the user.
    """

    trained: Mapping[str, frozenset[str]]
    num_matching: Mapping[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_list(entry_list: EntryList, model: ModelInfo) -> CheckReport:
    """Compare a list with a model's parameters, under the rule of each program that reads lists."""
    # Trainers go through `named_parameters()`, which yields tied parameters once.
    seen = [name for name, parameter in model.parameters.items() if parameter.tied_to is None]
    matches = {rule: matching.matched(rule, entry_list.entries, seen) for rule in RULES}
    trained = {rule: frozenset().union(*matches[rule].values()) for rule in RULES}
    by_axolotl, trained_by_axolotl = matches[AXOLOTL], trained[AXOLOTL]
    owners = _owners([entry for entry, names in by_axolotl.items() if not names], model)

    named = {*model.parameters, *model.modules}

    problems = [*_unmatched_problems(owners, trained_by_axolotl, model), *_wrong_matches(by_axolotl, model, named)]
    notes = [*_tied_notes(owners, trained_by_axolotl), *_prefix_notes(by_axolotl, named)]
    if not trained_by_axolotl:
        problems.append("nothing trains")
    elif len(trained_by_axolotl) == len(seen):
        notes.append("every parameter trains")

    differences = _rule_differences(matches, trained)
    if entry_list.settings:  # a trainer's config: only Axolotl reads it, so differences are not problems
        problems += axolotl_config.problems(entry_list, sorted(trained_by_axolotl))
        notes += differences
    else:
        problems += [*differences, *_line_differences(entry_list)]
    notes += _pattern_notes(by_axolotl)
    num_matching = {rule: sum(map(bool, matches[rule].values())) for rule in RULES}
    return CheckReport(trained, num_matching, tuple(problems), tuple(notes))


# Entries without a match.


def _owners(entries: Sequence[str], model: ModelInfo) -> dict[str, str | None]:
    """For each entry, the owner of the tied parameter that it matches; None if it matches no tied parameter."""
    tied = model.tied()
    matches = matching.matched(AXOLOTL, entries, list(tied))
    return {entry: next((tied[name] for name in tied if name in matches[entry]), None) for entry in entries}


def _unmatched_problems(owners: Mapping[str, str | None], trained: frozenset[str], model: ModelInfo) -> Iterator[str]:
    """Problems of entries that match no parameter that trainers see.

    In a list for another model, that is every entry, so only a few are reported one by one. owners: as of `_owners`.
    """
    for entry, owner in owners.items():
        if owner is not None and owner not in trained:
            yield f"{entry} is tied to {owner}, the only one of the two that trainers see; write ^{owner}$"
    nothing = [entry for entry, owner in owners.items() if owner is None]
    for entry in nothing[:_MAX_UNMATCHED]:
        nearest = _nearest(entry, model)
        yield f"{entry} matches nothing{f'; the nearest name is {nearest}' if nearest else ''}"
    if len(nothing) > _MAX_UNMATCHED:
        rest = plural(len(nothing) - _MAX_UNMATCHED, "more entry matches", "more entries match")
        yield f"{rest} nothing; is the list for another model, or another class of this one (--model-class)?"


def _nearest(entry: str, model: ModelInfo) -> str | None:
    names = [*model.parameters]
    modules = {name.removesuffix(end) for name in names for end in (".weight", ".bias") if name.endswith(end)}
    return next(iter(difflib.get_close_matches(entry.strip("^$"), [*names, *sorted(modules)], 1, 0.8)), None)


def _tied_notes(owners: Mapping[str, str | None], trained: frozenset[str]) -> Iterator[str]:
    """Notes on entries that match a tied parameter whose owner trains."""
    for entry, owner in owners.items():
        if owner in trained:
            yield f"{entry} is tied to {owner}, and trains through it"


# Entries that match what they should not.


def _wrong_matches(matches: Matches, model: ModelInfo, named: Container[str]) -> Iterator[str]:
    """Problems of entries that match more than the module that they name, or select rows that do not exist.

    named: all names of modules and parameters.
    """
    for entry, names in matches.items():
        yield from _matches_outside(entry, names, model, named)
    for entry, names in matches.items():
        yield from _missing_rows(entry, names, model)


def _matches_outside(entry: str, names: Iterable[str], model: ModelInfo, named: Container[str]) -> Iterator[str]:
    """The problem of an entry that also matches parameters outside the module or parameter that it names.

    A pattern may match anything. named: all names of modules and parameters.
    """
    name = matching.name_in(entry)
    if name is None or name not in named:
        return
    # The bias beside a bare parameter belongs to it.
    beyond = sorted(n for n in names if n not in (name, f"{name}_bias") and not n.startswith(f"{name}."))
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
    for entry, names in matches.items():
        if names and matching.is_plain_name(entry) and entry not in named:
            yield f"{entry} is not the name of a module; it matches all names that start so: {listed(sorted(names), 2)}"


# Programs that read the list in another way than Axolotl.


def _rule_differences(matches: Mapping[str, Matches], trained: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Where another rule trains other parameters than Axolotl's rule does.

    By the substring rule, patterns cannot match, so only plain names are expected to.
    """
    for rule in (REGULAR_EXPRESSION, SUBSTRING):
        expected = trained[AXOLOTL]
        if rule == SUBSTRING:
            of_names = [names for entry, names in matches[AXOLOTL].items() if matching.is_plain_name(entry)]
            expected = frozenset().union(*of_names)
        for names, verb in ((trained[rule] - expected, "trains"), (expected - trained[rule], "does not train")):
            if names:
                yield f"{rule}: {verb} {listed(sorted(names), 2)}, unlike Axolotl"


def _line_differences(entry_list: EntryList) -> Iterator[str]:
    """How the entries differ for a program that reads lines instead of YAML."""
    advice = "write each entry on a line of its own, not indented, without quotes and comments"
    if len(entry_list.lines) != len(entry_list.entries):
        entries = plural(len(entry_list.lines), "entry", "entries")
        yield f"programs that read lines that begin with '- ' see {entries}, not {len(entry_list.entries)}: {advice}"
    elif entry_list.lines != entry_list.entries:
        yield f"programs that read lines that begin with '- ' see other entries: {advice}"


def _pattern_notes(matches: Matches) -> Iterator[str]:
    """Notes on entries that are patterns, or select rows."""
    patterns = [entry for entry, names in matches.items() if names and not matching.is_plain_name(entry)]
    if patterns:
        yield f"{SUBSTRING}: entries that are more than a name match nothing: {listed(patterns)}"
    if any(map(matching.selects_rows, matches)):
        yield "entries that select rows: the other rows have gradients of zero, but weight decay still changes them"
