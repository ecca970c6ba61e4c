"""How do the singular values of one matrix lie about its bulk edge? A histogram of a spectrum that is given."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spectrum.plots.figure import DPI, check_can_draw, own_settings, save, shown
from spectrum.records import LayerSpectrum
from spectrum.text import plural

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_SIGNAL = "#17406d"
_BULK = 0.98  # the fraction of all singular values that the first panel shows at least, if there are two panels
_TAIL_BINS = 12  # of the second panel
_LINE = 130  # characters of a line of the text below the plot
_WIDTH, _PLOT_HEIGHT, _TOP, _LINE_HEIGHT = 8.0, 2.6, 0.62, 0.15  # inches


def spectrum_histogram(spectrum: LayerSpectrum, model: str, path: str | Path) -> None:
    """Draw the singular values of one matrix, its bulk edge, and the law of noise with this edge.

    Raises as `check_can_draw` does, and ResultsError if the file cannot be written.
    """
    check_can_draw(path)
    with own_settings():
        save(_histogram_figure(spectrum, model), Path(path))


def _histogram_figure(spectrum: LayerSpectrum, model: str) -> Figure:
    import numpy as np
    from matplotlib.figure import Figure

    values = np.array(spectrum.values)
    signal, noise = values[values > spectrum.edge], values[values <= spectrum.edge]
    bins = _bins(spectrum, values)
    x, law = _noise_law(spectrum, len(noise), bins.width)
    num_noise, num_signal = (np.histogram(part, bins.edges)[0] for part in (noise, signal))
    highest = max((num_noise + num_signal).max(), law.max())

    words = _explanation(spectrum, len(signal), has_law=bool(law.any()), has_tail=len(bins.panels) > 1)
    below = 0.78 + _LINE_HEIGHT * len(words)  # inches: the axis, the legend and the words
    figure = Figure(figsize=(_WIDTH, _TOP + _PLOT_HEIGHT + below), dpi=DPI)
    panels = _panels(figure, bins, below)
    for panel, xlim in zip(panels, bins.panels, strict=True):
        _draw_bars(panel, bins.edges, num_noise, num_signal)
        panel.vlines(signal, -0.035 * highest, 0, color=_SIGNAL, linewidth=0.7)  # so that a single value can be seen
        panel.set(xlim=xlim, ylim=(-0.05 * highest, 1.06 * highest))
    _mark_break(figure, panels)
    label = f"bulk edge {spectrum.edge:.4g}"
    panels[0].axvline(spectrum.edge, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label=label, gid="edge")
    if law.any():
        panels[0].plot(x, law, color="#d55e00", label="noise by Marchenko-Pastur", gid="law")
    panels[0].locator_params(axis="y", integer=True)
    _label(figure, panels[0], spectrum, model)
    figure.text(0.07, 0.08 / figure.get_figheight(), "\n".join(words), color="0.25", linespacing=1.3)
    return figure


class _Bins(NamedTuple):
    """The bins of the histogram.

    Args:
        edges: the limits of the bins, ascending.
        width: the width of a bin in the first panel.
        panels: the range of singular values in each panel: in the first one the bulk, in the second one, if there is
            one, the values far beyond it. Each begins and ends near a value or the bulk edge.
    """

    edges: NDArray[np.float64]
    width: float
    panels: tuple[tuple[float, float], ...]


def _bins(spectrum: LayerSpectrum, values: NDArray[np.float64]) -> _Bins:
    """Bins, one of which ends at the bulk edge. Values far beyond the bulk get a second panel with wider bins."""
    import numpy as np

    edge, largest = spectrum.edge, spectrum.values[-1]
    span = max(1.6 * edge, float(np.quantile(values, _BULK)))
    # The first panel ends with its last value, or at the edge: no empty stretch comes before a break.
    end = max(edge, float(values[values <= span][-1]))
    far_beyond = end > 0 and 2 * span < largest
    span = end if far_beyond else max(largest, edge) or 1.0
    # The rule of Freedman and Diaconis, within 25 to 100 bins.
    width = 2 * spectrum.interquartile_range / len(values) ** (1 / 3)
    width = min(max(width, span / 100), span / 25)
    width = edge / round(edge / width) if edge > width else width
    edges = width * np.arange(math.ceil(span / width) + 2)  # also if rounding puts the last value on the last limit
    bulk = (0.0, edges[-1])
    if not far_beyond:
        return _Bins(edges, width, (bulk,))
    first = float(values[values > edges[-1]][0])
    wide = max((largest - first) / _TAIL_BINS, width)
    start = max(first - wide, edges[-1])
    tail = start + wide * np.arange(math.ceil((largest - start) / wide) + 2)
    return _Bins(np.unique(np.concatenate([edges, tail])), width, (bulk, (start, tail[-1])))


def _explanation(spectrum: LayerSpectrum, num_signal: int, *, has_law: bool, has_tail: bool) -> list[str]:
    """What the picture shows, in lines of plain words.

    Args:
        spectrum: the matrix.
        num_signal: how many singular values are above the bulk edge.
        has_law: whether the law of noise is drawn.
        has_tail: whether there is a second panel.
    """
    if len(spectrum.values) == 1:
        text = (
            "This weight is a vector, as the weights of norms are. A vector has one singular value, its length, and "
            "there is no noise to compare it with. "
        )
        text += "Every vector scores exactly 1." if spectrum.snr == 1 else "Its length is 0, so it scores 0."
        return textwrap.wrap(text, _LINE)
    text = (
        "Singular values above the bulk edge are signal, the others are noise. "
        f"SNR = sum of signal / sum of noise / largest value = {spectrum.snr:.4g}. "
    )
    if num_signal == 0:
        text += "No value is above the edge, so the SNR is 0. "
    elif num_signal == len(spectrum.values):
        text += "No value is noise: its sum counts as 1. "
    text += f"The edge follows from the noise scale sigma = (q75 - q25) / 1.349 = {spectrum.sigma:.4g}. "
    if has_law:
        text += (
            "The curve shows how the singular values of pure noise of this sigma would lie; noise of another sigma may "
            "fit the bars better. "
        )
    if num_signal:
        text += "Each stroke below the axis is one signal value. "
    if has_tail:
        text += "After the break, scale and bins are wider. "
    return textwrap.wrap(text, _LINE)


def _noise_law(
    spectrum: LayerSpectrum, num_noise: int, width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The Marchenko-Pastur law as counts per bin: 400 singular values, and the count at each; zeros if sigma is 0.

    The density of s = value / sigma is sqrt((b^2 - s^2) (s^2 - a^2)) / (pi beta s), with a = 1 - sqrt(beta) and
    b = 1 + sqrt(beta). The code has the product multiplied out: 4 beta - (s^2 - 1 - beta)^2. The points lie between a
    and b, most densely near them, where the density is steepest. None is 0.

    Args:
        spectrum: the matrix.
        num_noise: how many singular values are noise.
        width: the width of a bin.
    """
    import numpy as np

    beta = spectrum.aspect_ratio
    s = 1 - math.sqrt(beta) * np.cos((np.arange(400) + 0.5) * np.pi / 400)
    if spectrum.sigma == 0:
        return s, 0 * s
    density = np.sqrt(np.maximum(4 * beta - (s**2 - 1 - beta) ** 2, 0)) / (np.pi * beta * s)
    return spectrum.sigma * s, density * num_noise * width / spectrum.sigma


def _panels(figure: Figure, bins: _Bins, below: float) -> list[Axes]:
    """The panels, side by side. below: from the figure's lower edge to the panels, in inches."""
    height = figure.get_figheight()
    bottom, tall = below / height, _PLOT_HEIGHT / height
    bulk_width = 0.91 if len(bins.panels) == 1 else 0.68
    axes = figure.add_axes((0.07, bottom, bulk_width, tall), xlabel="singular value", ylabel="count")
    return [axes, *(figure.add_axes((0.79, bottom, 0.19, tall), sharey=axes) for _ in bins.panels[1:])]


def _draw_bars(
    panel: Axes, edges: NDArray[np.float64], num_noise: NDArray[np.int64], num_signal: NDArray[np.int64]
) -> None:
    """Draw the counts of signal on top of those of noise, in each bin."""
    label = f"noise: {plural(int(num_noise.sum()), 'value')}"
    bars = panel.stairs(num_noise, edges, fill=True, hatch="/////", label=label, gid="noise")
    bars.set(facecolor="#c6d5e3", edgecolor="#5b7a96")
    bars = panel.stairs(num_noise + num_signal, edges, baseline=num_noise, fill=True, color=_SIGNAL, gid="signal")
    bars.set_label(f"signal: {plural(int(num_signal.sum()), 'value')}")


def _mark_break(figure: Figure, panels: list[Axes]) -> None:
    """Mark the break of the axis before a second panel."""
    for panel in panels[1:]:
        panel.tick_params(axis="y", length=0, labelleft=False)
        panel.spines["left"].set_visible(False)
        panel.locator_params(axis="x", nbins=3)
        figure.text(0.77, panel.get_position().y0, "//", size=10, ha="center", va="center")


def _label(figure: Figure, panel: Axes, spectrum: LayerSpectrum, model: str) -> None:
    height = figure.get_figheight()
    figure.text(0.07, 1 - 0.28 / height, shown(f"{spectrum.name}  of  {model}", 100), size=10)
    rows, columns = spectrum.shape
    facts = f"{rows} \N{MULTIPLICATION SIGN} {columns}, SNR {spectrum.snr:.4g}"
    figure.text(0.07, 1 - 0.46 / height, facts, size=8)
    figure.legend(
        *panel.get_legend_handles_labels(),
        loc="upper left",
        ncols=4,
        bbox_to_anchor=(0.07, panel.get_position().y0 - 0.42 / height),
        borderpad=0,
        borderaxespad=0,
    )
