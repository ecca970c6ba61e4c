"""The top percent of each layer type. Floats and names only."""

import math
from fractions import Fraction

from spectrum.layers import ScanResult, Selection, TypeSelection


def top_percent(result: ScanResult, percent: str) -> Selection:
    """The `floor(count * percent / 100)` layers of highest SNR of each type; ties in model order.

    `percent` is a decimal number in (0, 100], as typed: file names carry it, and 12.3 percent of 1000 layers are
    123, which binary floats do not always say. Layers whose SNR is NaN are neither counted nor selected.
    Raises ValueError outside that range.
    """
    share = Fraction(percent)
    if not 0 < share <= 100:
        raise ValueError(f"percent must be over 0 and at most 100, got {percent!r}")
    types = []
    for layer_type, layers in result.by_type().items():
        ranked = sorted((layer for layer in layers if not math.isnan(layer.snr)), key=lambda layer: -layer.snr)
        types.append(TypeSelection(layer_type, tuple(ranked), math.floor(len(ranked) * share / 100)))
    return Selection(percent, tuple(types))
