"""A heat map of a scan's scores."""

from __future__ import annotations

import math
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spectrum.errors import SpectrumError
from spectrum.plots.figure import DPI, check, own_settings, save, shown, text_width
from spectrum.selection.selection import Selection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_EXPERT = re.compile(r"\b(\w*experts?)\.\d+(?=\.|$)")  # an expert's number in a layer type
_OUTSIDE = "\N{EN DASH}"  # the column of lm_head and other modules that no layer holds
_INFINITE = "\N{INFINITY}"
_NOTES = {
    "dashed": "some of the experts are selected; the colour is that of their median",
    "0": "no singular value lies above the bulk edge",
    "1": "every layer of the type scores exactly 1, as a vector does, which has one singular value",
    _INFINITE: "no noise to divide by, in the tool that made this scan",
}
_COLOURS = "viridis"  # for colour-blind readers too; its luminance grows all the way


def heatmap(selection: Selection, path: str | Path) -> None:
    """Draw the SNR of every layer, by layer type and layer index, the selected ones outlined.

    Raises as `check`, SpectrumError where there is no layer, ResultsError where the file cannot be written.
    """
    check(path)
    with own_settings():
        save(_heatmap_figure(selection), Path(path))


class _Cell(NamedTuple):
    """The layers at one place. sign: what stands there instead of a colour; outline: its style; if anything."""

    row: int
    column: int
    snr: float
    sign: str
    outline: str


def _table(selection: Selection) -> tuple[list[str], list[str], list[_Cell]]:
    """Labels of rows and columns, and the cells. Experts that are modules of their own share a row."""
    groups: dict[str, dict[str, list[tuple[float, bool]]]] = {}
    types: dict[str, set[str]] = {}
    trained = {name for names in selection.layers().values() for name in names}
    for kind in selection.types:
        row = _EXPERT.sub(r"\1.*", kind.layer_type)
        types.setdefault(row, set()).add(kind.layer_type)
        for layer in kind.ranked:
            index = next((part for part in layer.name.split(".") if part.isdigit()), _OUTSIDE)
            groups.setdefault(row, {}).setdefault(index, []).append((layer.snr, layer.name in trained))
    # Numbers as text, shorter ones first, which is their order: a name may have more digits than int() takes.
    columns = sorted({i for group in groups.values() for i in group}, key=lambda i: (i != _OUTSIDE, len(i), i))
    cells = []
    for i, group in enumerate(groups.values()):
        ones = all(snr == 1 for some in group.values() for snr, _ in some)
        for index, some in group.items():
            median, chosen = statistics.median(snr for snr, _ in some), {chosen for _, chosen in some}
            sign = "1" if ones else "0" if median <= 0 else _INFINITE if median == math.inf else ""
            outline = "" if chosen == {False} else "solid" if chosen == {True} else "dashed"
            cells.append(_Cell(i, columns.index(index), median, sign, outline))
    return [row if len(types[row]) > 1 else min(types[row]) for row in groups], columns, cells


def _heatmap_figure(selection: Selection) -> Figure:
    from matplotlib import collections, colors, patches
    from matplotlib.figure import Figure

    rows, columns, cells = _table(selection)
    if not cells:
        raise SpectrumError(f"there is no layer of {selection.result.model} to draw")
    marks, scored = {mark for c in cells for mark in (c.sign, c.outline)}, [c for c in cells if not c.sign]
    notes = [f"{mark}: {note}" for mark, note in _NOTES.items() if mark in marks]
    titles = (shown(selection.result.model, 80), f"outlined: top {selection.percent} percent of each layer type")

    # All in inches, first of all the cells: so nothing overlaps, and text keeps its size, whatever the table's.
    labels, indices = [shown(row) for row in rows], [shown(column, 6) for column in columns]
    wide, high = min(max(8.5 / len(columns), 0.1), 0.32), 0.2
    outside = int(columns[0] == _OUTSIDE)
    x = [i + 0.5 * (outside and i > 0) for i in range(len(columns))]  # left edges, in cells, with a gap
    left, table = 0.22 + max(map(text_width, labels)), (wide * (x[-1] + 1), high * len(rows))
    bar = min(max(table[1], 1.3), 4.0) if scored else 0.0
    width = max(
        left + table[0] + 1, 0.3 + max(text_width(titles[0], 10), text_width(titles[1], 8), *map(text_width, notes))
    )
    height = 0.7 + max(table[1] + 0.42, bar + 0.1) + 0.15 * len(notes)

    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((left / width, 1 - (0.55 + table[1]) / height, table[0] / width, table[1] / height))
    axes.set(xlim=(0, x[-1] + 1), ylim=(len(rows), 0), xlabel="layer")
    axes.spines[:].set_visible(False)

    def draw(some: list[_Cell], inset: float, **style: Any) -> collections.Collection:
        a, b = inset / wide, inset / high
        boxes = [patches.Rectangle((x[c.column] + a, c.row + b), 1 - 2 * a, 1 - 2 * b) for c in some]
        return axes.add_collection(collections.PatchCollection(boxes, **style), autolim=False)

    if scored:
        ends = min(c.snr for c in scored), max(c.snr for c in scored)
        low, top = ends if ends[0] < ends[1] else (ends[0] / 1.1, ends[0] * 1.1)  # a scale needs two ends
        norm = colors.LogNorm(low, top)
        mesh = draw(scored, 0, cmap=_COLOURS, norm=norm, edgecolor="white", linewidth=0.5, gid="scores")
        mesh.set_array([c.snr for c in scored])
        place = ((left + table[0] + 0.2) / width, 1 - (0.55 + bar) / height, 0.13 / width, bar / height)
        colour_bar = figure.colorbar(mesh, cax=figure.add_axes(place), label="SNR")
        colour_bar.set_ticks(ticks := _log_ticks(low, top), labels=[f"{float(f'{tick:.4g}'):.15g}" for tick in ticks])
        colour_bar.minorticks_off()
    for c in (c for c in cells if c.sign):
        axes.text(x[c.column] + 0.5, c.row + 0.5, c.sign, size=6, color="0.35", ha="center", va="center_baseline")
    for outline, dashes in (("solid", "-"), ("dashed", (0, (2, 1.2)))):
        some = [c for c in cells if c.outline == outline]
        # White under black is seen on dark cells and on light ones.
        draw(some, 0.02, facecolor="none", edgecolor="white", linewidth=2.2)
        draw(some, 0.02, facecolor="none", edgecolor="black", linewidth=1, linestyle=dashes, gid=outline)

    needed = (max(map(text_width, indices)) + 0.05) / wide
    every = next(n * 10**power for power in range(9) for n in (1, 2, 5) if n * 10**power >= needed)
    ticked = [i for i in range(len(columns)) if i < outside or (i - outside) % every == 0]
    axes.set_xticks([x[i] + 0.5 for i in ticked], [indices[i] for i in ticked])
    axes.set_yticks([i + 0.5 for i in range(len(rows))], labels)
    axes.tick_params(axis="y", length=0)
    figure.text(0.12 / width, 1 - 0.24 / height, titles[0], size=10)
    figure.text(0.12 / width, 1 - 0.42 / height, titles[1], size=8)
    figure.text(0.12 / width, 0.1 / height, "\n".join(notes), color="0.25", linespacing=1.3)
    return figure


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, four to eight; ends and middle of one that is too narrow for as many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [tick for power in powers for digit in digits if low <= (tick := float(f"{digit}e{power}")) <= high]
        if len(ticks) > 3:
            return ticks[:: math.ceil(len(ticks) / 8)]
    return [low, math.sqrt(low) * math.sqrt(high), high]
