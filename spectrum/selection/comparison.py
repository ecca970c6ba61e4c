"""Do two scans rank layers alike, and what does the difference do to the selection?"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.margins import RankedType
from spectrum.selection.selection import Selection, top_percent
from spectrum.text import aligned, in_line, listed, plural


@dataclass(frozen=True, slots=True)
class TypeComparison:
    """The comparison of the layers of one type that both scans have.

    Args:
        layer_type: the type.
        num_layers: the number of these layers.
        num_first: the number of layers of the type in the first scan.
        num_second: the number of layers of the type in the second scan.
        correlation: Spearman's rank correlation of their scores. None if there are fewer than two layers, or if one
            scan gives them all the same score.
        enter: layers that the second scan selects and the first does not.
        leave: layers that the first scan selects and the second does not.
    """

    layer_type: str
    num_layers: int
    num_first: int
    num_second: int
    correlation: float | None
    enter: tuple[str, ...]
    leave: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two selections of the same percentage and order, compared.

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
    """Compare two selections, type by type. Layers that only one of the scans has are left out of both.

    If the models differ in depth, the top percent is thus that of the layers that both have. Raises SelectionError if
    the scans have no layer in common.
    """
    keys_of_second = {_key(layer) for layer in second.result.layers}
    common = {key for layer in first.result.layers if (key := _key(layer)) in keys_of_second}
    if not common:
        raise SelectionError(
            f"{first.result.model} and {second.result.model} have no layer in common, so there is nothing to compare"
        )
    num_first, num_second = (
        {ranked.layer_type: len(ranked.layers) for ranked in selection.types} for selection in (first, second)
    )
    of_common, of_common_in_second = (_restricted(selection, common) for selection in (first, second))
    selected, selected_by_second = of_common.layers(), of_common_in_second.layers()
    of_second = {ranked.layer_type: ranked for ranked in of_common_in_second.types}
    compared = []
    for ranked in of_common.types:
        layer_type = ranked.layer_type
        scores, scores_of_second = _scores(ranked), _scores(of_second[layer_type])
        before, after = selected[layer_type], selected_by_second[layer_type]
        compared.append(
            TypeComparison(
                layer_type=layer_type,
                num_layers=len(scores),
                num_first=num_first[layer_type],
                num_second=num_second[layer_type],
                correlation=rank_correlation([scores[name] for name in scores], [scores_of_second[n] for n in scores]),
                enter=tuple(name for name in after if name not in before),
                leave=tuple(name for name in before if name not in after),
            )
        )
    only_first, only_second = (
        tuple(ranked.layer_type for ranked in selection.types if ranked.layer_type not in of_second)
        for selection in (first, second)
    )
    return Comparison(first, second, tuple(compared), only_first, only_second)


def _key(layer: LayerSnr) -> tuple[str, str]:
    return layer.layer_type, layer.name


def _restricted(selection: Selection, common: Collection[tuple[str, str]]) -> Selection:
    """The same selection among the layers that both scans have. common: their types and names."""
    result: ScanResult = replace(
        selection.result, layers=tuple(layer for layer in selection.result.layers if _key(layer) in common)
    )
    return top_percent(result, selection.percent, embeddings=selection.embeddings, order=selection.order)


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


def described(comparison: Comparison, columns: int | None = None) -> str:
    """The comparison as text: a table of the types, the layers that enter and leave, the types of only one scan.

    columns: the width that the table should fit; None if any width will do.
    """
    first, second = (in_line(selection.result.model) for selection in (comparison.first, comparison.second))
    title = f"{second} in place of {first}, {comparison.first.share()} of each layer type:"
    header = ("layer type", "layers", "rank correlation", "enter", "leave")
    enter = [f"+ {name}" for compared in comparison.types for name in compared.enter]
    leave = [f"- {name}" for compared in comparison.types for name in compared.leave]
    summary = "of these types, both select the same layers"
    if enter or leave:
        entering, leaving = plural(len(enter), "layer enters", "layers enter"), plural(len(leave), "leaves", "leave")
        summary = f"{entering} the selection (+), {leaving} it (-):"
    parts = [
        title,
        _depths(comparison, first, second),
        aligned([header, *map(_row, comparison.types)], columns),
        "\n".join([summary, *enter, *leave]),
    ]
    sides = ((comparison.only_first, first), (comparison.only_second, second))
    if only := [f"only in {name}: {listed(types)}" for types, name in sides if types]:
        parts.append("\n".join(only))
    return "\n\n".join(filter(None, parts))


def _depths(comparison: Comparison, first: str, second: str) -> str:
    """A line that says that the models differ in depth; empty if they do not. first, second: their names."""
    unequal = [compared for compared in comparison.types if compared.num_first != compared.num_second]
    if not unequal:
        return ""
    example = max(unequal, key=lambda compared: max(compared.num_first, compared.num_second))
    return (
        f"the depths differ: {first} has {plural(example.num_first, 'layer')} of {example.layer_type}, {second} has "
        f"{example.num_second}; this comparison selects only among layers that both have"
    )


def _row(compared: TypeComparison) -> tuple[str, ...]:
    correlation = compared.correlation
    return (
        compared.layer_type,
        str(compared.num_layers),
        "" if correlation is None else f"{round(correlation, 3) + 0.0:.3f}",  # + 0.0 turns -0.0 into 0.0
        str(len(compared.enter)),
        str(len(compared.leave)),
    )
