"""Results as they are shown, and by type."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from spectrum.layer_types import layer_types
from spectrum.records import LayerSnr, ScanResult
from tests.helpers.records import PROVENANCE


def score(name: str, snr: float, kind: str | None = None) -> LayerSnr:
    return LayerSnr(name, kind or layer_types([name])[name], snr)


def test_a_scan_is_shown_with_a_row_for_each_type() -> None:
    layers = (score("h.0.up", 1.0), score("h.1.up", 4.0), score("h.2.up", 2.5), score("lm_head", inf))
    scan = ScanResult("org/<b>m</b>", layers, ("h.3.up", "h.4.up"), ("up", "lm_head"), PROVENANCE)
    assert repr(scan) == (
        "Scan of org/<b>m</b> (LlamaForCausalLM): 4 layers; 2 left out for NaN or infinity\n"
        "\n"
        "layer type  layers  lowest SNR  median SNR  highest SNR\n"
        "up               3           1         2.5            4\n"
        "lm_head          1         inf         inf          inf"
    )
    shown = scan._repr_html_()
    assert (
        "<p>Scan of org/&lt;b&gt;m&lt;/b&gt; (LlamaForCausalLM): 4 layers; 2 left out for NaN or infinity</p>" in shown
    )
    assert "<b>" not in shown
    assert shown.count("<tr>") == 3
    one = replace(scan, layers=layers[:1], left_out=(), provenance=None)
    assert repr(one).startswith("Scan of org/<b>m</b>: 1 layer\n\n")


def test_by_type_keeps_the_order_of_the_layers() -> None:
    layers = (score("h.0.b", 1.0), score("h.0.a", 2.0), score("h.1.b", 3.0))
    groups = ScanResult("m", layers, (), ("b", "a"), None).by_type()
    assert list(groups.items()) == [("b", [layers[0], layers[2]]), ("a", [layers[1]])]
