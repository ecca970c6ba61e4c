"""Read a list of entries from an untrusted YAML file. A malformed or hostile file is refused with one line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.errors import SelectionError
from spectrum.files import read_untrusted
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, matched

if TYPE_CHECKING:
    import yaml

KEY = "unfrozen_parameters"

# The list of all weights of a large mixture of experts, with a module for each expert, has 30,000 entries.
_MAX_BYTES = 4 << 20
_MAX_ENTRIES = 50_000
_MAX_ENTRY_LENGTH = 2_000  # characters
_TOKENS = (b"\n", b"\r", b",", b"- ", b": ", b"[", b"{", b"*", b"&", b"\xc2\x85", b"\xe2\x80")  # of YAML
_LONG_NUMBER = re.compile(rb"[0-9:_.]{1000}")
_MERGE = "tag:yaml.org,2002:merge"
_MAX_MERGED = 10_000  # keys that one mapping merges from others; nested merges multiply


@dataclass(frozen=True, slots=True)
class EntryList:
    """The content of a YAML file with `unfrozen_parameters`.

    Args:
        entries: the entries of the list, as YAML reads them.
        lines: the entries as other scripts read them: the text after `- ` in each line that starts so.
        settings: the rest of the file: the settings of a trainer's config. It is empty in a file with only a list.
    """

    entries: tuple[str, ...]
    lines: tuple[str, ...]
    settings: Mapping[str, Any]


def read_list(path: Path) -> EntryList:
    """The list in a file. Raises SelectionError if there is none, or if an entry is not a valid pattern."""
    text = _read_text(path)
    content = _parse(path, text)
    if not isinstance(content, dict) or KEY not in content:
        hint = f"; put its list under `{KEY}:`" if isinstance(content, list) else ""
        raise SelectionError(f"{path} has no {KEY} at its top level{hint}")
    entries = _valid_entries(path, content[KEY])
    lines = tuple(line[2:].strip() for line in text.splitlines() if line.startswith("- "))
    return EntryList(entries, lines, {key: value for key, value in content.items() if key != KEY})


def _read_text(path: Path) -> str:
    try:
        content = read_untrusted(path, _MAX_BYTES)
        if sum(map(content.count, _TOKENS)) > 6 * _MAX_ENTRIES:  # parsing takes long, so this is checked first
            raise SelectionError(f"{path} holds more than any list of parameters")
        if _LONG_NUMBER.search(content):  # the time to parse it grows with the square of its length
            raise SelectionError(f"{path} holds a number that is too long")
        return content.decode()
    except OSError as error:
        raise SelectionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise _invalid(path, error) from error


def _parse(path: Path, text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())
    except (ValueError, ArithmeticError, IndexError, RecursionError, yaml.YAMLError) as error:
        raise _invalid(path, error) from error


def _loader() -> type[yaml.SafeLoader]:
    """YAML's safe loader, which also refuses merges that multiply."""
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            num_merged = 0
            for value in (value for key, value in node.value if key.tag == _MERGE):
                for mapping in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(mapping, yaml.MappingNode):
                        self.flatten_mapping(mapping)
                        num_merged += len(mapping.value)
            if num_merged > _MAX_MERGED:
                raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)
            super().flatten_mapping(node)

    return Loader


def _valid_entries(path: Path, entries: Any) -> tuple[str, ...]:
    """The entries, checked. Raises SelectionError if they are not a list of names and patterns."""
    if not isinstance(entries, list):
        raise SelectionError(f"{KEY} in {path} is not a list of names")
    if not entries:
        raise SelectionError(f"{KEY} in {path} is empty; trainers take that as no list at all, and train everything")
    if len(entries) > _MAX_ENTRIES:
        raise SelectionError(f"{KEY} in {path} has {len(entries)} entries, more than any model has parameters")
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry, str) or not entry:
            raise SelectionError(f"{KEY} in {path} is not a list of names: entry {place} is {type(entry).__name__}")
        if len(entry) > _MAX_ENTRY_LENGTH or not entry.isprintable():
            problem = "is longer than any name" if entry.isprintable() else "holds an unprintable character"
            raise SelectionError(f"{KEY} in {path}: entry {place} {problem}: {entry[:40]!r}")
    for rule in (AXOLOTL, REGULAR_EXPRESSION):
        try:
            matched(rule, entries, [])
        except SelectionError as error:
            raise SelectionError(f"{path}: {error}") from error
    return tuple(entries)


def _invalid(path: Path, error: Exception) -> SelectionError:
    return SelectionError(f"{path} is not valid YAML: {' '.join(str(error).split())}")
