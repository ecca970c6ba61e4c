"""The mode that draws the singular values of one layer."""

from __future__ import annotations

import re
from pathlib import Path

from spectrum.checkpoint.local import check_local
from spectrum.cli.console.options import ModelOptions, PlotSpectrumOptions, SelectOptions
from spectrum.cli.outcome import ModeOutcome
from spectrum.cli.select import scan_request
from spectrum.errors import SelectionError
from spectrum.files import check_writable
from spectrum.scanning.request import ScanCallbacks
from spectrum.scanning.reuse import refuse_unknown_layer
from spectrum.text import in_line

# A layer's name, and the index of a matrix if the layer is a stack of matrices.
_LAYER = re.compile(r"([^\[\]]+)(?:\[(\d{1,9})\])?", re.ASCII)


def plot_spectrum(model: ModelOptions, options: PlotSpectrumOptions, callbacks: ScanCallbacks) -> ModeOutcome:
    """Draw the singular values of one layer. callbacks: as of `select.select`."""
    from spectrum.plots import figure, histogram
    from spectrum.scanning import uncached

    layer, file = options.plot_spectrum
    path = Path(file)
    named = _LAYER.fullmatch(layer)
    if named is None:
        raise SelectionError(f"{layer!r} is not a layer; write its name, or name[7] for matrix 7 of a stack")
    check_writable([path])
    check_local(model.model_name)
    # The values come from the model. The cache only tells which layers it has.
    request = scan_request(
        model, SelectOptions(device=options.device, results_dir=options.results_dir, download=options.download), ()
    )
    refuse_unknown_layer(request, named[1])
    figure.check_can_draw(path)
    callbacks.wait(f"opening {model.model_name}")
    index = None if named[2] is None else int(named[2])
    histogram.spectrum_histogram(uncached.layer_spectrum(request, named[1], index, callbacks), model.model_name, path)
    return ModeOutcome(in_line(str(path)))
