"""Pictures of a scan: a heat map of its scores, the spectrum of one matrix. In files only, without a display.

matplotlib is an extra, imported within functions alone, and used by its objects: pyplot, and the state it keeps, have
no part in this. Colours grow lighter with what they stand for, so that a print in grey says the same.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spectrum.errors import SpectrumError
from spectrum.results import write_atomically
from spectrum.selection import Selection

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NORMAL_IQR = 1.349  # interquartile range of N(0, 1), as in snr, which imports torch

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
_SIGNAL = "#17406d"
_DPI, _MOST_PIXELS = 160, 16_000  # of a PNG; of its longer side
_BULK = 0.98  # of all singular values, those that are shown at full width where the largest lie far beyond them


def check(path: str | Path) -> None:
    """Find out before a long scan whether a picture can be drawn after it.

    Raises SpectrumError where matplotlib is not installed, or the path ends in neither .png, .svg nor .pdf.
    """
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SpectrumError(f"a picture's name has to end in .png, .svg or .pdf, not as {path} does")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise SpectrumError("pictures need matplotlib: pip install matplotlib") from error


def heatmap(selection: Selection, path: str | Path) -> None:
    """Draw the SNR of every layer, by layer type and layer index, the selected ones outlined.

    Raises as `check`, SpectrumError where there is no layer, ResultsError where the file cannot be written.
    """
    check(path)
    with _own_settings():
        _save(_heatmap_figure(selection), Path(path))


def spectrum_histogram(
    values: NDArray[np.float64], shape: tuple[int, int], title_of_layer: str, model: str, path: str | Path
) -> None:
    """Draw the singular values of one matrix, the bulk edge among them, and the noise that it is the edge of.

    values: (k,) ascending float64, finite, k = min(n, m). shape: (n, m). Raises as `check`, and ResultsError where
    the file cannot be written.
    """
    check(path)
    with _own_settings():
        _save(_histogram_figure(values, shape, title_of_layer, model), Path(path))


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
    titles = (_shown(selection.result.model, 80), f"outlined: top {selection.percent} percent of each layer type")

    # All in inches, first of all the cells: so nothing overlaps, and text keeps its size, whatever the table's.
    labels, indices = [_shown(row) for row in rows], [_shown(column, 6) for column in columns]
    wide, high = min(max(8.5 / len(columns), 0.1), 0.32), 0.2
    outside = int(columns[0] == _OUTSIDE)
    x = [i + 0.5 * (outside and i > 0) for i in range(len(columns))]  # left edges, in cells, with a gap
    left, table = 0.22 + max(map(_width, labels)), (wide * (x[-1] + 1), high * len(rows))
    bar = min(max(table[1], 1.3), 4.0) if scored else 0.0
    width = max(left + table[0] + 1, 0.3 + max(_width(titles[0], 10), _width(titles[1], 8), *map(_width, notes)))
    height = 0.7 + max(table[1] + 0.42, bar + 0.1) + 0.15 * len(notes)

    figure = Figure(figsize=(width, height), dpi=_DPI)
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

    needed = (max(map(_width, indices)) + 0.05) / wide
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


def _histogram_figure(values: NDArray[np.float64], shape: tuple[int, int], layer: str, model: str) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    beta = min(shape) / max(shape)
    sigma = float(np.subtract(*np.quantile(values, [0.75, 0.25]))) / NORMAL_IQR
    edge = sigma * (1 + math.sqrt(beta))
    signal, noise, largest = values[values > edge], values[values <= edge], float(values[-1])
    snr = float(signal.sum() / largest / (noise.sum() or 1.0)) if len(signal) else 0.0

    # Where the largest lie far beyond the bulk, a panel of its own has them, at another scale.
    span = max(1.6 * edge, float(np.quantile(values, _BULK)))
    broken = 0 < 2 * span < largest
    span = span if broken else 1.03 * max(largest, edge) or 1.0
    # The rule of Freedman and Diaconis, within reason; the bulk edge ends a bin.
    width = min(max(2 * NORMAL_IQR * sigma / len(values) ** (1 / 3), span / 100), span / 25)
    width = edge / round(edge / width) if edge > width else width
    bins = width * np.arange(math.ceil(span / width) + 1)
    ends = [(0.0, bins[-1]), (bins[-1], 1.03 * largest)][: 1 + broken]
    bins = np.concatenate([bins, *(np.linspace(*end, 16)[1:] for end in ends[1:])])
    below, above = (np.histogram(some, bins)[0] for some in (noise, signal))

    # sqrt((b^2 - x^2)(x^2 - a^2)) / (pi beta x), a, b = 1 -+ sqrt(beta), the products multiplied out; at points that
    # lie densest next to a and b, where it is steepest, and not on 0.
    x = 1 - math.sqrt(beta) * np.cos((np.arange(400) + 0.5) * np.pi / 400)
    density = np.sqrt(np.maximum(4 * beta - (x**2 - 1 - beta) ** 2, 0)) / (np.pi * beta * x)
    law = density * len(noise) * width / sigma if sigma > 0 else 0 * x
    highest = max((below + above).max(), law.max())

    figure = Figure(figsize=(8, 3.6), dpi=_DPI)
    axes = figure.add_axes((0.07, 0.14, 0.45 if broken else 0.58, 0.71), xlabel="singular value", ylabel="count")
    panels = [axes, figure.add_axes((0.54, 0.14, 0.11, 0.71), sharey=axes)] if broken else [axes]
    for panel, xlim in zip(panels, ends, strict=True):
        bars = panel.stairs(below, bins, fill=True, hatch="/////", label=f"noise: {len(noise)} values", gid="noise")
        bars.set(facecolor="#c6d5e3", edgecolor="#5b7a96")
        bars = panel.stairs(below + above, bins, baseline=below, fill=True, color=_SIGNAL, gid="signal")
        bars.set_label(f"signal: {len(signal)} values")
        panel.vlines(signal, -0.035 * highest, 0, color=_SIGNAL, linewidth=0.7)  # a single one is seen, too
        panel.set(xlim=xlim, ylim=(-0.05 * highest, 1.06 * highest))
    for panel in panels[1:]:
        panel.tick_params(axis="y", length=0, labelleft=False)
        panel.spines["left"].set_visible(False)
        figure.text(0.53, 0.14, "//", size=10, ha="center", va="center")
    axes.axvline(edge, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label=f"bulk edge {edge:.4g}", gid="edge")
    if law.any():
        axes.plot(sigma * x, law, color="#d55e00", label="noise by Marchenko-Pastur", gid="law")
        note = "sigma = (q75 - q25) / 1.349, as the\nmethod has it: the law of another\nsigma may fit better"
        figure.text(0.665, 0.14, note, color="0.45", linespacing=1.3)
    axes.locator_params(axis="y", integer=True)
    figure.text(0.07, 0.92, _shown(f"{layer}  of  {model}", 100), size=10)
    facts = f"{shape[0]} \N{MULTIPLICATION SIGN} {shape[1]}\nSNR {snr:.4g}\nsigma {sigma:.4g}"
    named = axes.get_legend_handles_labels()
    panels[-1].legend(*named, title=facts, loc="upper left", alignment="left", bbox_to_anchor=(1, 1))
    return figure


def _shown(name: str, longest: int = 48) -> str:
    """A name as the font can show it, its middle left out where it is long: the ends tell towers and layers apart."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()  # comes with matplotlib
    text = "".join(c if ord(c) in known else "?" for c in name)
    head = longest * 2 // 5
    return text if len(text) <= longest else f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[head + 1 - longest :]}"


def _width(text: str, size: float = 7) -> float:
    """Width of a line of text, in inches."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().x1) / 72


def _own_settings() -> AbstractContextManager[None]:
    """Settings that are the user's in nothing; identifiers in SVG that do not change from run to run."""
    import matplotlib.style

    mine = {"font.size": 7, "text.parse_math": False, "legend.frameon": False, "svg.hashsalt": "spectrum"}
    lines = {"axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 2, "ytick.major.size": 2}
    return matplotlib.style.context(["default", mine, lines])


def _save(figure: Figure, path: Path) -> None:
    """Write a picture as its suffix says: the same bytes for the same figure, as a whole or not at all."""
    kind = path.suffix.lower()[1:]
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    content = io.BytesIO()
    figure.savefig(content, format=kind, metadata=undated, dpi=min(_DPI, _MOST_PIXELS / max(figure.get_size_inches())))
    write_atomically(path, content.getvalue())
