"""Read an untrusted YAML file, or text file, in bounded time and memory. A hostile file is refused with one line."""

from __future__ import annotations

import codecs
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.errors import SelectionError
from spectrum.files import read_untrusted

if TYPE_CHECKING:
    import yaml

# The list of all weights of a large mixture of experts, with a module for each expert, has 30,000 entries.
_MAX_BYTES = 4 << 20
MAX_ENTRIES = 50_000
_MAX_ENTRY_LENGTH = 2_000  # characters
_TOKENS = (b"\n", b"\r", b",", b"- ", b": ", b"[", b"{", b"*", b"&", b"\xc2\x85", b"\xe2\x80")  # of YAML
_LONG_NUMBER = re.compile(rb"[0-9:_.]{1000}")
_MERGE = "tag:yaml.org,2002:merge"
_MAX_MERGED = 10_000  # keys that one mapping merges from others; nested merges multiply

_KINDS = {dict: "a mapping; write no colon after a name", list: "a list", bool: "a truth value", type(None): "empty"}


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file.

    Args:
        path: the file.
        text: its text.
        content: what YAML makes of it.
        root: the node that the content was made of; None for an empty file.
    """

    path: Path
    text: str
    content: Any
    root: yaml.Node | None


def read_text(path: Path) -> str:
    """The text of a file that others may have written. Raises SelectionError if it cannot be read, or is too much."""
    try:
        content = read_untrusted(path, _MAX_BYTES)
        if sum(map(content.count, _TOKENS)) > 6 * MAX_ENTRIES:  # parsing takes long, so this is checked first
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


def parse(path: Path, text: str, key: str) -> Document:
    """The content of a YAML file. Raises SelectionError if it is not valid.

    Args:
        path: the file, for messages.
        text: its text.
        key: the key of the list that the file should have, for advice.
    """
    import yaml

    try:
        loader = _loader()(text)
        root = loader.get_single_node()
        keys = None if root is None else copy.copy(root)  # because merges are resolved in the node itself
        return Document(path, text, None if root is None else loader.construct_document(root), keys)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark is None:
            raise _invalid(path, error) from error
        problem = error.problem or str(error.context)
        hint = _hint(text.splitlines()[: mark.line + 1], problem, key)
        context = f"{error.context} " if problem.startswith("but ") else ""
        raise _invalid(path, f"line {mark.line + 1}: {context}{problem}{hint}") from error
    except (ValueError, ArithmeticError, IndexError, RecursionError, yaml.YAMLError) as error:
        raise _invalid(path, error) from error


def _hint(lines: Sequence[str], problem: str, key: str) -> str:
    """What to do about a line that is not YAML. lines: all lines up to that one."""
    line = lines[-1] if lines else ""
    if "\\t" in problem or "\t" in line[: len(line) - len(line.lstrip())]:
        return "; indent with spaces instead of a tab"
    if "alias" in problem or re.match(r"\s*-\s+\*", line):
        return "; an entry cannot begin with *: write .+ for any characters"
    if line.lstrip().startswith("- ") and "<block end>" in problem:
        above = next((above for above in reversed(lines[:-1]) if above.strip() and above.lstrip()[0] != "#"), "")
        return "; indent all entries alike" if above.lstrip().startswith("-") else f"; put all entries under `{key}:`"
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


def keys_of(node: yaml.Node | None) -> list[tuple[str, int, yaml.Node]]:
    """The keys of a mapping, with the numbers of their lines and their values. Merged keys are not among them."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [
        (key.value, key.start_mark.line + 1, value)
        for key, value in pairs
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE
    ]


def repeated(root: yaml.Node | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The keys that stand several times, each with the numbers of its lines. YAML keeps the last.

    Keys one level down have the key above before them: `fsdp_config.version`.
    """
    keys = keys_of(root)
    above: dict[int, tuple[str, yaml.Node]] = {}  # each value once, though aliases make it stand under several keys
    for key, _, node in keys:
        above.setdefault(id(node), (key, node))
    below = ((f"{key}.{own}", line) for key, node in above.values() for own, line, _ in keys_of(node))
    places: dict[str, list[int]] = {}
    for key, line in [*((key, line) for key, line, _ in keys), *below]:
        places.setdefault(key, []).append(line)
    yield from ((key, tuple(lines)) for key, lines in places.items() if len(lines) > 1)


def in_lines(lines: Sequence[int]) -> str:
    """Numbers of lines, in words: `in line 3`, `in lines 3 and 7`, `in lines 3 to 9`."""
    if len(lines) == 1:
        return f"in line {lines[0]}"
    if len(lines) > 2 and lines[-1] - lines[0] == len(lines) - 1:
        return f"in lines {lines[0]} to {lines[-1]}"
    return f"in lines {', '.join(map(str, lines[:-1][:5]))} and {lines[-1]}"


def names_in(document: Document, keys: Sequence[str], value: Any) -> tuple[str, ...]:
    """The names and patterns that are listed under a key. Raises SelectionError if the value is not a list of them.

    Args:
        document: the file.
        keys: the key, after those above it.
        value: the value of the key.
    """
    key, path = ".".join(keys), document.path
    if not isinstance(value, list):
        hint = "; write each name on a line of its own, after '- '" if isinstance(value, str) else ""
        raise SelectionError(f"{key} in {path} is not a list of names{hint}")
    if len(value) > MAX_ENTRIES:
        raise SelectionError(f"{key} in {path} has {len(value)} entries, more than any model has parameters")
    for place, entry in enumerate(value, 1):
        line = _line(document.root, keys, place)
        if not isinstance(entry, str) or not entry:
            kind = "empty" if entry == "" else _KINDS.get(type(entry))
            if kind is None:  # a list or a mapping is not written out, since aliases can make it endless
                kind = f"{_written(document.root, keys, place, entry)}, not a name"
            raise SelectionError(f"{key} in {path} is not a list of names: entry {place}{line()} is {kind}")
        check_name(entry, f"{key} in {path}: entry {place}", line)
    return tuple(value)


def check_name(text: str, where: str, line: Callable[[], str] = lambda: "") -> None:
    """Raise SelectionError if a text is longer than any name or pattern, or cannot be printed.

    Args:
        text: the text.
        where: what the text is, for the message.
        line: makes the number of its line, in brackets.
    """
    if len(text) > _MAX_ENTRY_LENGTH or not text.isprintable():
        problem = "is longer than any name" if text.isprintable() else "holds an unprintable character"
        raise SelectionError(f"{where}{line()} {problem}: {text[:40]!r}")


def shown(value: object) -> str:
    """A value for a message. Only a text or a number is written out: aliases can make anything else endless."""
    if isinstance(value, str | int | float):
        return repr(value[:40] if isinstance(value, str) else value)[:60]
    return _KINDS.get(type(value), "not a text").partition(";")[0]


def _node(root: yaml.Node | None, keys: Sequence[str], place: int) -> yaml.Node | None:
    """What an entry was made of; None if that is not known. keys: those above it."""
    import yaml

    node = root
    for key in keys:
        node = next((value for own, _, value in reversed(keys_of(node)) if own == key), None)
    return node.value[place - 1] if isinstance(node, yaml.SequenceNode) and place <= len(node.value) else None


def _line(root: yaml.Node | None, keys: Sequence[str], place: int) -> Callable[[], str]:
    """What makes the line of an entry, in brackets; empty if it is not known."""

    def line() -> str:
        node = _node(root, keys, place)
        return "" if node is None else f" (line {node.start_mark.line + 1})"

    return line


def _written(root: yaml.Node | None, keys: Sequence[str], place: int, entry: object) -> str:
    """An entry as the file has it, cut if it is long."""
    value = getattr(_node(root, keys, place), "value", None)
    return f"{value if isinstance(value, str) else repr(entry):.40}"


def _invalid(path: Path, error: object) -> SelectionError:
    return SelectionError(f"{path} is not valid YAML: {' '.join(str(error).split())}")
