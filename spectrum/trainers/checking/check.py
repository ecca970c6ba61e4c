"""Does a list of unfrozen parameters do what it says, for the model that trains? Their names are compared."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers import matching
from spectrum.trainers.checking import axolotl_config, remedies
from spectrum.trainers.checking.names import ModelNames
from spectrum.trainers.checking.report import CheckReport, in_brief
from spectrum.trainers.lists import EntryList
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING

Matches = Mapping[str, frozenset[str]]  # entry -> the parameters that it matches


def check_list(
    entry_list: EntryList, model: ModelInfo, renamed: Callable[[str], str] = lambda name: name
) -> CheckReport:
    """Compare a list with a model's parameters, under the rule of each program that reads lists.

    Args:
        entry_list: the list.
        model: the model.
        renamed: the model's name for the parameter that a stored tensor of some name becomes; any other name as it is.
    """
    names = ModelNames.of(model, renamed)
    seen = names.seen  # trainers go through `named_parameters()`, which yields tied parameters once
    matches = {rule: matching.matched(rule, entry_list.entries, seen) for rule in RULES}
    trained = {rule: frozenset().union(*matches[rule].values()) for rule in RULES}
    by_axolotl, trained_by_axolotl = matches[AXOLOTL], trained[AXOLOTL]
    owners = _owners([entry for entry, found in by_axolotl.items() if not found], model)
    named = {*model.parameters, *model.modules}

    repeated = entry_list.repeated_list()
    problems = [*([] if repeated is None else [repeated]), *_tied_problems(owners, trained_by_axolotl)]
    nothing = [entry for entry, owner in owners.items() if owner is None]
    if nothing:
        problems += remedies.problems(nothing, names, len(by_axolotl))
    problems += _wrong_matches(by_axolotl, names, named)
    notes = [*_tied_notes(owners, trained_by_axolotl), *_prefix_notes(by_axolotl, named)]
    if not trained_by_axolotl:
        problems.append("nothing trains")
    elif len(trained_by_axolotl) == len(seen):
        notes.append("every parameter trains")

    rules_differ = False
    if entry_list.settings:  # a trainer's config, which only Axolotl reads
        problems += axolotl_config.problems(entry_list, sorted(trained_by_axolotl))
    else:
        differences = list(_differences(REGULAR_EXPRESSION, matches))
        # No spelling keeps a name from being found within a longer one, so this is no mistake of the list.
        within = list(_differences(SUBSTRING, matches))
        rules_differ = bool(differences or within) or any(matches[rule][entry] for rule in RULES for entry in nothing)
        problems += [*differences, *(_line_differences(entry_list) if repeated is None else [])]
        notes += within
        notes += _pattern_notes(by_axolotl, model)
    if any(found and matching.selects_rows(entry) for entry, found in by_axolotl.items()):
        notes.append("entries that select rows: the other rows have no gradients, but weight decay still changes them")
    num_matching = {rule: sum(map(bool, matches[rule].values())) for rule in RULES}
    return CheckReport(trained, num_matching, rules_differ, tuple(problems), tuple(notes))


# Entries without a match.


def _owners(entries: Sequence[str], model: ModelInfo) -> dict[str, str | None]:
    """For each entry, the owner of the tied parameter that it matches; None if it matches no tied parameter."""
    tied = model.tied()
    matches = matching.matched(AXOLOTL, entries, list(tied))
    return {entry: next((tied[name] for name in tied if name in matches[entry]), None) for entry in entries}


def _tied_problems(owners: Mapping[str, str | None], trained: Container[str]) -> Iterator[str]:
    """Problems of entries that match only a tied parameter whose owner does not train. owners: as of `_owners`."""
    frozen = [
        f"{entry} is tied to {owner}, the only one of the two that trainers see; write ^{owner}${_rows(entry)}"
        for entry, owner in owners.items()
        if owner is not None and owner not in trained
    ]
    yield from in_brief(frozen, "are tied to parameters that do not train")


def _tied_notes(owners: Mapping[str, str | None], trained: Container[str]) -> Iterator[str]:
    """Notes on entries that match a tied parameter whose owner trains."""
    trains = [
        f"{entry} is tied to {owner}, and trains through it" for entry, owner in owners.items() if owner in trained
    ]
    yield from in_brief(trains, "train through what they are tied to")


def _rows(entry: str) -> str:
    """The range of rows at the end of an entry."""
    return entry[len(matching.without_rows(entry)) :]


# Entries that match what they should not.


def _wrong_matches(matches: Matches, names: ModelNames, named: Container[str]) -> Iterator[str]:
    """Problems of entries that match other than what they name, or select rows that do not exist.

    named: all names of modules and parameters.
    """
    misread = _misread(matches, names)
    yield from in_brief(
        list(misread),
        "hold indexes that a regular expression reads otherwise",
        lambda entry: (
            f"{entry} matches only {listed(sorted(matches[entry]), 2)}: brackets hold single characters"
            f"{_advice_on_brackets(entry, misread[entry], names)}"
        ),
    )
    own = {entry: matching.named_by(entry) for entry in matches if entry not in misread}
    by_entry = {entry: set(filter(is_named, matches[entry])) for entry, is_named in own.items() if is_named is not None}
    named_by_entry = frozenset[str]().union(*by_entry.values())
    beyond = {}
    for entry, inside in by_entry.items():
        name = matching.name_in(entry)
        more = matches[entry] - named_by_entry
        # The beginning of names may match anything.
        if more and (name in named if name is not None else inside):
            beyond[entry] = more
    yield from in_brief(
        list(beyond),
        "also match what they do not name",
        lambda entry: f"{entry} also matches {listed(sorted(beyond[entry]), 2)}; {_advice(entry, names)}",
    )
    missing = [text for entry, found in matches.items() for text in _missing_rows(entry, found, names.model)]
    yield from in_brief(missing, "select rows that are not there")


def _advice(entry: str, names: ModelNames) -> str:
    """What to write in place of an entry to select exactly what it names."""
    name, indexes = matching.example(matching.without_rows(entry)) or (entry, [])
    exact = names.with_patterns(name, indexes) if indexes else names.entries_for([name], name)
    if exact is None:
        return "name the modules in it instead"
    return f"write {' and '.join(one + _rows(entry) for one in exact)}"


def _misread(matches: Matches, names: ModelNames) -> dict[str, str]:
    """Entries whose brackets hold several digits, a slice or a negation, each as a regular expression says it.

    Brackets with ! are kept.
    """
    read = {entry: matching.without_rows(entry) for entry, found in matches.items() if found}
    meant = {entry: text for entry in read if (text := matching.with_index_patterns(read[entry])) != read[entry]}
    selected = matching.matched(AXOLOTL, list(meant.values()), names.seen)
    negated = {entry: entry for entry in read if ".[!" in entry}
    return {entry: text for entry, text in meant.items() if selected[text] != matches[entry]} | negated


def _advice_on_brackets(entry: str, meant: str, names: ModelNames) -> str:
    """What to write in place of an entry with brackets. meant: as of `_misread`."""
    if meant == entry:
        return ", and ! is one of them; write ^ in its place"
    name, _ = matching.example(meant) or (meant, [])
    has_it = name in names.with_parameters
    return f"; {_advice(meant + _rows(entry), names) if has_it else f'{meant} matches nothing'}"


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
    yield from in_brief(beginnings, "are beginnings of names")


# Programs that read the list in another way than Axolotl.


def _differences(rule: str, matches: Mapping[str, Matches]) -> Iterator[str]:
    """Where another rule trains other parameters than Axolotl's rule does, by entries that Axolotl matches.

    By the substring rule, patterns cannot match, so only plain names are expected to.
    """
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


def _pattern_notes(matches: Matches, model: ModelInfo) -> Iterator[str]:
    """The note on entries that are patterns. Every list begins with those of the embeddings, which are no news."""
    embeddings = {f"^{own}$" for name in (model.head, model.embedding) if name for own in (name, model.owner(name))}
    patterns = [
        entry
        for entry, names in matches.items()
        if names and not matching.is_plain_name(entry) and entry not in embeddings
    ]
    if patterns:
        yield f"{SUBSTRING}: entries that are more than a name match nothing: {listed(patterns, 2)}"
