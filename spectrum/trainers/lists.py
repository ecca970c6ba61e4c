"""Read a list of entries from an untrusted YAML file. A malformed or hostile file is refused with one line."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.errors import SelectionError
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, matched
from spectrum.trainers.untrusted_yaml import Document, in_lines, keys_of, names_in, parse, read_text, repeated

if TYPE_CHECKING:
    import yaml

KEY = "unfrozen_parameters"

# An entry that the list of another key hardly has: a path with an index, or an anchored name.
_LIKE_AN_ENTRY = re.compile(r"\^?[\w.\-]+\.\d+\.[\w.\-]+.*|\^[\w.\-]+\$", re.ASCII)
_ALIKE = 0.8  # of a misspelt key with the right one, as difflib measures it


@dataclass(frozen=True, slots=True)
class EntryList:
    """The content of a YAML file with `unfrozen_parameters`.

    Args:
        entries: the entries of the list, as YAML reads them.
        lines: the entries as other scripts read them: the text after `- ` in each line that starts so.
        settings: the rest of the file: the settings of a trainer's config. It is empty in a file with only a list.
        repeated: keys that stand several times, each with the numbers of its lines. YAML keeps the last. Keys one level
            down have the key above before them: `fsdp_config.version`.
    """

    entries: tuple[str, ...]
    lines: tuple[str, ...]
    settings: Mapping[str, Any]
    repeated: Mapping[str, tuple[int, ...]]

    def repeated_list(self) -> str | None:
        """What is wrong if the key of the list stands several times; None if it does not."""
        lines = self.repeated.get(KEY)
        if lines is None:
            return None
        return f"{KEY} stands {in_lines(lines)}, and only the last list, in line {lines[-1]}, counts; merge the lists"


def read_list(path: Path) -> EntryList:
    """The list in a file. Raises SelectionError if there is none, or if an entry is not a valid pattern."""
    return list_in(parse(path, read_text(path), KEY))


def list_in(document: Document, otherwise: str = "") -> EntryList:
    """The list in a YAML file. Raises SelectionError as `read_list` does.

    Args:
        document: the file.
        otherwise: the end of the message that there is no list, if nothing is known of where it is.
    """
    content, text = document.content, document.text
    if not isinstance(content, dict) or KEY not in content:
        raise SelectionError(f"{document.path} has no {KEY} at its top level{_whereabouts(document) or otherwise}")
    entries = _valid_entries(document, content[KEY])
    lines = tuple(line[2:].strip() for line in text.splitlines() if line.startswith("- "))
    settings = {key: value for key, value in content.items() if key != KEY}
    return EntryList(entries, lines, settings, dict(repeated(document.root)))


def _whereabouts(document: Document) -> str:
    """Where the key or the list is instead of at the top level."""
    content, root = document.content, document.root
    if isinstance(content, list):
        return f"; put its list under `{KEY}:`"
    if isinstance(content, str) and content.startswith(KEY):
        return f"; write a colon after {KEY}"
    if isinstance(content, dict) and not content.keys().isdisjoint(("target_modules", "target_parameters")):
        return "; it is a list for PEFT, for LoraConfig(**...)"
    if isinstance(content, dict) and content.keys() >= {"layers", "embeddings", "top_percent"}:
        return "; it is a list of --format json, for programs of your own; --format names can be checked"
    if isinstance(content, dict) and content.get("finetuning_type") in ("freeze", "full"):
        return "; LLaMA-Factory trains whole layers so, and takes no list; --format llamafactory is for adapters"
    if (found := _nested(root)) is not None:
        return f": in line {found} it is under another key; move it and its entries to the left margin"
    commented = [i for i, line in enumerate(document.text.splitlines(), 1) if re.match(rf"\s*#\s*{KEY}\s*:", line)]
    if commented:
        return f". Line {commented[0]} is commented out; remove the # there and before the entries"
    for key, line, _ in keys_of(root):
        if _is_alike(key.lower()):
            return f"; in line {line} it is spelled {key[:40]!r}"
    return _misplaced(root)


def _is_alike(key: str) -> bool:
    matcher = difflib.SequenceMatcher(None, key, KEY)
    # Of tens of thousands of keys, most are told apart by their lengths or letters, which is faster.
    return matcher.real_quick_ratio() > _ALIKE and matcher.quick_ratio() > _ALIKE and matcher.ratio() > _ALIKE


def _misplaced(root: yaml.Node | None) -> str:
    """Where a list of parameters stands under another key."""
    import yaml

    for key, _, value in keys_of(root):
        if key != KEY and isinstance(value, yaml.SequenceNode):
            texts = [node.value for node in value.value if isinstance(node, yaml.ScalarNode)]
            if any(len(text) < 300 and _LIKE_AN_ENTRY.fullmatch(text) for text in texts[:3]):
                return f"; the list in line {value.start_mark.line + 1} is under {key[:40]!r}: move it"
    return ""


def _nested(root: yaml.Node | None) -> int | None:
    """The line in which the key stands under another one."""
    import yaml

    nodes, visited = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in visited:  # aliases make a node stand in several places
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        for key, line, value in keys_of(node):
            if key == KEY:
                return line
            nodes.append(value)
    return None


def _empty(root: yaml.Node | None, text: str) -> str:
    """Why the list is empty, and what to do."""
    place = max((line for key, line, _ in keys_of(root) if key == KEY), default=0)
    below = itertools.takewhile(lambda line: not line.strip() or line.lstrip()[0] == "#", text.splitlines()[place:])
    commented = [i for i, line in enumerate(below, place + 1) if re.match(r"\s*#[\s#]*-", line)] if place else []
    if commented:
        return f". Its entries {in_lines(commented)} are commented out; remove the # there"
    return _misplaced(root) or "; put entries under it, or remove it"


def _valid_entries(document: Document, entries: Any) -> tuple[str, ...]:
    """The entries, checked. Raises SelectionError if they are not a list of names and patterns."""
    if entries is None or entries == []:
        lines = dict(repeated(document.root)).get(KEY)
        last = f", the last of those {in_lines(lines)}," if lines else ""
        raise SelectionError(
            f"{KEY} in {document.path}{last} is empty; trainers take that as no list at all, and train everything"
            f"{_empty(document.root, document.text)}"
        )
    names = names_in(document, [KEY], entries)
    for rule in (AXOLOTL, REGULAR_EXPRESSION):
        try:
            matched(rule, names, [])
        except SelectionError as error:
            raise SelectionError(f"{document.path}: {error}") from error
    return names
