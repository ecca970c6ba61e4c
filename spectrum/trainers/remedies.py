"""What should be written in place of entries that match nothing? Every proposal is matched before it is made.

`problems` explains each entry by the first of these that fits: its dots are escaped; it has a name that the model's
mapping knows, or that another class uses; it is for a deeper model; it is part of a name, or a pattern of another kind;
it is misspelt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spectrum.trainers import matching, proposals
from spectrum.trainers.names import MAX_TRIED, ModelNames, numbers, shape, with_indexes
from spectrum.trainers.proposals import Proposal

_MAX_TOLD = 10  # entries, or mistakes, that are explained one by one
_MAX_SHAPES = 500  # names that differ in more than their indexes, and are searched under other names
_MISSPELT = 0.85  # the least likeness of each component with the right one, as difflib measures it
_MAX_UNEXPLAINED = 3  # entries without an explanation that are named one by one

# Why an entry matches nothing.
_CUT = "Axolotl matches from the beginning of a name"
_DOTS = "a dot is a dot to Axolotl, unless + follows"
_ESCAPED = "Axolotl escapes dots itself"
_IN_BRACKETS = "an index is written after a dot"
_ANOTHER_NAME = "this model has another name for it"
_OF_FILES = "it is a name of the weight files or of an older transformers"
_OF_A_CLASS = "it is a name of another class or a wrapper"
_FUSED = "it names one expert, but transformers 5 keeps all experts of a layer in one parameter"
_OF_DEEPER = "the list is for a deeper model"
_EMPTY = "there are no parameters in it"
_UNEQUAL = "YAML joins lines of unequal indentation"

# How that is said of several entries.
_OF_SEVERAL = {"it is a name": "they are names", "it names one expert": "they name single experts"}

_PUNCTUATION = "\"'`,;\u2018\u2019\u201c\u201d"  # that a copied name may bring along


@dataclass(frozen=True, slots=True)
class _Explained:
    """Why an entry matches nothing.

    Args:
        entry: the entry.
        mistake: equal for entries with the same mistake, which are told once.
        reason: what is wrong with them.
        name: the name of the module or parameter that is meant; None if there is none.
        instead: the entry that selects it, if no anchors are needed; for `_OF_DEEPER`, the layers that there are.
    """

    entry: str
    mistake: tuple[str, ...]
    reason: str
    name: str | None
    instead: str


def problems(entries: Sequence[str], names: ModelNames, num_entries: int) -> Iterator[str]:
    """The problems of entries that match nothing. The same mistake of several entries is told once.

    Args:
        entries: those that match nothing.
        names: of the model.
        num_entries: how many entries the list has.
    """
    explained = {entry: _explain(entry, names) for entry in dict.fromkeys(entries)}
    groups: dict[tuple[str, ...], list[_Explained]] = {}
    for found in explained.values():
        if found is not None:
            groups.setdefault(found.mistake, []).append(found)
    told: set[str] = set()
    for group in list(groups.values())[:_MAX_TOLD]:
        yield _renaming(group, names, told)
    if len(groups) > _MAX_TOLD:
        rest = sum(map(len, list(groups.values())[_MAX_TOLD:]))
        yield f"{_match_nothing(rest, 'more')} and {'has another name' if rest == 1 else 'have other names'}"
    yield from _one_by_one([entry for entry, found in explained.items() if found is None], names, told, num_entries)


def _match_nothing(count: int, more: str = "") -> str:
    word = f"{more} " if more else ""
    return f"{count} {word}entry matches nothing" if count == 1 else f"{count} {word}entries match nothing"


# Entries that are the name of something, though not in this model.


def _explain(entry: str, names: ModelNames) -> _Explained | None:
    """Why an entry that has a whole name matches nothing. None if it is not one, or for an unknown reason."""
    written = matching.without_rows(entry)
    text = matching.respelled(written)
    parts = matching.example(text)
    if parts is None:
        return None
    name, patterns = parts
    if text != written and name in names.with_parameters:
        reason = _ESCAPED if "\\." in written else _IN_BRACKETS
        return _Explained(entry, (reason,), reason, None if patterns else name, text)
    if name in names.model.modules and name not in names.with_parameters:
        return _Explained(entry, (_EMPTY, shape(name)), _EMPTY, None, "")
    if name in names.with_parameters:
        return None
    found = _located(name, names)
    if found is not None:
        reason, new = found
        if reason == _CUT and not numbers(name):  # other modules may have this name as well
            return None
        instead = _of_indexes(new, patterns, names)
        return _Explained(entry, (reason, *_difference(name, new)), reason, None if patterns else new, instead)
    deeper = _layers_of_shallower(name, names)
    return None if deeper is None else _Explained(entry, (_OF_DEEPER, deeper), _OF_DEEPER, None, deeper)


def _of_indexes(name: str, patterns: Sequence[str], names: ModelNames) -> str:
    """The entry for what is named so, with indexes that match these patterns; the name itself for no patterns."""
    if not patterns:
        return name
    paths = [
        with_indexes(name, indexes)
        for indexes in names.all_indexes(name)
        if all(re.fullmatch(pattern, index) for pattern, index in zip(patterns, indexes, strict=False))
    ]
    instead = with_indexes(name, patterns)
    return names.entry_for(paths, instead) or instead


def _located(name: str, names: ModelNames) -> tuple[str, str] | None:
    """Why this model does not have a name, and its own name for the same. None if there is nothing of the kind.

    What is found for one name is found for all that differ only in their indexes, which saves most of the searches.
    """
    key = shape(name)
    known = names.located.get(key, [])
    for reason, new in filter(None, known):
        own = with_indexes(new, numbers(name))
        if own != name and own in names.with_parameters:
            return reason, own
    if len(known) == MAX_TRIED or (not known and len(names.located) == _MAX_SHAPES):
        return None
    found = _search(name, names)
    names.located[key] = [*known, found]
    return found


def _search(name: str, names: ModelNames) -> tuple[str, str] | None:
    """As `_located`, for this name alone."""
    new = proposals.from_mapping(name, names)
    reason = _OF_FILES
    if new is None:
        new, reason = proposals.of_other_class(name, names) if numbers(name) else None, _OF_A_CLASS
    if new is None:
        return None
    if new.endswith(f".{name}"):
        return _CUT, new
    is_fused = "expert" in new and len(numbers(new)) < len(numbers(name))
    return (_FUSED if is_fused else reason), new


def _layers_of_shallower(name: str, names: ModelNames) -> str | None:
    """The layers that the model has, if it would have this name if it were deeper."""
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part.isdigit()]
    for order, place in enumerate(places):
        if len(parts[place]) > 9:
            continue
        stack = names.stack_of(
            ".".join([*parts[:place], "#", *parts[place + 1 :]]), order, lambda own: _known(own, names)
        )
        if stack is not None and int(parts[place]) not in names.indexes[stack]:
            first, last = min(names.indexes[stack]), max(names.indexes[stack])
            return f"{stack}.{first}" + (f" to {last}" if last > first else "")
    return None


def _known(name: str, names: ModelNames) -> str | None:
    """The model's own name for a module or parameter."""
    if name in names.with_parameters:
        return name
    found = _located(name, names)
    return found and found[1]


def _difference(old: str, new: str) -> tuple[str, str]:
    """What is left of two names without their common beginning and end, and without indexes."""
    a, b = shape(old).split("."), shape(new).split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    while a and b and a[0] == b[0]:
        del a[0], b[0]
    return ".".join(a), ".".join(b)


def _renaming(group: Sequence[_Explained], names: ModelNames, told: set[str]) -> str:
    """The problem of entries that have the same mistake. told: the reasons that need not be said again."""
    first, count = group[0], len(group)
    if first.reason == _EMPTY:
        if count == 1:
            return f"{first.entry} matches nothing: {_EMPTY}; leave it out"
        return f"{_match_nothing(count)}, for example {first.entry}: there are no parameters in them; leave them out"
    if first.reason == _OF_DEEPER:
        who = f"{first.entry} matches nothing" if count == 1 else f"{_match_nothing(count)}, for example {first.entry}"
        return f"{who}: the model has only {first.instead}; {_OF_DEEPER}"
    is_anchored = first.entry.startswith("^")
    instead = first.instead if first.name is None else names.exact(first.name, is_anchored=is_anchored)
    instead += first.entry[len(matching.without_rows(first.entry)) :]
    reason = "" if first.reason in told else f": {first.reason}"
    told.add(first.reason)
    if count == 1:
        return f"{first.entry} matches nothing{reason}; write {instead}"
    for one, several in _OF_SEVERAL.items():
        reason = reason.replace(one, several)
    return f"{_match_nothing(count)}{reason}; write {instead} in place of {first.entry}, and the others likewise"


# All other entries.


def _one_by_one(entries: Sequence[str], names: ModelNames, told: set[str], num_entries: int) -> Iterator[str]:
    """The problems of entries that are not the name of anything. told: as of `_renaming`."""
    unexplained = []
    for entry in entries[:_MAX_TOLD]:
        found = _parts(entry, names)
        if found is None:
            unexplained.append(entry)
            continue
        reason, advice = found
        yield f"{entry} matches nothing{'' if reason in told or not reason else f': {reason}'}; {advice}"
        told.add(reason)
    rest = [*unexplained, *entries[_MAX_TOLD:]]
    if len(rest) <= _MAX_UNEXPLAINED:
        yield from (f"{entry} matches nothing" for entry in rest)
    elif not unexplained and len(rest) == len(entries) - _MAX_TOLD:
        yield f"{_match_nothing(len(rest), 'more')}, perhaps for the same reasons"
    else:
        who = "no entry matches" if len(rest) == num_entries else _match_nothing(len(rest))
        yield (
            f"{who}, for example {' and '.join(rest[:2])}; "
            f"is the list for another model, or another class than {names.model.model_class} (--model-class)?"
        )


def _parts(entry: str, names: ModelNames) -> tuple[str, str] | None:
    """Why an entry matches nothing, and what to do. None if nothing is known."""
    if re.search(r"\s-\s", entry):
        return _UNEQUAL, "indent every entry alike"
    written = matching.without_rows(entry)
    rows = entry[len(written) :]
    text = matching.respelled(written)
    name = matching.name_in(text)
    attempts: list[tuple[str, Callable[[], Proposal | None]]]
    if name is not None:
        path = name  # for the type checker
        attempts = [
            (_CUT, lambda: proposals.of_part(path, names)),
            (_ANOTHER_NAME, lambda: _of_other_class(entry, path, names)),
            (_CUT, lambda: proposals.of_text(path, names)),
            (_ANOTHER_NAME, lambda: proposals.of_former_type(path, names)),
        ]
    else:
        attempts = [
            (_ESCAPED, lambda: proposals.of_entry(text, names) if text != written else None),
            (_DOTS if "*" in text else _CUT, lambda: proposals.of_pattern(written, names)),
        ]
    for reason, attempt in attempts:
        if (proposal := attempt()) is not None:
            return reason, proposal.advice(rows)
    name, patterns = matching.example(text) or (name or matching.name_in(text.strip(_PUNCTUATION)), [])
    if name is not None and (near := _nearest(name, names)) is not None:
        return "", f"the nearest name is {with_indexes(names.exact(near), patterns)}"
    similar = None if name is None else proposals.of_similar_type(name, names)
    return None if similar is None else ("", f"the nearest layer type is {similar[0]}: {similar[1].advice(rows)}")


def _nearest(name: str, names: ModelNames) -> str | None:
    """The name of the same layer that a misspelt one most likely means. A router `gate` is no misspelt `gate_proj`."""
    indexes, parts = numbers(name), name.split(".")

    def likeness(own: str) -> float:
        own_parts = own.split(".")
        if len(own_parts) != len(parts) or numbers(own) not in (indexes, indexes[:1]):
            return 0
        return min(difflib.SequenceMatcher(None, *pair).ratio() for pair in zip(parts, own_parts, strict=True))

    best = max(sorted(names.with_parameters), key=likeness, default="")
    return best if likeness(best) >= _MISSPELT else None


def _of_other_class(entry: str, name: str, names: ModelNames) -> Proposal | None:
    new = proposals.of_other_class(name, names)
    return None if new is None else Proposal((names.exact(new, is_anchored=entry.startswith("^")),), 0, is_all=False)
