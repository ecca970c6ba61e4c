"""Does a list of unfrozen parameters do what it says, for the model that trains? Compares the names of the two."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers import axolotl_config, matching
from spectrum.trainers.lists import EntryList
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING

# An entry that is a plain name, so that it matches the names that start with it.
_PLAIN = re.compile(r"[\w.\-/]+", re.ASCII)

# An entry that names one module or parameter, perhaps anchored.
_NAME = re.compile(r"\^?([\w.\-/]*\w)\$?", re.ASCII)
_MAX_UNMATCHED = 5  # entries without a match that are reported one by one

Matches = Mapping[str, frozenset[str]]  # entry -> the parameters that it matches


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Args:
        trained: by rule, the parameters that train. Of tied parameters, the one that trainers see.
        num_matching: by rule, how many entries match a parameter.
        problems: what keeps the list from doing what it says.
        notes: what else a user should know.
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
    unmatched = _owners([entry for entry, names in matches[AXOLOTL].items() if not names], model)
    problems = [
        *_unmatched_problems(unmatched, trained[AXOLOTL], model),
        *_wrong_matches(matches[AXOLOTL], model),
    ]
    notes = [*_tied_notes(unmatched, trained[AXOLOTL]), *_prefix_notes(matches[AXOLOTL], model)]
    if not trained[AXOLOTL]:
        problems.append("nothing trains")
    elif len(trained[AXOLOTL]) == len(seen):
        notes.append("every parameter trains")
    differences = _rule_differences(matches, trained)
    if entry_list.settings:  # a trainer's config, which no other program reads
        problems += axolotl_config.problems(entry_list, sorted(trained[AXOLOTL]))
        notes += differences
    else:
        problems += [*differences, *_line_differences(entry_list)]
    notes += _pattern_notes(matches[AXOLOTL])
    num_matching = {rule: sum(map(bool, matches[rule].values())) for rule in RULES}
    return CheckReport(trained, num_matching, tuple(problems), tuple(notes))


# Entries without a match.


def _owners(entries: Sequence[str], model: ModelInfo) -> dict[str, str | None]:
    """For each entry that names a tied parameter, the one that trainers see in its place; None for all others."""
    tied = model.tied()
    matches = matching.matched(AXOLOTL, entries, list(tied))
    return {entry: next((tied[name] for name in tied if name in matches[entry]), None) for entry in entries}


def _unmatched_problems(owners: Mapping[str, str | None], trained: frozenset[str], model: ModelInfo) -> Iterator[str]:
    """Problems of entries that match nothing that trainers see.

    In a list for another model, all entries are such, so only a few are reported one by one.
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
    for entry, owner in owners.items():
        if owner in trained:
            yield f"{entry} is tied to {owner}, and trains through it"


# Entries that match what they should not.


def _wrong_matches(matches: Matches, model: ModelInfo) -> Iterator[str]:
    named = {*model.parameters, *model.modules}
    for entry, names in matches.items():
        yield from _matches_outside(entry, names, model, named)
    for entry, names in matches.items():
        yield from _missing_rows(entry, names, model)


def _matches_outside(entry: str, names: Iterable[str], model: ModelInfo, named: Container[str]) -> Iterator[str]:
    """What an entry matches outside the module or parameter that it names. A pattern may match anything.

    named: all names of modules and parameters.
    """
    plain = _NAME.fullmatch(matching.without_rows(entry))
    if plain is None or plain[1] not in named:
        return
    name = plain[1]
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
    """Rows that a parameter does not have."""
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


def _prefix_notes(matches: Matches, model: ModelInfo) -> Iterator[str]:
    named = {*model.parameters, *model.modules}
    for entry, names in matches.items():
        if names and _PLAIN.fullmatch(entry) and entry not in named:
            yield f"{entry} is not the name of a module; it matches all names that start so: {listed(sorted(names), 2)}"


# Programs that read the list otherwise.


def _rule_differences(matches: Mapping[str, Matches], trained: Mapping[str, frozenset[str]]) -> Iterator[str]:
    """Where another rule trains other parameters than Axolotl's. As substrings, only entries that are names count."""
    for rule in (REGULAR_EXPRESSION, SUBSTRING):
        expected = trained[AXOLOTL]
        if rule == SUBSTRING:
            of_names = [names for entry, names in matches[AXOLOTL].items() if _PLAIN.fullmatch(entry)]
            expected = frozenset().union(*of_names)
        for names, verb in ((trained[rule] - expected, "trains"), (expected - trained[rule], "does not train")):
            if names:
                yield f"{rule}: {verb} {listed(sorted(names), 2)}, unlike Axolotl"


def _line_differences(entry_list: EntryList) -> Iterator[str]:
    """Where a program that reads lines sees other entries than one that reads YAML."""
    advice = "write each entry on a line of its own, not indented, without quotes and comments"
    if len(entry_list.lines) != len(entry_list.entries):
        entries = plural(len(entry_list.lines), "entry", "entries")
        yield f"programs that read lines that begin with '- ' see {entries}, not {len(entry_list.entries)}: {advice}"
    elif entry_list.lines != entry_list.entries:
        yield f"programs that read lines that begin with '- ' see other entries: {advice}"


def _pattern_notes(matches: Matches) -> Iterator[str]:
    patterns = [entry for entry, names in matches.items() if names and not _PLAIN.fullmatch(entry)]
    if patterns:
        yield f"{SUBSTRING}: entries that are more than a name match nothing: {listed(patterns)}"
    if any(matching.without_rows(entry) != entry for entry in matches):
        yield "entries that select rows: the other rows have gradients of zero, but weight decay still changes them"
