"""A list of entries on disk, and how each of those who read it matches an entry with a parameter's name."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

from spectrum.errors import SelectionError
from spectrum.trainers import patterns

# A name, which a reader of patterns takes no time over.
_NAME = re.compile(r"[\w.\-/]*", re.ASCII)
_ANCHORED = re.compile(r"\^?(?:[\w.\-/]|\\\.)*\$?", re.ASCII)

# Axolotl's: rows of a parameter, at the end of an entry.
_ROWS = re.compile(r"^(.+)\[([0-9]{0,18})(?::([0-9]{0,18}))?\]$")
Rule = Callable[[str], Callable[[str], bool]]  # an entry -> whether it matches a parameter's name


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


def matched(rule: str, entries: Sequence[str], names: Sequence[str]) -> dict[str, frozenset[str]]:
    """For each entry, the names that it matches under a rule.

    Raises SelectionError for one that is no pattern, and where that takes too long, as a pattern can.
    """
    slow = [entry for entry in entries if rule != SUBSTRING and not _ANCHORED.fullmatch(entry)]
    written = [_as_axolotl(entry) if rule == AXOLOTL else entry for entry in slow]
    try:
        found = {entry: frozenset(of) for entry, of in zip(slow, patterns.matching(written, names), strict=True)}
    except patterns.PatternError as error:
        entry = slow[error.place]
        if error.reason is not None:
            raise SelectionError(f"{entry!r} is no regular expression: {error.reason}") from error
        raise SelectionError(
            f"{entry!r} takes over {patterns.SECONDS:.0f} seconds to match: a pattern that repeats what repeats may "
            "take for ever; write it without"
        ) from error
    until = time.monotonic() + patterns.SECONDS
    for entry in entries:
        if time.monotonic() > until:
            raise SelectionError(
                f"{len(entries)} entries take over {patterns.SECONDS:.0f} seconds to match with {len(names)} parameters"
            )
        if entry not in found:
            found[entry] = frozenset(filter(RULES[rule](entry), names))
    return {entry: found[entry] for entry in entries}


def axolotl(entry: str) -> Callable[[str], bool]:
    """Axolotl's rule: dots are dots unless a plus follows; else a regular expression, from the name's start."""
    if _NAME.fullmatch(entry):
        return lambda name: name.startswith(entry)
    return regular_expression(_as_axolotl(entry))


def _as_axolotl(entry: str) -> str:
    return re.sub(r"\.(?!\+)", r"\\.", without_rows(entry))


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
