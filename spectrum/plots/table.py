"""Where does each layer stand in a heat map? A row for each layer type, a column for each layer index."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Sequence
from typing import NamedTuple

from spectrum.layer_types import layer_number
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import Selection

# Colours for scores, from low to high on a logarithmic scale: every 17th of matplotlib's viridis. Its lightness rises
# throughout, so colour-blind readers can use it too.
COLOURS = (
    *("#440154", "#481a6c", "#472f7d", "#414487", "#39568c", "#31688e", "#2a788e", "#23888e"),
    *("#1f988b", "#22a884", "#35b779", "#54c568", "#7ad151", "#a5db36", "#d2e21b", "#fde725"),
)
EXPERTS = ".*"  # in the label of a row, in place of an expert's number
INFINITE = "\N{INFINITY}"
OUTSIDE = "outside the stack"  # the label of the column of lm_head and other modules that have no layer index

_EXPERT = re.compile(r"\b(\w*experts?)\.\d+(?=\.|$)")  # an expert's number in a layer type


class TableRow(NamedTuple):
    """A row: a layer type, or the types of all experts of one kind if each expert is a module of its own.

    Args:
        label: the type, or the types with `.*` in place of the expert's number.
        layer_types: the types.
        is_constant: whether all layers have the same score, as norms do. That of a single layer must be the score of a
            vector: 1, or infinity in scans of other tools.
    """

    label: str
    layer_types: tuple[str, ...]
    is_constant: bool


class Table(NamedTuple):
    """The rows and columns of a scan's layers.

    Args:
        rows: in the order of the types.
        columns: the layer indexes as text, ascending; OUTSIDE comes first, if a layer has no index.
        places: the layers at each place, by row and column.
    """

    rows: tuple[TableRow, ...]
    columns: tuple[str, ...]
    places: dict[tuple[int, int], tuple[LayerSnr, ...]]


class Cell(NamedTuple):
    """The layers at one place of the table.

    Args:
        row: the place's row.
        column: the place's column.
        snr: the median of their scores.
        sign: the text that is drawn instead of a colour; empty for none.
        outline: the style of the outline; empty for none.
    """

    row: int
    column: int
    snr: float
    sign: str
    outline: str


def table(scan: ScanResult, apart: Collection[str] = ()) -> Table:
    """The table of a scan. Experts that are modules of their own share a row.

    Args:
        scan: the scan.
        apart: types that share no row with others.
    """
    types: dict[tuple[str, bool], list[str]] = {}
    found: dict[tuple[tuple[str, bool], str], list[LayerSnr]] = {}
    for layer_type, layers in scan.by_type().items():
        row = _EXPERT.sub(rf"\1{EXPERTS}", layer_type), layer_type in apart
        types.setdefault(row, []).append(layer_type)
        for layer in layers:
            found.setdefault((row, layer_number(layer.name, layer_type) or OUTSIDE), []).append(layer)
    # Indices stay text, since one may have more digits than int() takes. Shorter ones first is their order.
    columns = sorted({column for _, column in found}, key=lambda column: (column != OUTSIDE, len(column), column))
    scores: dict[tuple[str, bool], list[float]] = {}
    for (row, _), layers in found.items():
        scores.setdefault(row, []).extend(layer.snr for layer in layers)
    row_of, column_of = ({name: i for i, name in enumerate(names)} for names in (types, columns))
    return Table(
        rows=tuple(
            TableRow(row[0] if len(names) > 1 else names[0], tuple(names), _is_constant(scores[row]))
            for row, names in types.items()
        ),
        columns=tuple(columns),
        places={(row_of[row], column_of[column]): tuple(layers) for (row, column), layers in found.items()},
    )


def _is_constant(scores: Sequence[float]) -> bool:
    return len(set(scores)) == 1 and (len(scores) > 1 or scores[0] in (1, math.inf))


def cells(places: Table, drawn: ScanResult | Selection) -> list[Cell]:
    """What is drawn at each place. drawn: the scan of the table, or a selection from it, which is outlined."""
    chosen = {} if isinstance(drawn, ScanResult) else drawn.layers()
    selected = {name for names in chosen.values() for name in names}
    vectors = set(range(len(places.rows))) - {
        row for (row, _), layers in places.places.items() if any(layer.snr != 1 for layer in layers)
    }
    return [_cell(place, layers, selected, place[0] in vectors) for place, layers in places.places.items()]


def _cell(place: tuple[int, int], layers: Sequence[LayerSnr], selected: Collection[str], is_constant: bool) -> Cell:
    """The cell of these layers. is_constant: whether every layer of the row scores exactly 1."""
    snr = statistics.median(layer.snr for layer in layers)
    are_selected = {layer.name in selected for layer in layers}
    sign = "1" if is_constant else "0" if snr <= 0 else INFINITE if snr == math.inf else ""
    outline = "" if are_selected == {False} else "solid" if are_selected == {True} else "dashed"
    return Cell(*place, snr, sign, outline)
