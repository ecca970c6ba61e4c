"""Read a list of entries from an untrusted YAML file. A malformed or hostile file is refused with one line."""

from __future__ import annotations

import codecs
import copy
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
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

# An entry that the list of another key hardly has: a path with an index, or an anchored name.
_LIKE_AN_ENTRY = re.compile(r"\^?[\w.\-]+\.\d+\.[\w.\-]+.*|\^[\w.\-]+\$", re.ASCII)
_ALIKE = 0.8  # of a misspelt key with the right one, as difflib measures it
_KINDS = {dict: "a mapping; write no colon after a name", list: "a list", bool: "a truth value", type(None): "empty"}


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
    text = _read_text(path)
    content, root = _parse(path, text)
    if not isinstance(content, dict) or KEY not in content:
        raise SelectionError(f"{path} has no {KEY} at its top level{_whereabouts(content, root, text)}")
    repeated = dict(_repeated(root))
    entries = _valid_entries(path, content[KEY], root, text)
    lines = tuple(line[2:].strip() for line in text.splitlines() if line.startswith("- "))
    return EntryList(entries, lines, {key: value for key, value in content.items() if key != KEY}, repeated)


def _read_text(path: Path) -> str:
    try:
        content = read_untrusted(path, _MAX_BYTES)
        if sum(map(content.count, _TOKENS)) > 6 * _MAX_ENTRIES:  # parsing takes long, so this is checked first
            raise SelectionError(f"{path} holds more than any list of parameters")
        if _LONG_NUMBER.search(content):  # the time to parse it grows with the square of its length
            raise SelectionError(f"{path} holds a number that is too long")
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell redirects output
            raise ValueError("it is UTF-16; save it as UTF-8")
        return content.decode()
    except OSError as error:
        raise SelectionError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise _invalid(path, error) from error


def _parse(path: Path, text: str) -> tuple[Any, yaml.Node | None]:
    """The content of a file, and the node that it was made of; None for an empty file."""
    import yaml

    try:
        loader = _loader()(text)
        root = loader.get_single_node()
        keys = None if root is None else copy.copy(root)  # because merges are resolved in the node itself
        return (None if root is None else loader.construct_document(root)), keys
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            raise _invalid(path, error) from error
        problem = error.problem or str(error.context)
        hint = _hint(text.splitlines()[: mark.line + 1], problem)
        context = f"{error.context} " if problem.startswith("but ") else ""
        raise _invalid(path, f"line {mark.line + 1}: {context}{problem}{hint}") from error
    except (ValueError, ArithmeticError, IndexError, RecursionError, yaml.YAMLError) as error:
        raise _invalid(path, error) from error


def _hint(lines: Sequence[str], problem: str) -> str:
    """What to do about a line that is not YAML. lines: all lines up to that one."""
    line = lines[-1] if lines else ""
    if "\\t" in problem or "\t" in line[: len(line) - len(line.lstrip())]:
        return "; indent with spaces instead of a tab"
    if "alias" in problem or re.match(r"\s*-\s+\*", line):
        return "; an entry cannot begin with *: write .+ for any characters"
    if line.lstrip().startswith("- ") and "<block end>" in problem:
        above = next((above for above in reversed(lines[:-1]) if above.strip() and above.lstrip()[0] != "#"), "")
        return "; indent all entries alike" if above.lstrip().startswith("-") else f"; put all entries under `{KEY}:`"
    if re.match(r"\s*-[\w^]", line):
        return "; write a space after each -"
    return "; is every line indented alike?" if "<block end>" in problem else ""


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


def _keys(node: yaml.Node | None) -> list[tuple[str, int, yaml.Node]]:
    """The keys of a mapping, with the numbers of their lines and their values. Merged keys are not among them."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [
        (key.value, key.start_mark.line + 1, value)
        for key, value in pairs
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE
    ]


def _repeated(root: yaml.Node | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys that stand several times, see `EntryList.repeated`."""
    keys = _keys(root)
    above: dict[int, tuple[str, yaml.Node]] = {}  # each value once, though aliases make it stand under several keys
    for key, _, node in keys:
        above.setdefault(id(node), (key, node))
    below = ((f"{key}.{own}", line) for key, node in above.values() for own, line, _ in _keys(node))
    places: dict[str, list[int]] = {}
    for key, line in [*((key, line) for key, line, _ in keys), *below]:
        places.setdefault(key, []).append(line)
    yield from ((key, tuple(lines)) for key, lines in places.items() if len(lines) > 1)


def _whereabouts(content: Any, root: yaml.Node | None, text: str) -> str:
    """Where the key or the list is instead of at the top level."""
    if isinstance(content, list):
        return f"; put its list under `{KEY}:`"
    if isinstance(content, str) and content.startswith(KEY):
        return f"; write a colon after {KEY}"
    if isinstance(content, dict) and not content.keys().isdisjoint(("target_modules", "target_parameters")):
        return "; it is a list for PEFT, which is right as it is: --check reads lists of parameters"
    if (found := _nested(root)) is not None:
        return f": in line {found} it is under another key; move it and its entries to the left margin"
    commented = [i for i, line in enumerate(text.splitlines(), 1) if re.match(rf"\s*#\s*{KEY}\s*:", line)]
    if commented:
        return f". Line {commented[0]} is commented out; remove the # there and before the entries"
    for key, line, _ in _keys(root):
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

    for key, _, value in _keys(root):
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
        for key, line, value in _keys(node):
            if key == KEY:
                return line
            nodes.append(value)
    return None


def _empty(root: yaml.Node | None, text: str) -> str:
    """Why the list is empty, and what to do."""
    place = max((line for key, line, _ in _keys(root) if key == KEY), default=0)
    below = itertools.takewhile(lambda line: not line.strip() or line.lstrip()[0] == "#", text.splitlines()[place:])
    commented = [i for i, line in enumerate(below, place + 1) if re.match(r"\s*#[\s#]*-", line)] if place else []
    if commented:
        return f". Its entries {in_lines(commented)} are commented out; remove the # there"
    return _misplaced(root) or "; put entries under it, or remove it"


def in_lines(lines: Sequence[int]) -> str:
    """Numbers of lines, in words: `in line 3`, `in lines 3 and 7`, `in lines 3 to 9`."""
    if len(lines) == 1:
        return f"in line {lines[0]}"
    if len(lines) > 2 and lines[-1] - lines[0] == len(lines) - 1:
        return f"in lines {lines[0]} to {lines[-1]}"
    return f"in lines {', '.join(map(str, lines[:-1][:5]))} and {lines[-1]}"


def _valid_entries(path: Path, entries: Any, root: yaml.Node | None, text: str) -> tuple[str, ...]:
    """The entries, checked. Raises SelectionError if they are not a list of names and patterns."""
    if entries is None or entries == []:
        repeated = dict(_repeated(root)).get(KEY)
        last = f", the last of those {in_lines(repeated)}," if repeated else ""
        raise SelectionError(
            f"{KEY} in {path}{last} is empty; trainers take that as no list at all, and train everything"
            f"{_empty(root, text)}"
        )
    if not isinstance(entries, list):
        hint = "; write each name on a line of its own, after '- '" if isinstance(entries, str) else ""
        raise SelectionError(f"{KEY} in {path} is not a list of names{hint}")
    if len(entries) > _MAX_ENTRIES:
        raise SelectionError(f"{KEY} in {path} has {len(entries)} entries, more than any model has parameters")
    for place, entry in enumerate(entries, 1):
        if not isinstance(entry, str) or not entry:
            kind = "empty" if entry == "" else _KINDS.get(type(entry), f"{_written(root, place, entry)}, not a name")
            raise SelectionError(f"{KEY} in {path} is not a list of names: entry {place}{_line(root, place)} is {kind}")
        if len(entry) > _MAX_ENTRY_LENGTH or not entry.isprintable():
            problem = "is longer than any name" if entry.isprintable() else "holds an unprintable character"
            raise SelectionError(f"{KEY} in {path}: entry {place}{_line(root, place)} {problem}: {entry[:40]!r}")
    for rule in (AXOLOTL, REGULAR_EXPRESSION):
        try:
            matched(rule, entries, [])
        except SelectionError as error:
            raise SelectionError(f"{path}: {error}") from error
    return tuple(entries)


def _node(root: yaml.Node | None, place: int) -> yaml.Node | None:
    """What an entry was made of; None if that is not known."""
    import yaml

    lists = [node for key, _, node in _keys(root) if key == KEY]
    return lists[-1].value[place - 1] if lists and isinstance(lists[-1], yaml.SequenceNode) else None


def _line(root: yaml.Node | None, place: int) -> str:
    """The line of an entry, in brackets; empty if it is not known."""
    node = _node(root, place)
    return "" if node is None else f" (line {node.start_mark.line + 1})"


def _written(root: yaml.Node | None, place: int, entry: object) -> str:
    """An entry as the file has it, cut if it is long."""
    value = getattr(_node(root, place), "value", None)
    return f"{value if isinstance(value, str) else repr(entry):.40}"


def _invalid(path: Path, error: object) -> SelectionError:
    return SelectionError(f"{path} is not valid YAML: {' '.join(str(error).split())}")
