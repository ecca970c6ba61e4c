"""Which parameters does an entry of the list match? Each program that reads lists has its own rule: see `RULES`."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

from spectrum.errors import SelectionError

Rule = Callable[[str], Callable[[str], bool]]  # an entry -> whether it matches a parameter's name

# An entry that is a plain name. By Axolotl's rule, it matches the names that start with it.
_PLAIN_NAME = re.compile(r"[\w.\-/]+", re.ASCII)

# An entry that is the name of a module or parameter, perhaps anchored.
_ANCHORED_NAME = re.compile(r"\^?([\w.\-/]*\w)\$?", re.ASCII)

# An entry that is quickly matched by any rule: any part of a name, perhaps anchored, perhaps with escaped dots.
_QUICK = re.compile(r"\^?(?:[\w.\-/]|\\\.)*\$?", re.ASCII)

# A part of an entry that matches indexes: 2[0-9]+, \d, (0|1).
_INDEX_PATTERN = re.compile(r"(?:\d*(?:\[[\d\-]+\]|\\d)[+*]?|\([\d|]+\))", re.ASCII)
_INDEXES = re.compile(r"(\.|(?<=[a-z]))(?:\{([\d,.\-]{1,99})\}|\[([\d,:\- ]{1,99})\])(?=\.)", re.ASCII)
_MAX_LISTED = 200  # indexes that are written one by one
_MAX_INDEX = 1000  # below which a layer's index is searched that a pattern matches

# A range of rows at the end of an entry for Axolotl: [7], [:10], [4:], [4:10].
_ROWS = re.compile(r"^(.+)\[([0-9]{0,18})(?::([0-9]{0,18}))?\]$")

SECONDS = 30.0  # for all patterns together; the patterns of real lists take about a thousandth of this

# The process also limits its own CPU time, in case its parent is killed.
_MATCHER = """
import json, re, sys
patterns, names, seconds, how = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
except (ImportError, ValueError, OSError):
    pass
for pattern in patterns:
    try:
        match = getattr(re.compile(pattern), how)
    except (re.error, OverflowError, RecursionError) as error:
        result = (str(error).splitlines() or [type(error).__name__])[0]
    else:
        result = [place for place, name in enumerate(names) if match(name)]
    print(json.dumps(result), flush=True)
"""


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
    """An entry as it was meant: no spaces around it, no escaped dots, and indexes as `with_index_patterns` has them."""
    return with_index_patterns(text.strip().replace("\\.", "."))


def with_index_patterns(text: str) -> str:
    """An entry with its indexes as a regular expression has them, if they are written in the way of another language.

    `layers[1]` -> `layers.1`; `layers.{1,2}` and `layers.[1,2]` -> `layers.(1|2)`; as Python's slices, `layers[1:4]`
    -> `layers.(1|2|3)`; with several digits, `layers.[9-11]` -> `layers.(9|10|11)`.
    """
    return _INDEXES.sub(_index_pattern, text)


def _index_pattern(written: re.Match[str]) -> str:
    """Indexes in braces or brackets, as a regular expression has them. What is right, or not understood, is kept."""
    dot, braces, brackets = written.groups()
    bounds = [int(number) for number in re.findall(r"\d+", braces or brackets)]
    is_range = re.fullmatch(r"\d*(?:-|:|\.\.)\d+", braces or brackets) is not None
    if is_range and ":" in written[0]:
        bounds = [*range(0 if len(bounds) == 1 else bounds[0], min(bounds[-1], _MAX_INDEX))]
    elif is_range and len(bounds) == 2 and (braces or max(bounds) > 9):
        bounds = [*range(bounds[0], min(bounds[1] + 1, _MAX_INDEX))]
    elif is_range or (dot and brackets and "," not in brackets):  # [0-9], [12]
        return written[0]
    if not 0 < len(bounds) <= _MAX_LISTED:
        return written[0]
    return f".{bounds[0]}" if len(bounds) == 1 else f".({'|'.join(map(str, bounds))})"


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


def named_by(entry: str) -> Callable[[str], bool] | None:
    """Whether a parameter is what an entry names, or in it. The bias beside a bare parameter is, too.

    None if more than indexes of the entry are patterns, so that it may stand for anything.
    """
    name = name_in(entry)
    if name is not None:
        own, inside = (name, f"{name}_bias"), f"{name}."
        return lambda parameter: parameter in own or parameter.startswith(inside)
    found = example(without_rows(entry))
    if found is None:
        return None
    path, left = found[0].split("."), iter(found[1])
    path = [f"(?:{next(left)})" if part.isdigit() else re.escape(part) for part in path]
    pattern = re.compile(rf"{r'[.]'.join(path)}(?:_bias|[.].*)?")
    return lambda parameter: pattern.fullmatch(parameter) is not None


def matched(rule: str, entries: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each entry, the names that it matches.

    Raises SelectionError if an entry is not a valid pattern, or if matching takes too long.

    Args:
        rule: a key of `RULES`.
        entries: the entries of a list.
        names: the names of a model's parameters.
    """
    found = _matched_patterns(rule, entries, names)
    deadline = time.monotonic() + SECONDS
    for entry in entries:
        if time.monotonic() > deadline:
            raise SelectionError(
                f"{len(entries)} entries take over {SECONDS:.0f} seconds to match with {len(names)} parameters"
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
        found = match_patterns(written, names)
    except PatternError as error:
        entry = slow[error.place]
        if error.reason is not None:
            meant = with_index_patterns(entry)
            advice = "; write .+ for any characters" if "nothing to repeat" in error.reason else ""
            advice = advice if meant == entry else f"; write {meant}"
            raise SelectionError(f"{entry!r} is not a regular expression: {error.reason}{advice}") from error
        raise SelectionError(
            f"{entry!r} takes over {SECONDS:.0f} seconds to match; "
            "a repetition inside a repetition can take forever, so write it without one"
        ) from error
    return {entry: frozenset(matches) for entry, matches in zip(slow, found, strict=True)}


def _axolotl_pattern(entry: str) -> str:
    """An entry for Axolotl as a regular expression of Python's."""
    return re.sub(r"\.(?!\+)", r"\\.", without_rows(entry))


# Untrusted regular expressions, in bounded time.


class PatternError(Exception):
    """A pattern is invalid, or takes too long.

    Args:
        place: the pattern's place among all patterns, from 0.
        reason: what is wrong with the pattern; None if it takes too long.
    """

    def __init__(self, place: int, reason: str | None) -> None:
        super().__init__(f"pattern {place}: {reason or 'it takes too long'}")
        self.place, self.reason = place, reason


def match_patterns(patterns: Sequence[str], names: Sequence[str], how: str = "match") -> list[list[str]]:
    """For each regular expression, the names that it matches. Raises PatternError.

    A short pattern can take forever on a short name, and Python cannot stop a match that has begun. So another process
    matches, and is killed when its time is up.

    Args:
        patterns: the regular expressions.
        names: the names.
        how: "match" from the start of a name, "search" anywhere in it, or "fullmatch".
    """
    if not patterns:
        return []
    # Isolated (-I) and without site packages (-S), it starts in 20 ms and imports nothing from the working directory.
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", _MATCHER]
    request = json.dumps([patterns, names, math.ceil(SECONDS) + 1, how]).encode()
    out_of_time = True
    try:
        process = subprocess.run(command, input=request, capture_output=True, timeout=SECONDS)
        printed, out_of_time = process.stdout, process.returncode == -getattr(signal, "SIGXCPU", 0)
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
    # One line for each pattern that was matched in full. The last line may be cut off.
    results = [json.loads(line) for line in printed[: printed.rfind(b"\n") + 1].splitlines()]
    for place, result in enumerate(results):
        if isinstance(result, str):
            raise PatternError(place, result)
    if len(results) < len(patterns):
        raise PatternError(len(results), None if out_of_time else "there is no memory to match it")
    return [[names[place] for place in places] for places in results]
