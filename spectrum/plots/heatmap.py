"""Where in the model are the scores high, and what is selected? A heat map, by layer type and layer index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spectrum.display import Displayed
from spectrum.errors import SpectrumError
from spectrum.plots.figure import DPI, Picture, check_can_draw, check_matplotlib, own_settings, shown, text_width
from spectrum.plots.table import EXPERTS, INFINITE, OUTSIDE, Cell, table
from spectrum.plots.table import cells as cells_of
from spectrum.records import ScanResult
from spectrum.selection.selection import Selection
from spectrum.text import in_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PatchCollection
    from matplotlib.figure import Figure

_NOTES = {
    "*": "the colour is that of the median of a layer's experts",
    "dashed": "some of the experts are selected; the colour is that of their median",
    "0": "no singular value lies above the bulk edge",
    "1": "every layer of the type scores exactly 1, as a vector does, which has one singular value",
    INFINITE: "no noise to divide by, in the tool that made this scan",
}
_COLOURS = "viridis"  # its lightness rises throughout, so colour-blind readers can use it too


def heatmap(drawn: Displayed, path: str | Path) -> None:
    """Draw the picture, see `picture`, and write it.

    Raises as `check_can_draw` and `picture` do, and ResultsError if the file cannot be written.
    """
    check_can_draw(path)
    picture(drawn).save(path)


def picture(drawn: Displayed) -> Picture:
    """Draw the SNR of every layer of a scan, by layer type and layer index; of a selection, the selected are outlined.

    Raises SpectrumError if matplotlib is not installed, or if there is no layer.
    """
    check_matplotlib()
    if not isinstance(drawn, ScanResult | Selection):
        raise TypeError(f"neither a scan nor a selection: {drawn!r}")
    with own_settings():
        return Picture(_heatmap_figure(drawn), f"Heat map of {in_line(_scan(drawn).model)}")


def _scan(drawn: ScanResult | Selection) -> ScanResult:
    return drawn if isinstance(drawn, ScanResult) else drawn.result


def _heatmap_figure(drawn: ScanResult | Selection) -> Figure:
    from matplotlib.figure import Figure

    places = table(_scan(drawn))
    cells, columns = cells_of(places, drawn), places.columns
    if not cells:
        raise SpectrumError(f"there is no layer of {_scan(drawn).model} to draw")
    marks = {mark for cell in cells for mark in (cell.sign, cell.outline)}
    if "dashed" not in marks and any(EXPERTS in row.label for row in places.rows):
        marks.add("*")
    text = _Text(
        title=shown(_scan(drawn).model, 80),
        subtitle=_subtitle(drawn),
        notes=[f"{mark}: {note}" for mark, note in _NOTES.items() if mark in marks],
        rows=[shown(row.label) for row in places.rows],
        columns=[column if column == OUTSIDE else shown(column, 6) for column in columns],
    )
    place = _layout(text, columns, has_colours=not all(cell.sign for cell in cells))
    figure = Figure(figsize=(place.width, place.height), dpi=DPI)
    axes = figure.add_axes(place.figure_box(place.left, 0.55, place.table_width, place.table_height))
    axes.set(xlim=(0, place.x[-1] + 1), ylim=(len(places.rows), 0), xlabel="layer")
    axes.spines[:].set_visible(False)
    _draw_scores(figure, axes, cells, place)
    _draw_signs(axes, cells, place)
    _draw_outlines(axes, cells, place)
    _label_axes(axes, text, place, num_outside=int(columns[0] == OUTSIDE))
    _write(figure, text, place)
    return figure


def _subtitle(drawn: ScanResult | Selection) -> str:
    if isinstance(drawn, ScanResult):
        return "signal-to-noise ratio of each layer"
    return f"outlined: {drawn.share()} of each layer type"


class _Text(NamedTuple):
    """All text of the picture except that of the colour bar."""

    title: str
    subtitle: str
    notes: list[str]
    rows: list[str]
    columns: list[str]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes and places in the picture, in inches unless it says otherwise.

    The size of the picture follows from the sizes of cells and texts, so that texts never overlap.

    Args:
        width: of the picture.
        height: of the picture.
        left: from the picture's left edge to the table.
        table_width: of all columns.
        table_height: of all rows.
        cell_width: of one cell.
        cell_height: of one cell.
        bar: the height of the colour bar.
        x: the left edges of the columns, in widths of a cell.
    """

    width: float
    height: float
    left: float
    table_width: float
    table_height: float
    cell_width: float
    cell_height: float
    bar: float
    x: list[float]

    def figure_box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A box in matplotlib's units: left, bottom, width and height, as fractions of the picture.

        Args:
            left: in inches, from the picture's left edge.
            top: in inches, from the picture's top edge.
            width: in inches.
            height: in inches.
        """
        bottom = 1 - (top + height) / self.height
        return left / self.width, bottom, width / self.width, height / self.height


def _layout(text: _Text, columns: Sequence[str], has_colours: bool) -> _Layout:
    cell_width, cell_height = min(max(8.5 / len(columns), 0.1), 0.32), 0.2
    # A gap of half a cell follows the column of modules that are not in a layer.
    gap = 0.5 if columns[0] == OUTSIDE else 0
    x = [i + gap * (i > 0) for i in range(len(columns))]
    # The label of that column ends at its middle, and begins below the labels of the rows.
    outside = text_width(OUTSIDE) - cell_width / 2 if gap else 0.0
    left = 0.22 + max(outside, *map(text_width, text.rows))
    table_width, table_height = cell_width * (x[-1] + 1), cell_height * len(text.rows)
    bar = min(max(table_height, 1.3), 4.0) if has_colours else 0.0
    titles = text_width(text.title, 10), text_width(text.subtitle, 8)
    return _Layout(
        width=max(left + table_width + 1, 0.3 + max(*titles, *map(text_width, text.notes))),
        height=0.7 + max(table_height + 0.42, bar + 0.1) + 0.15 * len(text.notes),
        left=left,
        table_width=table_width,
        table_height=table_height,
        cell_width=cell_width,
        cell_height=cell_height,
        bar=bar,
        x=x,
    )


def _draw_scores(figure: Figure, axes: Axes, cells: Sequence[Cell], place: _Layout) -> None:
    from matplotlib import colors

    scored = [cell for cell in cells if not cell.sign]
    if not scored:
        return
    low, high = min(cell.snr for cell in scored), max(cell.snr for cell in scored)
    if low == high:  # a scale needs two ends
        low, high = low / 1.1, high * 1.1
    norm = colors.LogNorm(low, high)
    boxes = _draw_boxes(
        axes, scored, place, 0, cmap=_COLOURS, norm=norm, edgecolor="white", linewidth=0.5, gid="scores"
    )
    boxes.set_array([cell.snr for cell in scored])
    bar_axes = figure.add_axes(place.figure_box(place.left + place.table_width + 0.2, 0.55, 0.13, place.bar))
    bar = figure.colorbar(boxes, cax=bar_axes, label="SNR")
    bar.set_ticks(ticks := _log_ticks(low, high), labels=[f"{float(f'{tick:.4g}'):.15g}" for tick in ticks])
    bar.minorticks_off()


def _draw_boxes(axes: Axes, cells: Sequence[Cell], place: _Layout, inset: float, **style: Any) -> PatchCollection:
    """Draw a box in each of these cells. inset: from the cell's edges, in inches."""
    from matplotlib import collections, patches

    a, b = inset / place.cell_width, inset / place.cell_height
    boxes = [patches.Rectangle((place.x[c.column] + a, c.row + b), 1 - 2 * a, 1 - 2 * b) for c in cells]
    collection = collections.PatchCollection(boxes, **style)
    axes.add_collection(collection, autolim=False)
    return collection


def _draw_signs(axes: Axes, cells: Sequence[Cell], place: _Layout) -> None:
    for cell in cells:
        if cell.sign:
            middle = place.x[cell.column] + 0.5, cell.row + 0.5
            axes.text(*middle, cell.sign, size=6, color="0.35", ha="center", va="center_baseline")


def _draw_outlines(axes: Axes, cells: Sequence[Cell], place: _Layout) -> None:
    for outline, dashes in (("solid", "-"), ("dashed", (0, (2, 1.2)))):
        outlined = [cell for cell in cells if cell.outline == outline]
        # White below black can be seen on dark cells and on light ones.
        _draw_boxes(axes, outlined, place, 0.02, facecolor="none", edgecolor="white", linewidth=2.2)
        style = {"edgecolor": "black", "linewidth": 1, "linestyle": dashes, "gid": outline}
        _draw_boxes(axes, outlined, place, 0.02, facecolor="none", **style)


def _label_axes(axes: Axes, text: _Text, place: _Layout, num_outside: int) -> None:
    """Label all rows, and as many columns as there is room for. num_outside: columns that stand for no layer."""
    needed = (max([0.0, *map(text_width, text.columns[num_outside:])]) + 0.05) / place.cell_width
    step = next(n * 10**power for power in range(9) for n in (1, 2, 5) if n * 10**power >= needed)
    labelled = [i for i in range(len(text.columns)) if i < num_outside or (i - num_outside) % step == 0]
    labels = axes.set_xticks([place.x[i] + 0.5 for i in labelled], [text.columns[i] for i in labelled])
    for tick in labels[:num_outside]:
        tick.label1.set_horizontalalignment("right")
    axes.set_yticks([i + 0.5 for i in range(len(text.rows))], text.rows)
    axes.tick_params(axis="y", length=0)


def _write(figure: Figure, text: _Text, place: _Layout) -> None:
    figure.text(0.12 / place.width, 1 - 0.24 / place.height, text.title, size=10)
    figure.text(0.12 / place.width, 1 - 0.42 / place.height, text.subtitle, size=8)
    notes = "\n".join(text.notes)
    figure.text(0.12 / place.width, 0.1 / place.height, notes, color="0.25", linespacing=1.3)


def _log_ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers in a range; its ends and middle if the range is too narrow for four."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [tick for power in powers for digit in digits if low <= (tick := float(f"{digit}e{power}")) <= high]
        if len(ticks) > 3:
            return ticks[:: math.ceil(len(ticks) / 8)]
    return [low, math.sqrt(low) * math.sqrt(high), high]
