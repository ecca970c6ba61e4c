"""What a check finds, whatever the list is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

_MAX_ALIKE = 3  # entries with the same mistake that are reported one by one


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of a check.

    Args:
        trained: for each rule, the parameters that train, the rule of the list's own reader first. Of tied parameters,
            only the owner is among them. Of a list for adapters, they are those that an adapter is added to.
        num_matching: for each rule, how many entries match a parameter.
        rules_differ: whether the rules differ in what trains, apart from patterns that only some of them know.
        problems: why the list does not do what it says, one line for each problem.
        notes: other lines that inform the user.
        adapters: whether the list is for adapters, whose memory is not estimated.
    """

    trained: Mapping[str, frozenset[str]]
    num_matching: Mapping[str, int]
    rules_differ: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    adapters: bool = False


def in_brief(texts: Sequence[str], more: str, told: Callable[[str], str] = str) -> Iterator[str]:
    """The first few texts, or what is told of the first few entries, and how many more there are."""
    yield from map(told, texts[:_MAX_ALIKE])
    if len(texts) > _MAX_ALIKE:
        yield f"{len(texts) - _MAX_ALIKE} more {more}"
