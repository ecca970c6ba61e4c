"""Which parameters does an entry select, for readers of exact names, of modules and of parts of names?

A rule works on a model's names. Trainers go through `named_parameters()`, which yields tied parameters once, and
through modules, in which a tied parameter is also found under its other name.
"""

from __future__ import annotations

import fnmatch
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.layer_types import paths_above
from spectrum.records import ModelInfo
from spectrum.trainers import matching

PARAMETER = "the exact name of a parameter"
MODULE = "the exact path of a module"
GLOB = "a shell pattern of a module's path"
IN_MODULE = "a part of a module's path, in any case"
SEARCH = "a regular expression, searched in the name"
SUBSTRING = "a part of the name"
PREFIX = "the beginning of the name"

# An entry that `re.search` finds as the text that it is. A dot in it may also be another character.
_LITERAL = re.compile(r"[\w\-/]+", re.ASCII)

# An entry that `re.search` finds only in the name that it is: anchored, with escaped dots.
_WHOLE = re.compile(r"\^(?:[\w\-/]|\\\.)+\$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Names:
    """A model's names.

    Args:
        seen: the parameters as `named_parameters()` has them.
        modules: the path of each module that has parameters, with the parameters in it, as `seen` has them.
    """

    seen: tuple[str, ...]
    modules: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, model: ModelInfo, prefix: str = "") -> Names:
        """The names of a model. prefix: what a program that wraps the model puts before every name."""
        modules: dict[str, set[str]] = {}
        for name in model.parameters:
            own, owner = prefix + name, prefix + model.owner(name)
            for path in paths_above(own):
                modules.setdefault(path, set()).add(owner)
        seen = tuple(prefix + name for name, parameter in model.parameters.items() if parameter.tied_to is None)
        return cls(seen, {path: frozenset(found) for path, found in modules.items()})


def matched(rule: str, entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    """For each entry, the parameters that it selects.

    Raises SelectionError if an entry is not a valid pattern, or if matching takes too long.

    Args:
        rule: one of the rules above.
        entries: the entries of a list.
        names: the names of a model.
    """
    return _RULES[rule](tuple(dict.fromkeys(entries)), names)


def _parameters(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    seen = set(names.seen)
    return {entry: frozenset({entry} & seen) for entry in entries}


def _modules(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    return {entry: names.modules.get(entry, frozenset()) for entry in entries}


def _globs(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    # As fnmatch.fnmatchcase, which matches the whole path; a star also stands for dots.
    found = _by_patterns(entries, [fnmatch.translate(entry) for entry in entries], list(names.modules), "match")
    return {entry: _below(paths, names) for entry, paths in found.items()}


def _in_modules(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    lowered = {path: path.lower() for path in names.modules}
    found = _in_time(entries, names, lambda entry: [path for path, low in lowered.items() if entry in low])
    return {entry: _below(paths, names) for entry, paths in found.items()}


def _below(paths: Sequence[str], names: Names) -> frozenset[str]:
    return frozenset().union(*(names.modules[path] for path in paths))


def _search(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    # Most lists have only such entries, which need no process of their own.
    seen = set(names.seen)
    found = {entry: frozenset({entry[1:-1].replace("\\.", ".")} & seen) for entry in entries if _WHOLE.fullmatch(entry)}
    found |= _substrings([entry for entry in entries if _LITERAL.fullmatch(entry)], names)
    others = [entry for entry in entries if entry not in found]
    by_pattern = _by_patterns(others, others, names.seen, "search")
    return found | {entry: frozenset(own) for entry, own in by_pattern.items()}


def _substrings(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    found = _in_time(entries, names, lambda entry: [name for name in names.seen if entry in name])
    return {entry: frozenset(own) for entry, own in found.items()}


def _prefixes(entries: Sequence[str], names: Names) -> dict[str, frozenset[str]]:
    found = _in_time(entries, names, lambda entry: [name for name in names.seen if name.startswith(entry)])
    return {entry: frozenset(own) for entry, own in found.items()}


def _in_time(entries: Sequence[str], names: Names, find: Callable[[str], Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """What is found for each entry. Raises SelectionError if it takes too long."""
    deadline, found = time.monotonic() + matching.SECONDS, {}
    for entry in entries:
        if time.monotonic() > deadline:
            raise SelectionError(
                f"{len(entries)} entries take over {matching.SECONDS:.0f} seconds to match with "
                f"{len(names.seen)} parameters"
            )
        found[entry] = find(entry)
    return found


def _by_patterns(
    entries: Sequence[str], patterns: Sequence[str], texts: Sequence[str], how: str
) -> dict[str, list[str]]:
    """The texts that each entry matches as a regular expression. Raises SelectionError. how: as of `match_patterns`."""
    try:
        found = matching.match_patterns(patterns, texts, how)
    except matching.PatternError as error:
        raise SelectionError(pattern_problem(entries[error.place], error)) from error
    return dict(zip(entries, found, strict=True))


def pattern_problem(entry: str, error: matching.PatternError) -> str:
    """What is wrong with an entry that cannot be matched as a regular expression."""
    if error.reason is not None:
        return f"{entry!r} is not a regular expression: {error.reason}"
    return f"{entry!r} takes over {matching.SECONDS:.0f} seconds to match; write it without nested repetitions"


_RULES: Mapping[str, Callable[[Sequence[str], Names], dict[str, frozenset[str]]]] = {
    PARAMETER: _parameters,
    MODULE: _modules,
    GLOB: _globs,
    IN_MODULE: _in_modules,
    SEARCH: _search,
    SUBSTRING: _substrings,
    PREFIX: _prefixes,
}
