"""Which parameters does an entry of the list match? Each program that reads lists has its own rule.

`axolotl` is Axolotl's rule: an entry is a regular expression that is matched from the start of a parameter's name, in
which a dot is a dot unless a plus follows, and which may end in a range of rows. `regular_expression` is the rule of
scripts on TRL, `substring` that of DistillKit.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

from spectrum.errors import SelectionError
from spectrum.trainers import patterns

Rule = Callable[[str], Callable[[str], bool]]  # an entry -> whether it matches a parameter's name

# An entry that is a plain name. As a pattern of Axolotl's, it matches the names that start with it.
_NAME = re.compile(r"[\w.\-/]*", re.ASCII)

# An entry that takes any reader of patterns no time: a name, anchored or not.
_ANCHORED = re.compile(r"\^?(?:[\w.\-/]|\\\.)*\$?", re.ASCII)

# A range of rows at the end of an entry for Axolotl: [7], [:10], [4:], [4:10].
_ROWS = re.compile(r"^(.+)\[([0-9]{0,18})(?::([0-9]{0,18}))?\]$")


def axolotl(entry: str) -> Callable[[str], bool]:
    """Axolotl's rule: a regular expression, from the start of the name. A dot is a dot unless a plus follows."""
    if _NAME.fullmatch(entry):
        return lambda name: name.startswith(entry)
    return regular_expression(_axolotl_pattern(entry))


def regular_expression(entry: str) -> Callable[[str], bool]:
    """The rule of scripts on TRL: a regular expression, from the start of the name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about syntax that a later Python will read differently
        pattern = re.compile(entry)
    return lambda name: pattern.match(name) is not None


def substring(entry: str) -> Callable[[str], bool]:
    """The rule of DistillKit and of the reference's example: anywhere in the name."""
    return lambda name: entry in name


AXOLOTL = "Axolotl"
REGULAR_EXPRESSION = "re.match, as scripts on TRL"
SUBSTRING = "substring, as DistillKit"
RULES: Mapping[str, Rule] = {AXOLOTL: axolotl, REGULAR_EXPRESSION: regular_expression, SUBSTRING: substring}


def without_rows(entry: str) -> str:
    """An entry for Axolotl without the range of rows at its end, if it has one."""
    ranged = _ROWS.match(entry)
    return ranged[1] if ranged else entry


def rows(entry: str) -> tuple[int, int | None] | None:
    """The rows that an entry for Axolotl selects: the first, and the one after the last.

    The second is None if the rows go to the end of the parameter. The result is None if all rows are selected.
    """
    ranged = _ROWS.match(entry)
    if ranged is None or not (ranged[2] or ranged[3]):
        return None
    start = int(ranged[2] or 0)
    if ranged[3] is None:
        return start, start + 1
    return start, int(ranged[3]) if ranged[3] else None


def matched(rule: str, entries: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each entry, the names that it matches.

    Raises SelectionError if an entry is not a valid pattern, or if matching takes too long.

    Args:
        rule: a key of `RULES`.
        entries: the entries of a list.
        names: of a model's parameters.
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
    """The same for the entries that are more than names: these may be slow, so a process of their own matches them."""
    slow = [entry for entry in entries if rule != SUBSTRING and not _ANCHORED.fullmatch(entry)]
    written = [_axolotl_pattern(entry) if rule == AXOLOTL else entry for entry in slow]
    try:
        found = patterns.matching(written, names)
    except patterns.PatternError as error:
        entry = slow[error.place]
        if error.reason is not None:
            raise SelectionError(f"{entry!r} is no regular expression: {error.reason}") from error
        raise SelectionError(
            f"{entry!r} takes over {patterns.SECONDS:.0f} seconds to match; "
            "a repetition inside a repetition can take for ever, so write it without one"
        ) from error
    return {entry: frozenset(matches) for entry, matches in zip(slow, found, strict=True)}


def _axolotl_pattern(entry: str) -> str:
    return re.sub(r"\.(?!\+)", r"\\.", without_rows(entry))
