"""What should be written in place of entries that match nothing? Every proposal is matched before it is made.

`problems` explains each entry by the first of these that fits: it is spelled in the way of another language; it has a
name that the model's mapping knows, or that another class uses; it is for a larger model; it is part of a name, or a
pattern of another kind; it is misspelt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spectrum.layer_types import without_indexes
from spectrum.trainers import matching
from spectrum.trainers.checking import proposals
from spectrum.trainers.checking.names import ModelNames, numbers, with_indexes
from spectrum.trainers.checking.proposals import Proposal
from spectrum.trainers.checking.whole_names import CUT, MAX_DOTS, located, of_larger

_MAX_TOLD = 10  # entries, or mistakes, that are explained one by one
_MAX_UNEXPLAINED = 3  # entries without an explanation that are named one by one

# Why an entry matches nothing.
_DOTS = "a dot is a dot to Axolotl, unless + follows"
_ESCAPED = "Axolotl escapes dots itself"
_IN_BRACKETS = "an index is written after a dot"
_IN_BRACES = "a part in braces is a count to a regular expression"
_SPACE = "it begins or ends with a space"
_A_MODULE = "no parameter has this name alone: it is a module"
_ANOTHER_NAME = "this model has another name for it"
_EMPTY = "there are no parameters in it"
_UNEQUAL = "YAML joins lines of unequal indentation"

# How that is said of several entries.
_OF_SEVERAL = {
    "it is a name": "they are names",
    "has this name alone: it is a module": "has one of these names alone: they are modules",
    "it names one expert": "they name single experts",
    "it begins or ends": "they begin or end",
    "no parameters in it": "no parameters in them",
    "leave it out": "leave them out",
}

_PUNCTUATION = "\"'`,;\u2018\u2019\u201c\u201d"  # that a copied name may bring along


@dataclass(frozen=True, slots=True)
class _Explained:
    """Why an entry matches nothing.

    Args:
        entry: the entry.
        mistake: equal for entries with the same mistake, which are told once.
        reason: what is wrong with them; if nothing is to be written in their place, also what to do.
        name: the name of the module or parameter that is meant; None if there is none.
        indexes: patterns of indexes to write in the name in place of its own; empty to keep its own.
    """

    entry: str
    mistake: tuple[str, ...]
    reason: str
    name: str | None = None
    indexes: Sequence[str] = ()


def problems(entries: Sequence[str], names: ModelNames, num_entries: int) -> Iterator[str]:
    """The problems of entries that match nothing, in their order. The same mistake of several entries is told once.

    Args:
        entries: those that match nothing.
        names: of the model.
        num_entries: how many entries the list has.
    """
    places = {entry: place for place, entry in enumerate(dict.fromkeys(entries))}
    groups: dict[tuple[str, ...], list[_Explained]] = {}
    others = []
    for entry in places:
        found = _explain(entry, names)
        if found is None:
            others.append(entry)
        else:
            groups.setdefault(found.mistake, []).append(found)
    told = {places[group[0].entry]: _of_group(group, names) for group in list(groups.values())[:_MAX_TOLD]}
    advice = {entry: _advice(entry, names) for entry in others[:_MAX_TOLD]}
    told |= {places[entry]: f"{entry} matches nothing{text}" for entry, text in advice.items() if text is not None}
    unexplained = [entry for entry in others if advice.get(entry) is None]
    if len(unexplained) <= _MAX_UNEXPLAINED:
        told |= {places[entry]: f"{entry} matches nothing" for entry in unexplained}
    yield from (told[place] for place in sorted(told))
    if len(groups) > _MAX_TOLD:
        rest = sum(map(len, list(groups.values())[_MAX_TOLD:]))
        yield f"{_match_nothing(rest, 'more')} and {'has another name' if rest == 1 else 'have other names'}"
    if len(unexplained) > _MAX_UNEXPLAINED:
        yield _of_unexplained(unexplained, others, names, num_entries)


def _match_nothing(count: int, more: str = "") -> str:
    word = f"{more} " if more else ""
    return f"{count} {word}entry matches nothing" if count == 1 else f"{count} {word}entries match nothing"


def _of_unexplained(unexplained: Sequence[str], others: Sequence[str], names: ModelNames, num_entries: int) -> str:
    """The problem of entries for which nothing is known, or which are too many. others: all without an explanation."""
    if unexplained == others[_MAX_TOLD:]:
        return f"{_match_nothing(len(unexplained), 'more')}, perhaps for the same reasons"
    who = "no entry matches" if len(unexplained) == num_entries else _match_nothing(len(unexplained))
    return (
        f"{who}, for example {' and '.join(unexplained[:2])}; "
        f"is the list for another model, or another class than {names.model.model_class} (--model-class)?"
    )


# Entries that are the name of something, though not in this model.


def _explain(entry: str, names: ModelNames) -> _Explained | None:
    """Why an entry that has a whole name matches nothing. None if it is not one, or for an unknown reason."""
    written = matching.without_rows(entry)
    text = matching.respelled(written)
    parts = matching.example(text) if text.count(".") <= MAX_DOTS else None
    if parts is None:
        return None
    name, indexes = parts
    if name in names.model.modules and name not in names.with_parameters:
        return _Explained(entry, (_EMPTY, without_indexes(name)), f"{_EMPTY}; leave it out")
    if name in names.with_parameters:
        reason = _misspelling(written) if text != written else _A_MODULE
        if text == written and (not text.endswith("$") or name in names.model.parameters):
            return None
        return _Explained(entry, (reason,), reason, name, indexes)
    found = located(name, names)
    if found is not None:
        reason, new = found
        if reason == CUT and not numbers(name):  # other modules may have this name as well
            return None
        return _Explained(entry, (reason, *_difference(name, new)), reason, new, indexes)
    tower = proposals.missing_tower(name, names)
    why = f"this model has no {tower}; leave it out" if tower else of_larger(name, names)
    return None if why is None else _Explained(entry, (why,), why)


def _misspelling(written: str) -> str:
    """Why an entry is no name, though it is one as `matching.respelled` writes it."""
    if "\\." in written:
        return _ESCAPED
    if written != written.strip():
        return _SPACE
    return _IN_BRACES if "{" in written else _IN_BRACKETS


def _difference(old: str, new: str) -> tuple[str, str]:
    """What is left of two names without their common beginning and end, and without indexes."""
    a, b = without_indexes(old).split("."), without_indexes(new).split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    while a and b and a[0] == b[0]:
        del a[0], b[0]
    return ".".join(a), ".".join(b)


def _of_group(group: Sequence[_Explained], names: ModelNames) -> str:
    """The problem of entries that have the same mistake."""
    first, count = group[0], len(group)
    if first.name is None:
        advice = first.reason
    else:
        rows = first.entry[len(matching.without_rows(first.entry)) :]
        instead = _entries(first.name, first.indexes, names, is_anchored=first.entry.startswith("^"))
        advice = f"{first.reason}; write {' and '.join(one + rows for one in instead)}"
    if count == 1:
        return f"{first.entry} matches nothing: {advice}"
    for one, several in _OF_SEVERAL.items():
        advice = advice.replace(one, several)
    if first.name is None:
        return f"{_match_nothing(count)}, for example {first.entry}: {advice}"
    return f"{_match_nothing(count)}: {advice} in place of {first.entry}, and the others likewise"


def _entries(name: str, indexes: Sequence[str], names: ModelNames, *, is_anchored: bool = False) -> tuple[str, ...]:
    """The entries for what is named so, with indexes that match these patterns; with its own for no patterns."""
    if not indexes:
        return names.exact(name, is_anchored=is_anchored)
    return names.with_patterns(name, indexes) or (with_indexes(name, indexes),)


# All other entries.


def _advice(entry: str, names: ModelNames) -> str | None:
    """The end of the problem of an entry: why it matches nothing, and what to do. None if nothing is known."""
    if re.search(r"\s-\s", entry):
        return f": {_UNEQUAL}; indent every entry alike"
    written = matching.without_rows(entry)
    rows = entry[len(written) :]
    text = matching.respelled(written)
    name = matching.name_in(text)
    attempts: list[tuple[str, Callable[[], Proposal | None]]]
    if name is not None:
        path = name  # for the type checker
        attempts = [
            (CUT, lambda: proposals.of_part(path, names)),
            (_ANOTHER_NAME, lambda: _of_other_class(entry, path, names)),
            (CUT, lambda: proposals.of_text(path, names)),
            (_ANOTHER_NAME, lambda: proposals.of_former_type(path, names)),
        ]
    else:
        attempts = [
            (_misspelling(written), lambda: proposals.of_entry(text, names) if text != written else None),
            (
                _DOTS if "*" in text else CUT,
                lambda: proposals.of_pattern(matching.with_index_patterns(written), names),
            ),
        ]
    for reason, attempt in attempts:
        if (proposal := attempt()) is not None:
            return f": {reason}; write {proposal.words(rows)}"
    name, indexes = matching.example(text) or (name or matching.name_in(text.strip(_PUNCTUATION)), [])
    if name is None:
        return None
    if (near := proposals.nearest(name, names)) is not None:
        return f"; did you mean {' and '.join(one + rows for one in _entries(near, indexes, names))}?"
    similar = proposals.of_similar_type(name, names)
    return None if similar is None else f"; did you mean {similar.words(rows)}?"


def _of_other_class(entry: str, name: str, names: ModelNames) -> Proposal | None:
    new = proposals.of_other_class(name, names)
    return None if new is None else Proposal(names.exact(new, is_anchored=entry.startswith("^")), 0, is_all=False)
