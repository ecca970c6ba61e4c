"""Which parameters does an entry of the list match? Each program that reads lists has its own rule: see `RULES`."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

from spectrum.errors import SelectionError
from spectrum.trainers import patterns

Rule = Callable[[str], Callable[[str], bool]]  # an entry -> whether it matches a parameter's name

# An entry that is a plain name. By Axolotl's rule, it matches the names that start with it.
_PLAIN_NAME = re.compile(r"[\w.\-/]+", re.ASCII)

# An entry that is the name of a module or parameter, perhaps anchored.
_ANCHORED_NAME = re.compile(r"\^?([\w.\-/]*\w)\$?", re.ASCII)

# An entry that is quickly matched by any rule: any part of a name, perhaps anchored, perhaps with escaped dots.
_QUICK = re.compile(r"\^?(?:[\w.\-/]|\\\.)*\$?", re.ASCII)

# A part of an entry that matches indexes: 2[0-9]+, \d, (0|1).
_INDEX_PATTERN = re.compile(r"(?:\d*(?:\[[\d\-]+\]|\\d)[+*]?|\([\d|]+\))", re.ASCII)
_MAX_INDEX = 1000  # below which a layer's index is searched that a pattern matches

# A range of rows at the end of an entry for Axolotl: [7], [:10], [4:], [4:10].
_ROWS = re.compile(r"^(.+)\[([0-9]{0,18})(?::([0-9]{0,18}))?\]$")


def axolotl(entry: str) -> Callable[[str], bool]:
    """Axolotl's rule: a regular expression, matched from the start of the name.

    Dots are literal, except before +. A range of rows may follow, which does not change what matches.
    """
    if is_plain_name(entry):
        return lambda name: name.startswith(entry)
    return regular_expression(_axolotl_pattern(entry))


def regular_expression(entry: str) -> Callable[[str], bool]:
    """The rule of scripts on TRL: a regular expression, matched from the start of the name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about syntax that a later Python will read differently
        pattern = re.compile(entry)
    return lambda name: pattern.match(name) is not None


def substring(entry: str) -> Callable[[str], bool]:
    """The rule of the snippet in the reference's README: anywhere in the name."""
    return lambda name: entry in name


AXOLOTL = "Axolotl"
REGULAR_EXPRESSION = "re.match, as scripts on TRL"
SUBSTRING = "substring, as the reference's snippet"
RULES: Mapping[str, Rule] = {AXOLOTL: axolotl, REGULAR_EXPRESSION: regular_expression, SUBSTRING: substring}


def is_plain_name(entry: str) -> bool:
    """Whether an entry is a plain name: neither anchored, nor a pattern, nor with a range of rows."""
    return _PLAIN_NAME.fullmatch(entry) is not None


def name_in(entry: str) -> str | None:
    """The name that an entry for Axolotl consists of, without anchors and rows; None if the entry is a pattern."""
    anchored = _ANCHORED_NAME.fullmatch(without_rows(entry))
    return anchored[1] if anchored else None


def without_rows(entry: str) -> str:
    """An entry for Axolotl without the range of rows at its end, if it has one."""
    ranged = _ROWS.match(entry)
    return ranged[1] if ranged else entry


def selects_rows(entry: str) -> bool:
    """Whether an entry for Axolotl ends in a range of rows."""
    return _ROWS.match(entry) is not None


def rows(entry: str) -> tuple[int, int | None] | None:
    """The rows that an entry for Axolotl selects: the first, and the one after the last. None if it selects all rows.

    The second number is None if the rows go to the end of the parameter.
    """
    ranged = _ROWS.match(entry)
    if ranged is None or not (ranged[2] or ranged[3]):
        return None
    start = int(ranged[2] or 0)
    if ranged[3] is None:
        return start, start + 1
    return start, int(ranged[3]) if ranged[3] else None


def respelled(text: str) -> str:
    """An entry with its dots not escaped, and with indexes after dots: `layers[1]` -> `layers.1`."""
    return re.sub(r"(?<=[a-z])\[(\d+)\](?=\.)", r".\1", text.replace("\\.", "."))


def example(entry: str) -> tuple[str, list[str]] | None:
    """A name that an entry may stand for, and all its indexes as the entry has them: `a.2[0-9]+.b` -> `a.20.b`.

    The second is empty if the entry is a name itself. None if more than its indexes are patterns.
    """
    parts = entry.removeprefix("^").removesuffix("$").split(".")
    written, has_pattern = [], False
    for i, part in enumerate(parts):
        if part == "*":  # any characters, as it was meant
            parts[i], has_pattern = "0", True
            written.append("[0-9]+")
        elif not re.fullmatch(r"[\w\-/]+", part, re.ASCII):
            if _INDEX_PATTERN.fullmatch(part) is None:
                return None
            try:
                number = next((n for n in range(_MAX_INDEX) if re.fullmatch(part, str(n))), None)
            except re.error:
                return None
            if number is None:
                return None
            parts[i], has_pattern = str(number), True
            written.append(part)
        elif part.isdigit():
            written.append(part)
    return ".".join(parts), written if has_pattern else []


def matched(rule: str, entries: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each entry, the names that it matches.

    Raises SelectionError if an entry is not a valid pattern, or if matching takes too long.

    Args:
        rule: a key of `RULES`.
        entries: the entries of a list.
        names: the names of a model's parameters.
    """
    found = _matched_patterns(rule, entries, names)
    deadline = time.monotonic() + patterns.SECONDS
    for entry in entries:
        if time.monotonic() > deadline:
            raise SelectionError(
                f"{len(entries)} entries take over {patterns.SECONDS:.0f} seconds to match with {len(names)} parameters"
            )
        if entry not in found:
            found[entry] = frozenset(filter(RULES[rule](entry), names))
    return {entry: found[entry] for entry in entries}


def _matched_patterns(rule: str, entries: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each entry that is more than a name, the names that it matches.

    Such patterns may be slow, so a process of their own matches them.
    """
    slow = [entry for entry in entries if rule != SUBSTRING and not _QUICK.fullmatch(entry)]
    written = [_axolotl_pattern(entry) if rule == AXOLOTL else entry for entry in slow]
    try:
        found = patterns.matching(written, names)
    except patterns.PatternError as error:
        entry = slow[error.place]
        if error.reason is not None:
            advice = "; write .+ for any characters" if "nothing to repeat" in error.reason else ""
            raise SelectionError(f"{entry!r} is not a regular expression: {error.reason}{advice}") from error
        raise SelectionError(
            f"{entry!r} takes over {patterns.SECONDS:.0f} seconds to match; "
            "a repetition inside a repetition can take forever, so write it without one"
        ) from error
    return {entry: frozenset(matches) for entry, matches in zip(slow, found, strict=True)}


def _axolotl_pattern(entry: str) -> str:
    """An entry for Axolotl as a regular expression of Python's."""
    return re.sub(r"\.(?!\+)", r"\\.", without_rows(entry))
