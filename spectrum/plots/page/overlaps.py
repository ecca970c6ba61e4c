"""Which names are part of other names? Found once for all names of a model, since a browser has no time to search."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

_DOT = re.compile(r"\.")


def overlaps(names: Iterable[str], others: Sequence[str], before: str = "") -> dict[str, list[int]]:
    """For each name that is part of others: the places of those, ascending. The name itself does not count.

    Args:
        names: dotted names.
        others: the names to search.
        before: what each of the others has in front, as in the model that a trainer has wrapped.
    """
    wholes = [before + name for name in others]
    parts = {name: name.partition(".") for name in names}
    # What follows each dot, sorted: a dotted name is found by what follows its first dot. Most of it begins unlike all
    # that is looked for, and is left out.
    rests = [rest for _, dot, rest in parts.values() if dot]
    length = min(map(len, rests), default=0)
    starts = {rest[:length] for rest in rests}
    ends = sorted(
        (whole[dot + 1 :], place, dot)
        for place, whole in enumerate(wholes)
        for dot in _dots(whole)
        if whole[dot + 1 : dot + 1 + length] in starts
    )
    found = {}
    for name, (first, is_dotted, rest) in parts.items():
        if is_dotted:
            at, places = bisect_left(ends, (rest,)), set()
            while at < len(ends) and ends[at][0].startswith(rest):
                _, place, end = ends[at]
                if wholes[place].endswith(first, 0, end):
                    places.add(place)
                at += 1
        else:
            places = {place for place, whole in enumerate(wholes) if name in whole}
        if places := {place for place in places if others[place] != name}:
            found[name] = sorted(places)
    return found


def _dots(name: str) -> list[int]:
    return [found.start() for found in _DOT.finditer(name)]
