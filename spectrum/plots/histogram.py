"""A histogram of one matrix's singular values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.plots.figure import DPI, check, own_settings, save, shown

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

NORMAL_IQR = 1.349  # interquartile range of N(0, 1), as in snr, which imports torch
_SIGNAL = "#17406d"
_BULK = 0.98  # of all singular values, those that are shown at full width where the largest lie far beyond them


def spectrum_histogram(
    values: NDArray[np.float64], shape: tuple[int, int], title_of_layer: str, model: str, path: str | Path
) -> None:
    """Draw the singular values of one matrix, the bulk edge among them, and the noise that it is the edge of.

    values: (k,) ascending float64, finite, k = min(n, m). shape: (n, m). Raises as `check`, and ResultsError where
    the file cannot be written.
    """
    check(path)
    with own_settings():
        save(_histogram_figure(values, shape, title_of_layer, model), Path(path))


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

    figure = Figure(figsize=(8, 3.6), dpi=DPI)
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
    figure.text(0.07, 0.92, shown(f"{layer}  of  {model}", 100), size=10)
    facts = f"{shape[0]} \N{MULTIPLICATION SIGN} {shape[1]}\nSNR {snr:.4g}\nsigma {sigma:.4g}"
    named = axes.get_legend_handles_labels()
    panels[-1].legend(*named, title=facts, loc="upper left", alignment="left", bbox_to_anchor=(1, 1))
    return figure
