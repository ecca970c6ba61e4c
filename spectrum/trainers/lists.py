"""A list of entries on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrum.errors import SelectionError
from spectrum.files import read
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, matched

KEY = "unfrozen_parameters"

# A list of all weights of a mixture of experts whose experts are modules of their own has 30,000 entries.
_MOST_BYTES = 4 << 20
_MOST_ENTRIES = 50_000
_LONGEST_ENTRY = 2_000  # characters
_TOKENS = (b"\n", b"\r", b",", b"- ", b": ", b"[", b"{", b"*", b"&", b"\xc2\x85", b"\xe2\x80")  # of YAML
_LONG_NUMBER = re.compile(rb"[0-9:_.]{1000}")
_MERGE = "tag:yaml.org,2002:merge"
_MOST_MERGED = 10_000  # keys that one mapping takes over from others, which YAML lets multiply


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
        written = read(path, _MOST_BYTES)
        if sum(map(written.count, _TOKENS)) > 6 * _MOST_ENTRIES:  # before it is parsed, which takes a while
            raise SelectionError(f"{path} holds more than any list of parameters")
        if _LONG_NUMBER.search(written):  # which YAML takes the square of its length to read
            raise SelectionError(f"{path} holds a number that is longer than any")
        text = written.decode()
        content = yaml.load(text, Loader)
    except OSError as error:
        raise SelectionError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, ArithmeticError, IndexError, RecursionError, yaml.YAMLError) as error:
        raise SelectionError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or KEY not in content:
        hint = f"; put its list under `{KEY}:`" if isinstance(content, list) else ""
        raise SelectionError(f"{path} has no {KEY} at its top level{hint}")
    entries = content[KEY]
    if not isinstance(entries, list):
        raise SelectionError(f"{KEY} in {path} is not a list of names")
    if not entries:
        raise SelectionError(f"{KEY} in {path} is empty; trainers take that as no list at all, and train everything")
    if len(entries) > _MOST_ENTRIES:
        raise SelectionError(f"{KEY} in {path} has {len(entries)} entries, more than any model has parameters")
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry, str) or not entry:
            raise SelectionError(f"{KEY} in {path} is not a list of names: entry {place} is {type(entry).__name__}")
        if len(entry) > _LONGEST_ENTRY or not entry.isprintable():
            what = "is longer than any name" if entry.isprintable() else "holds a character that is not printed"
            raise SelectionError(f"{KEY} in {path}: entry {place} {what}: {entry[:40]!r}")
    for rule in (AXOLOTL, REGULAR_EXPRESSION):
        try:
            matched(rule, entries, [])
        except SelectionError as error:
            raise SelectionError(f"{path}: {error}") from error
    lines = tuple(line[2:].strip() for line in text.splitlines() if line.startswith("- "))
    return EntryList(tuple(entries), lines, {key: value for key, value in content.items() if key != KEY})
