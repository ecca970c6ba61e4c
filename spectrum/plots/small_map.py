"""The heat map as a notebook shows it under a table: small, static, and without matplotlib."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from spectrum.display import Displayed
from spectrum.plots.table import COLOURS, OUTSIDE, Cell, Table, cells, table
from spectrum.records import ScanResult
from spectrum.selection.selection import Selection
from spectrum.text import in_line, shortened

_MAX_CELLS = 4_000  # a notebook keeps what it shows, so a larger map would make its file large
_MAX_LABEL = 34  # characters
_HEIGHT, _GAP, _FONT, _LETTER = 14, 1, 11, 6.3  # pixels: of a row, between cells, of a letter, of its width
_STYLE = f"font:{_FONT}px ui-sans-serif,system-ui,sans-serif"


class _Grid(NamedTuple):
    """Where cells are, in pixels.

    Args:
        left: from the left edge to the first column.
        width: of a cell.
        rows: the rows that are drawn, by their places in the table, from the top on.
    """

    left: int
    width: float
    rows: dict[int, int]

    def box(self, cell: Cell) -> str:
        """The outline of a cell, as SVG's path."""
        x, y = self.left + cell.column * self.width, self.rows[cell.row] * _HEIGHT
        width, height = self.width - _GAP, _HEIGHT - _GAP
        return f"M{x:.6g} {y}h{width:.4g}v{height}h{-width:.4g}z"


def small_map(drawn: Displayed) -> str:
    """An image in HTML: the SNR of each layer by layer type and layer; of a selection, the selected are outlined.

    Types whose layers all score the same, such as norms, are left out. Empty if nothing is left, or if the map would be
    large.
    """
    if not isinstance(drawn, ScanResult | Selection):
        return ""
    scan = drawn if isinstance(drawn, ScanResult) else drawn.result
    places = table(scan)
    shown = [cell for cell in cells(places, drawn) if not places.rows[cell.row].is_constant]
    if not shown or len(shown) > _MAX_CELLS:
        return ""
    rows = {row: i for i, row in enumerate(dict.fromkeys(cell.row for cell in shown))}
    labels = shortened([in_line(places.rows[row].label) for row in rows], _MAX_LABEL)
    grid = _Grid(
        left=8 + math.ceil(_LETTER * max(map(len, labels))),
        width=min(max(640 / len(places.columns), 5), 18),
        rows=rows,
    )
    width, height = math.ceil(grid.left + grid.width * len(places.columns)) + 8, (len(rows) + 1) * _HEIGHT + 6
    outlined = "" if isinstance(drawn, ScanResult) else f"; outlined: {drawn.share()} of each layer type"
    words = f"Heat map of {in_line(scan.model)}: SNR by layer type and layer, light is high{outlined}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 -3 {width} {height}">',
        f'<rect y="-3" width="{width}" height="{height}" fill="#fff"/>',
        *_scores(shown, grid),
        *_outlines(shown, grid),
        f'<g style="{_STYLE}" fill="#333">',
        *(_text(grid.left - 4, i, label, "end") for i, label in enumerate(labels)),
        *_column_labels(places, grid),
        "</g></svg>",
    ]
    data = base64.b64encode("".join(parts).encode()).decode()
    return f'<img alt="{escape(words)}" width="{width}" height="{height}" src="data:image/svg+xml;base64,{data}">'


def _scores(shown: Sequence[Cell], grid: _Grid) -> Iterable[str]:
    """The cells, one path for each colour. Those without a colour are grey."""
    scores = [math.log(cell.snr) for cell in shown if not cell.sign]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    boxes: dict[str, list[str]] = {}
    for cell in shown:
        colour = "#ddd"
        if not cell.sign:
            share = 0.5 if high == low else (math.log(cell.snr) - low) / (high - low)
            colour = COLOURS[round(share * (len(COLOURS) - 1))]
        boxes.setdefault(colour, []).append(grid.box(cell))
    return [f'<path fill="{colour}" d="{"".join(group)}"/>' for colour, group in sorted(boxes.items())]


def _outlines(shown: Sequence[Cell], grid: _Grid) -> Iterable[str]:
    """White below black can be seen on dark cells and on light ones."""
    for outline, dashes in (("solid", ""), ("dashed", ' stroke-dasharray="2 1.5"')):
        if path := "".join(grid.box(cell) for cell in shown if cell.outline == outline):
            yield f'<path fill="none" stroke="#fff" stroke-width="2.4" d="{path}"/>'
            yield f'<path fill="none" stroke="#000" stroke-width="1.2"{dashes} d="{path}"/>'


def _column_labels(places: Table, grid: _Grid) -> Iterable[str]:
    """The first and the last layer index, below the columns."""
    numbered = [i for i, column in enumerate(places.columns) if column != OUTSIDE and len(column) < 6]
    below = len(grid.rows)
    for i in {*numbered[:1], *numbered[-1:]}:
        yield _text(grid.left + (i + 0.5) * grid.width, below, places.columns[i], "middle")
    if len(numbered) > 10:
        middle = (numbered[0] + numbered[-1] + 1) / 2
        yield _text(grid.left + middle * grid.width, below, "layer", "middle")


def _text(x: float, row: int, text: str, anchor: str) -> str:
    return f'<text x="{x:.6g}" y="{row * _HEIGHT + _FONT - 0.5}" text-anchor="{anchor}">{escape(text)}</text>'
