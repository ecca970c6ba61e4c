"""Two scans side by side: whether they rank layers alike, and what that does to the selection."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.selection.selection import Selection
from spectrum.text import aligned, in_line, listed


@dataclass(frozen=True, slots=True)
class TypeComparison:
    """Layers of one type that both scans have.

    correlation: Spearman's, of their scores; None where there are fewer than two, or all of a scan's are the same.
    enter, leave: layers that the second scan selects and the first does not, and the reverse.
    """

    layer_type: str
    layers: int
    correlation: float | None
    enter: tuple[str, ...]
    leave: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two selections of the same percentage. only_first, only_second: layer types that the other scan has not."""

    first: Selection
    second: Selection
    types: tuple[TypeComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare(first: Selection, second: Selection) -> Comparison:
    """Compare two selections, type by type. Raises SelectionError where they have no layer in common."""
    others = {kind.layer_type: kind for kind in second.types}
    trained = first.layers(), second.layers()
    compared = []
    for kind in first.types:
        other = others.pop(kind.layer_type, None)
        if other is None:
            continue
        here = {layer.name: layer.snr for layer in kind.ranked}
        there = {layer.name: layer.snr for layer in other.ranked}
        common = [name for name in here if name in there]
        if not common:
            continue
        chosen, chosen_there = (each.get(kind.layer_type, []) for each in trained)
        compared.append(
            TypeComparison(
                layer_type=kind.layer_type,
                layers=len(common),
                correlation=rank_correlation([here[name] for name in common], [there[name] for name in common]),
                enter=tuple(name for name in chosen_there if name not in chosen),
                leave=tuple(name for name in chosen if name not in chosen_there),
            )
        )
    if not compared:
        raise SelectionError(
            f"{first.result.model} and {second.result.model} have no layer in common, so there is nothing to compare"
        )
    both = {each.layer_type for each in compared}
    only = ([kind.layer_type for kind in each.types if kind.layer_type not in both] for each in (first, second))
    return Comparison(first, second, tuple(compared), *map(tuple, only))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, in [-1, 1]: Pearson's of the ranks, where ties share the mean of theirs.

    None for fewer than two values, and where all of one side are the same.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return statistics.correlation(_ranks(first), _ranks(second))


def described(comparison: Comparison) -> str:
    """A row per type, then the layers that enter and leave, then what was not compared."""
    header = ("layer type", "layers", "rank correlation", "enter", "leave")
    rows = [
        (
            each.layer_type,
            str(each.layers),
            "" if each.correlation is None else f"{round(each.correlation, 3) + 0.0:.3f}",
            str(len(each.enter)),
            str(len(each.leave)),
        )
        for each in comparison.types
    ]
    entering = [name for each in comparison.types for name in each.enter]
    leaving = [name for each in comparison.types for name in each.leave]
    first, second = (in_line(side.result.model) for side in (comparison.first, comparison.second))
    lines = [
        f"{second} in place of {first}, top {comparison.first.percent} percent of each layer type:",
        "",
        aligned([header, *rows]),
    ]
    if entering or leaving:
        lines += ["", *(f"+ {name}" for name in entering), *(f"- {name}" for name in leaving)]
    else:
        lines += ["", "of these types, both select the same layers"]
    sides = ((comparison.only_first, first), (comparison.only_second, second))
    only = [f"only in {name}: {listed(types)}" for types, name in sides if types]
    lines += ["", *only] if only else []
    return "\n".join(lines)


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [statistics.fmean(places[value]) for value in values]
