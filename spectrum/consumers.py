"""A list of entries on disk, and how each of those who read it matches an entry with a parameter's name."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from spectrum.errors import SelectionError, first_line

KEY = "unfrozen_parameters"

_PART, _MOST_PARTS = 1 << 16, 64  # bytes that are read at a time, and how often

_MERGE = "tag:yaml.org,2002:merge"
_MOST_MERGED = 10_000  # keys that one mapping takes over from others, which YAML lets multiply

# Axolotl's: rows of a parameter, at the end of an entry.
_ROWS = re.compile(r"^(.+)\[([0-9]{0,18})(?::([0-9]{0,18}))?\]$")

Rule = Callable[[str], Callable[[str], bool]]  # an entry -> whether it matches a parameter's name


@dataclass(frozen=True, slots=True)
class EntryList:
    """A YAML file with `unfrozen_parameters`.

    lines: the same as a reader sees them that takes the text behind `- ` at the beginning of a line. settings: what
    else the file holds, as a trainer's whole config does.
    """

    entries: tuple[str, ...]
    lines: tuple[str, ...]
    settings: Mapping[str, Any]


def read_list(path: Path) -> EntryList:
    """The list in a file. Raises SelectionError where there is none, or an entry is no valid pattern."""
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            merged = 0
            for value in (value for key, value in node.value if key.tag == _MERGE):
                for each in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(each, yaml.MappingNode):
                        self.flatten_mapping(each)
                        merged += len(each.value)
            if merged > _MOST_MERGED:
                raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)
            super().flatten_mapping(node)

    try:
        with path.open("rb") as file:
            parts = list(islice(iter(partial(file.read, _PART), b""), _MOST_PARTS + 1))
        if len(parts) > _MOST_PARTS:
            raise SelectionError(f"{path} is larger than any list of parameters ({_PART * _MOST_PARTS >> 20} MiB)")
        text = b"".join(parts).decode()
        content = yaml.load(text, Loader)
    except OSError as error:
        raise SelectionError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, IndexError, RecursionError, yaml.YAMLError) as error:
        raise SelectionError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or KEY not in content:
        hint = f"; put its list under `{KEY}:`" if isinstance(content, list) else ""
        raise SelectionError(f"{path} has no {KEY} at its top level{hint}")
    entries = content[KEY]
    if not isinstance(entries, list):
        raise SelectionError(f"{KEY} in {path} is not a list of names")
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry, str) or not entry:
            raise SelectionError(f"{KEY} in {path} is not a list of names: entry {place} is {type(entry).__name__}")
    if not entries:
        raise SelectionError(f"{KEY} in {path} is empty; trainers take that as no list at all, and train everything")
    for entry in entries:
        for rule in RULES.values():
            try:
                rule(entry)
            except (re.error, OverflowError, RecursionError) as error:
                raise SelectionError(f"{path}: {entry!r} is no regular expression: {first_line(error)}") from error
    lines = tuple(line[2:].strip() for line in text.splitlines() if line.startswith("- "))
    return EntryList(tuple(entries), lines, {key: value for key, value in content.items() if key != KEY})


def without_rows(entry: str) -> str:
    """An entry for Axolotl without the range of rows that it may end in."""
    ranged = _ROWS.match(entry)
    return ranged[1] if ranged else entry


def rows(entry: str) -> tuple[int, int | None] | None:
    """The rows that an entry for Axolotl is for, from one to before another, or to the last; None for all."""
    ranged = _ROWS.match(entry)
    if ranged is None or not (ranged[2] or ranged[3]):
        return None
    start = int(ranged[2] or 0)
    return start, start + 1 if ranged[3] is None else int(ranged[3]) if ranged[3] else None


def axolotl(entry: str) -> Callable[[str], bool]:
    """Axolotl's rule: dots are dots unless a plus follows; else a regular expression, from the name's start."""
    return regular_expression(re.sub(r"\.(?!\+)", r"\\.", without_rows(entry)))


def regular_expression(entry: str) -> Callable[[str], bool]:
    """Scripts on TRL: a regular expression, from the name's start."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a later Python will take otherwise
        pattern = re.compile(entry)
    return lambda name: pattern.match(name) is not None


def substring(entry: str) -> Callable[[str], bool]:
    """The reference's snippet and DistillKit: anywhere in the name."""
    return lambda name: entry in name


AXOLOTL = "Axolotl"
REGULAR_EXPRESSION = "re.match, as scripts on TRL"
SUBSTRING = "substring, as DistillKit"

RULES: Mapping[str, Rule] = {AXOLOTL: axolotl, REGULAR_EXPRESSION: regular_expression, SUBSTRING: substring}
