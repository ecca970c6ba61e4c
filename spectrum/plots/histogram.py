"""How do the singular values of one matrix lie about its bulk edge? A histogram of a spectrum that is given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from spectrum.plots.figure import DPI, check_can_draw, own_settings, save, shown
from spectrum.records import LayerSpectrum

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_SIGNAL = "#17406d"
_BULK = 0.98  # the fraction of all singular values that the first panel shows at least, if there are two panels
_NOTE = "sigma = (q75 - q25) / 1.349, as the\nmethod has it: the law of another\nsigma may fit better"


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

    figure = Figure(figsize=(8, 3.6), dpi=DPI)
    panels = _panels(figure, bins)
    for panel, xlim in zip(panels, bins.panels, strict=True):
        _draw_bars(panel, bins.edges, num_noise, num_signal)
        panel.vlines(signal, -0.035 * highest, 0, color=_SIGNAL, linewidth=0.7)  # so that a single value can be seen
        panel.set(xlim=xlim, ylim=(-0.05 * highest, 1.06 * highest))
    _mark_break(figure, panels)
    label = f"bulk edge {spectrum.edge:.4g}"
    panels[0].axvline(spectrum.edge, color="black", linewidth=1.2, linestyle=(0, (4, 2)), label=label, gid="edge")
    if law.any():
        panels[0].plot(x, law, color="#d55e00", label="noise by Marchenko-Pastur", gid="law")
        figure.text(0.665, 0.14, _NOTE, color="0.45", linespacing=1.3)
    panels[0].locator_params(axis="y", integer=True)
    _label(figure, panels, spectrum, model)
    return figure


class _Bins(NamedTuple):
    """The bins of the histogram.

    Args:
        edges: the limits of the bins, ascending.
        width: the width of a bin in the first panel.
        panels: the range of singular values in each panel: in the first one the bulk, in the second one, if there is
            one, the values far beyond it.
    """

    edges: NDArray[np.float64]
    width: float
    panels: tuple[tuple[float, float], ...]


def _bins(spectrum: LayerSpectrum, values: NDArray[np.float64]) -> _Bins:
    """Bins, one of which ends at the bulk edge. Values far beyond the bulk get a second panel with wider bins."""
    import numpy as np

    edge, largest = spectrum.edge, spectrum.values[-1]
    span = max(1.6 * edge, float(np.quantile(values, _BULK)))
    far_beyond = 0 < 2 * span < largest
    if not far_beyond:
        span = 1.03 * max(largest, edge) or 1.0
    # The rule of Freedman and Diaconis, within 25 to 100 bins.
    width = 2 * spectrum.interquartile_range / len(values) ** (1 / 3)
    width = min(max(width, span / 100), span / 25)
    width = edge / round(edge / width) if edge > width else width
    edges = width * np.arange(math.ceil(span / width) + 1)
    bulk = (0.0, edges[-1])
    if not far_beyond:
        return _Bins(edges, width, (bulk,))
    tail = (edges[-1], 1.03 * largest)
    return _Bins(np.concatenate([edges, np.linspace(*tail, 16)[1:]]), width, (bulk, tail))


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


def _panels(figure: Figure, bins: _Bins) -> list[Axes]:
    bulk_width = 0.58 if len(bins.panels) == 1 else 0.45
    axes = figure.add_axes((0.07, 0.14, bulk_width, 0.71), xlabel="singular value", ylabel="count")
    return [axes, *(figure.add_axes((0.54, 0.14, 0.11, 0.71), sharey=axes) for _ in bins.panels[1:])]


def _draw_bars(
    panel: Axes, edges: NDArray[np.float64], num_noise: NDArray[np.int64], num_signal: NDArray[np.int64]
) -> None:
    """Draw the counts of signal on top of those of noise, in each bin."""
    label = f"noise: {num_noise.sum()} values"
    bars = panel.stairs(num_noise, edges, fill=True, hatch="/////", label=label, gid="noise")
    bars.set(facecolor="#c6d5e3", edgecolor="#5b7a96")
    bars = panel.stairs(num_noise + num_signal, edges, baseline=num_noise, fill=True, color=_SIGNAL, gid="signal")
    bars.set_label(f"signal: {num_signal.sum()} values")


def _mark_break(figure: Figure, panels: list[Axes]) -> None:
    """Mark the break of the axis before a second panel."""
    for panel in panels[1:]:
        panel.tick_params(axis="y", length=0, labelleft=False)
        panel.spines["left"].set_visible(False)
        figure.text(0.53, 0.14, "//", size=10, ha="center", va="center")


def _label(figure: Figure, panels: list[Axes], spectrum: LayerSpectrum, model: str) -> None:
    figure.text(0.07, 0.92, shown(f"{spectrum.name}  of  {model}", 100), size=10)
    rows, columns = spectrum.shape
    facts = f"{rows} \N{MULTIPLICATION SIGN} {columns}\nSNR {spectrum.snr:.4g}\nsigma {spectrum.sigma:.4g}"
    handles = panels[0].get_legend_handles_labels()
    panels[-1].legend(*handles, title=facts, loc="upper left", alignment="left", bbox_to_anchor=(1, 1))
