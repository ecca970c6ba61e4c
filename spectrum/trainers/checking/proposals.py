"""Which entries select certain modules of a model, and nothing else? Proposals are matched by Axolotl's rule first."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

from spectrum.layer_types import unwrapped, without_indexes
from spectrum.text import plural
from spectrum.trainers import matching
from spectrum.trainers.checking import axolotl_config
from spectrum.trainers.checking.names import MAX_TRIED, ModelNames, numbers, with_indexes

# Words in the names of modules that are not the language model's, and what they are of.
_TOWERS = {
    **dict.fromkeys(axolotl_config.VISION | {"vision"}, "vision"),
    **dict.fromkeys(axolotl_config.AUDIO | {"audio"}, "audio"),
    "mtp": "prediction of several tokens",
}

_EXPERT = re.compile(r"(.*\bexperts)\.\d+(?:\.(.*))?", re.ASCII)

_MAX_ENTRIES = 3  # of one proposal
_MIN_PART = 3  # characters of a part of a name that is searched within components, or may be misspelt
_MAX_PART = 100  # characters of a part that may be misspelt
_MISSPELT = 0.85  # the least likeness of a misspelt part with the right one, as difflib measures it
_FIRST_INDEX = re.compile(r".*?\.\d+(?=\.|$)", re.ASCII)  # a name up to its first index


@dataclass(frozen=True, slots=True)
class Proposal:
    """Entries to write in place of another one.

    Args:
        entries: the entries.
        num_layers: in how many layers they select something; 0 if that is not of interest.
        is_all: whether these are all layers of their type.
    """

    entries: tuple[str, ...]
    num_layers: int
    is_all: bool

    def words(self, rows: str = "") -> str:
        """The entries, and how many layers they select. rows: a range of rows to keep at the end of each entry."""
        count = f" ({'all ' if self.is_all else ''}{plural(self.num_layers, 'layer')})" if self.num_layers > 1 else ""
        return f"{' and '.join(entry + rows for entry in self.entries)}{count}"


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
        whole = re.sub(r"(\.\d+)+$", "", bare)
        for candidate in (bare, new, *([] if whole in names.indexes else [whole])):
            if candidate != name and candidate in names.with_parameters:
                return candidate
    return None


def from_single_expert(name: str, names: ModelNames) -> str | None:
    """The parameter of all experts that one expert of this name is part of; None if there is none."""
    one = _EXPERT.match(name)
    if one is None:
        return None
    experts = one[1] if one[1] in names.with_parameters else of_other_class(one[1], names)
    if experts is None or experts in names.indexes:
        return None
    matrix = (one[2] or "").removesuffix(".weight")
    first = matrix.partition("_")[0]
    own = sorted(n for n in names.model.parameters if n.startswith(f"{experts}."))
    holds = [n for n in own if first in n.removeprefix(f"{experts}.").split("_")]
    return next(iter([n for n in own if n == f"{experts}.{matrix}"] or holds), experts)


def of_other_class(name: str, names: ModelNames) -> str | None:
    """The name of the same module in this class: its beginning differs, up to the stack of layers at most."""
    parts = unwrapped(name).split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
    # Of a name without a number, the last part but `weight` has to stay.
    last = first - 1 if first < len(parts) else first - (2 if parts[-1] in ("weight", "bias") else 1)
    for begin in range(max(last, 0) + 1):
        tail = ".".join(parts[begin:])
        for head in names.heads:
            candidate = f"{head}.{tail}" if head else tail
            is_alike = begin == 0 or _towers(name) == _towers(candidate)
            if candidate != name and candidate in names.with_parameters and is_alike:
                return candidate
    return None


def missing_tower(name: str, names: ModelNames) -> str | None:
    """The part of a name that is of a tower, such as a vision encoder, that the model lacks; None if there is none."""
    missing = _towers(name) - frozenset().union(*map(_towers, names.heads))
    return next((part for part in name.split(".") if missing & _towers(part)), None)


def _towers(name: str) -> frozenset[str]:
    """The kinds of towers that a name is of. A layer of one is no layer of another, even if it is called the same."""
    parts = name.split(".")
    kinds = frozenset(_TOWERS[part] for part in parts if part in _TOWERS)
    return kinds or frozenset({"encoder"}.intersection(parts))


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


def of_similar_type(name: str, names: ModelNames) -> Proposal | None:
    """Entries for all layers of the type that a misspelt one most likely means; None if none is similar."""
    found = _most_similar(name, names.model.layer_types, names)
    return None if found is None else of_part(found, names)


def nearest(name: str, names: ModelNames) -> str | None:
    """The name of the same layer that a wrong one most likely means; None if there is none.

    The name either ends in the same way, or is spelled alike.
    """
    parts, indexes = name.split("."), numbers(name)
    end = f".{'.'.join(parts[-2:]) if parts[-1] in ('weight', 'bias') else parts[-1]}".lower()
    layer = _FIRST_INDEX.search(name)
    if layer is not None:
        inside = [n for n in names.with_parameters if n.startswith(f"{layer[0]}.") and n.lower().endswith(end)]
        if len(inside) == 1 and inside[0] != name and numbers(inside[0]) == indexes:
            return inside[0]
    own = [n for n in names.with_parameters if numbers(n) in (indexes, indexes[:1])]
    return _most_similar(name, own, names)


def _most_similar(name: str, candidates: Iterable[str], names: ModelNames) -> str | None:
    """The candidate that a misspelt name most likely means. None if none is similar.

    A part that the model has elsewhere is not misspelt: a router `gate` does not mean `gate_proj`.
    """
    known = {part for own in names.with_parameters for part in own.split(".")}
    parts = name.split(".")

    def likeness(candidate: str) -> float:
        own = candidate.split(".")
        if len(own) != len(parts):
            return 0
        return min(_likeness(a, b, known) for a, b in zip(parts, own, strict=True))

    best = max(sorted(candidates), key=likeness, default="")
    return best if likeness(best) >= _MISSPELT else None


def _likeness(part: str, own: str, known: Container[str]) -> float:
    """How alike a part of a name and the model's own are, from 0 to 1. Other letters or digits are no typing errors."""
    a, b = part.lower(), own.lower()
    if a == b:
        return 1
    if part in known or max(len(a), len(b)) > _MAX_PART or re.sub(r"\D", "", a) != re.sub(r"\D", "", b):
        return 0
    words, own_words = a.split("_"), b.split("_")
    if len(words) != len(own_words):
        return difflib.SequenceMatcher(None, a, b).ratio()
    return min(_likeness_of_words(*pair) for pair in zip(words, own_words, strict=True))


def _likeness_of_words(a: str, b: str) -> float:
    if a == b:
        return 1
    if min(len(a), len(b)) < _MIN_PART:  # `q` and `k` are different matrices
        return 0
    # `project` for `proj`, or letters in another order
    is_alike = a.startswith(b) or b.startswith(a) or sorted(a) == sorted(b)
    return _MISSPELT if is_alike else difflib.SequenceMatcher(None, a, b).ratio()


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
        by_shape.setdefault(without_indexes(path), set()).add(path)
    groups = list(by_shape.values())
    is_all = all({tuple(numbers(path)) for path in group} == names.all_indexes(next(iter(group))) for group in groups)
    layers = {path[: index.end()] if (index := _FIRST_INDEX.search(path)) else None for path in paths}
    num_layers = 0 if None in layers else len(layers)
    if len(groups) <= _MAX_ENTRIES:
        found = [names.entries_for(group, _pattern(group, names)) for group in groups]
        if None not in found:
            return Proposal(tuple(entry for entries in found for entry in entries or ()), num_layers, is_all)
    whole = names.entries_for(paths, wild if wild.startswith(("^", ".+")) else f".+{wild}")
    return None if whole is None else Proposal(whole, num_layers, is_all)


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
