"""Which entries select certain modules of a model, and nothing else? Proposals are matched by Axolotl's rule first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.layer_types import WRAPPERS
from spectrum.text import plural
from spectrum.trainers import matching
from spectrum.trainers.names import MAX_TRIED, ModelNames, numbers, shape, with_indexes

_MAX_ENTRIES = 3  # of one proposal
_MIN_PART = 3  # characters of a part of a name that is searched within components


@dataclass(frozen=True, slots=True)
class Proposal:
    """Entries to write in place of another one.

    Args:
        entries: the entries.
        num_layers: how many layers they select; 0 if that is not of interest.
        is_all: whether these are all layers of their type.
    """

    entries: tuple[str, ...]
    num_layers: int
    is_all: bool

    def advice(self, rows: str = "") -> str:
        """What to do, in words. rows: a range of rows to keep at the end of each entry."""
        count = f" ({'all ' if self.is_all else ''}{plural(self.num_layers, 'layer')})" if self.num_layers > 1 else ""
        return f"write {' and '.join(entry + rows for entry in self.entries)}{count}"


def of_entry(entry: str, names: ModelNames) -> Proposal | None:
    """The entry itself as a proposal, if it matches something."""
    found = matching.matched(matching.AXOLOTL, [entry], names.seen)[entry]
    return Proposal((entry,), 0, is_all=False) if found else None


def from_mapping(name: str, names: ModelNames) -> str | None:
    """The name that the model's mapping gives to the module or parameter of this name."""
    for end in (".weight", "", ".bias"):
        new = names.renamed(name + end)
        bare = new.removesuffix(end)
        # Of a module `experts.0`, the mapping may leave the index, though `experts` is a single module today.
        for candidate in (bare, new, re.sub(r"(\.\d+)+$", "", bare)):
            if candidate != name and candidate in names.with_parameters:
                return candidate
    return None


def of_other_class(name: str, names: ModelNames) -> str | None:
    """The name of the same module in this class: its beginning differs, up to the stack of layers at most."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    # Of a name without a number, the last part but `weight` has to stay.
    last = first - 1 if first < len(parts) else first - (2 if parts[-1] in ("weight", "bias") else 1)
    for begin in range(max(last, 0) + 1):
        tail = ".".join(parts[begin:])
        for head in names.heads:
            candidate = f"{head}.{tail}" if head else tail
            if candidate != name and candidate in names.with_parameters:
                return candidate
    return None


def of_part(part: str, names: ModelNames) -> Proposal | None:
    """Entries for all modules whose path holds these components; None if there are none."""
    return _proposal({name[:end] for name in names.seen if (end := _end_of_part(part, name)) is not None}, names, part)


def of_text(text: str, names: ModelNames) -> Proposal | None:
    """Entries for all modules whose path holds this text; None if there are none."""
    if len(text) < _MIN_PART:
        return None
    return _proposal({_cut(name, name.rindex(text) + len(text)) for name in names.seen if text in name}, names, text)


def of_former_type(layer_type: str, names: ModelNames) -> Proposal | None:
    """Entries for all layers of a type that the model's mapping renames; None if there is none."""
    for stack in names.indexes:
        for index in range(0 if numbers(stack) else MAX_TRIED):
            new = from_mapping(f"{stack}.{index}.{layer_type}", names)
            if new is not None and numbers(new):
                return of_part(new.partition(f".{index}.")[2], names)
    return None


def of_pattern(pattern: str, names: ModelNames) -> Proposal | None:
    """Entries for what a regular expression or a wildcard finds anywhere in a name, if all its dots are wild."""
    try:
        (found,) = matching.match_patterns([f"(?:.*?)(?:{pattern})"], names.seen)
    except matching.PatternError:
        return None
    if not found:
        return None
    end = re.search(r"([\w\-/]+)$", re.sub(r"(?:\.[*+]|\$)+$", "", pattern), re.ASCII)
    paths = {_cut(name, name.rindex(end[1]) + len(end[1])) if end and end[1] in name else name for name in found}
    wanted = frozenset(found)
    if names.below(paths) != wanted:
        paths = set(found)
    wild = pattern.replace("\\.", ".").replace(".*", ".+")
    return _proposal(paths, names, wild)


def of_similar_type(name: str, names: ModelNames) -> tuple[str, Proposal] | None:
    """The most similar layer type, and entries for all its layers; None if none is similar."""
    found = _most_similar(name, names.model.layer_types)
    proposal = None if found is None else of_part(found, names)
    return None if found is None or proposal is None else (found, proposal)


def _most_similar(name: str, candidates: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name, sorted(candidates), 1, 0.8)), None)


def _end_of_part(part: str, name: str) -> int | None:
    """Where a part ends that consists of whole components of a name; None if it is not in it."""
    start = f".{name}.".find(f".{part}.")
    return None if start < 0 else start + len(part)


def _cut(name: str, end: int) -> str:
    """A name up to the end of the component that a position is in."""
    dot = name.find(".", end)
    return name if dot < 0 else name[:dot]


def _proposal(paths: set[str], names: ModelNames, wild: str) -> Proposal | None:
    """Entries that select what is at these paths and nothing else; None if there are none.

    wild: an entry for everything, perhaps after any characters, if one for each kind of path would be too many.
    """
    if not paths:
        return None
    by_shape: dict[str, set[str]] = {}
    for path in sorted(paths):
        by_shape.setdefault(shape(path), set()).add(path)
    groups = list(by_shape.values())
    is_all = all({tuple(numbers(path)) for path in group} == names.all_indexes(next(iter(group))) for group in groups)
    if len(groups) <= _MAX_ENTRIES:
        found = [names.entry_for(group, _pattern(group, names)) for group in groups]
        written = tuple(entry for entry in found if entry is not None)
        if len(written) == len(groups):
            return Proposal(written, len(paths), is_all)
    try:
        entry = names.entry_for(paths, wild if wild.startswith(("^", ".+")) else f".+{wild}")
    except SelectionError:  # it is not a regular expression
        return None
    return None if entry is None else Proposal((entry,), len(paths), is_all)


def _pattern(paths: set[str], names: ModelNames) -> str:
    """An entry for paths that differ only in their indexes. It may select more."""
    first = next(iter(paths))
    own, everything = {tuple(numbers(path)) for path in paths}, names.all_indexes(first)
    columns = [sorted(set(column), key=int) for column in zip(*own, strict=True)]
    written = []
    for column, all_of_it in zip(columns, zip(*everything, strict=True), strict=True):
        if len(column) == 1:
            written.append(column[0])
        elif set(column) == set(all_of_it):
            written.append("[0-9]+")
        else:
            written.append(f"({'|'.join(column)})")
    return with_indexes(first, written)
