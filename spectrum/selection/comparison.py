"""Do two scans rank layers alike, and what does the difference do to the selection?"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.selection.margins import RankedType
from spectrum.selection.selection import Selection
from spectrum.text import aligned, in_line, listed


@dataclass(frozen=True, slots=True)
class TypeComparison:
    """The comparison of the layers of one type that both scans have.

    Args:
        layer_type: the type.
        num_layers: the number of these layers.
        correlation: Spearman's rank correlation of their scores. None if there are fewer than two layers, or if one
            scan gives them all the same score.
        enter: layers that the second scan selects and the first does not.
        leave: layers that the first scan selects and the second does not.
    """

    layer_type: str
    num_layers: int
    correlation: float | None
    enter: tuple[str, ...]
    leave: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two selections of the same percentage, compared.

    Args:
        first: the current selection.
        second: the selection that would replace it.
        types: the comparison of each type that both scans have.
        only_first: layer types that only the first scan has.
        only_second: layer types that only the second scan has.
    """

    first: Selection
    second: Selection
    types: tuple[TypeComparison, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare(first: Selection, second: Selection) -> Comparison:
    """Compare two selections, type by type. Raises SelectionError if the scans have no layer in common."""
    of_second = {ranked.layer_type: ranked for ranked in second.types}
    selected, selected_by_second = first.layers(), second.layers()
    compared = []
    for ranked in first.types:
        layer_type = ranked.layer_type
        if layer_type not in of_second:
            continue
        scores, scores_of_second = _scores(ranked), _scores(of_second[layer_type])
        common = [name for name in scores if name in scores_of_second]
        if not common:
            continue
        before, after = selected[layer_type], selected_by_second[layer_type]
        compared.append(
            TypeComparison(
                layer_type=layer_type,
                num_layers=len(common),
                correlation=rank_correlation(
                    [scores[name] for name in common], [scores_of_second[name] for name in common]
                ),
                enter=tuple(name for name in after if name not in before),
                leave=tuple(name for name in before if name not in after),
            )
        )
    if not compared:
        raise SelectionError(
            f"{first.result.model} and {second.result.model} have no layer in common, so there is nothing to compare"
        )
    in_both = {comparison.layer_type for comparison in compared}
    only_first, only_second = (
        tuple(ranked.layer_type for ranked in selection.types if ranked.layer_type not in in_both)
        for selection in (first, second)
    )
    return Comparison(first, second, tuple(compared), only_first, only_second)


def _scores(ranked: RankedType) -> dict[str, float]:
    return {layer.name: layer.snr for layer in ranked.layers}


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation, in [-1, 1]: Pearson's correlation of the ranks. Equal values share their mean rank.

    None for fewer than two values, or if one side has the same value throughout.
    """
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values)):
        places.setdefault(value, []).append(place)
    return [statistics.fmean(places[value]) for value in values]


def described(comparison: Comparison) -> str:
    """The comparison as text: a table of the types, the layers that enter and leave, the types of only one scan."""
    first, second = (in_line(selection.result.model) for selection in (comparison.first, comparison.second))
    title = f"{second} in place of {first}, top {comparison.first.percent} percent of each layer type:"
    header = ("layer type", "layers", "rank correlation", "enter", "leave")
    changes = [f"+ {name}" for compared in comparison.types for name in compared.enter]
    changes += [f"- {name}" for compared in comparison.types for name in compared.leave]
    parts = [
        title,
        aligned([header, *map(_row, comparison.types)]),
        "\n".join(changes or ["of these types, both select the same layers"]),
    ]
    sides = ((comparison.only_first, first), (comparison.only_second, second))
    if only := [f"only in {name}: {listed(types)}" for types, name in sides if types]:
        parts.append("\n".join(only))
    return "\n\n".join(parts)


def _row(compared: TypeComparison) -> tuple[str, ...]:
    correlation = compared.correlation
    return (
        compared.layer_type,
        str(compared.num_layers),
        "" if correlation is None else f"{round(correlation, 3) + 0.0:.3f}",  # + 0.0 turns -0.0 into 0.0
        str(len(compared.enter)),
        str(len(compared.leave)),
    )
