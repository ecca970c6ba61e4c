"""The small heat map under a notebook's table: what is drawn where, read from its SVG; that it is small, and safe."""

from __future__ import annotations

import base64
import html
import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

import pytest

import spectrum.api  # noqa: F401 - says what draws results
from spectrum.plots.small_map import small_map
from spectrum.plots.table import COLOURS, OUTSIDE
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.text import in_line

SVG = "{http://www.w3.org/2000/svg}"


def scan(depth: int = 4, **types: float) -> ScanResult:
    """Layers whose scores double from one to the next. types: the score of the first layer of each."""
    layers = [LayerSnr(f"h.{i}.{t}", t, low * 2.0**i) for t, low in types.items() for i in range(depth)]
    return ScanResult("org/model", tuple(layers), (), tuple(types), None)


def image(drawn: ScanResult | Selection) -> ET.Element:
    """The SVG as a browser gets it."""
    found = re.fullmatch(
        r'<img alt="[^"<>]*" width="\d+" height="\d+" src="data:image/svg\+xml;base64,(.*)">', small_map(drawn)
    )
    assert found is not None
    return ET.fromstring(base64.b64decode(found[1]))


def boxes(svg: ET.Element, attribute: str, value: str) -> int:
    """How many cells the paths of this attribute draw."""
    return sum(path.attrib["d"].count("M") for path in svg.iter(f"{SVG}path") if path.attrib.get(attribute) == value)


def words(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def test_colours_follow_the_scores_and_outlines_the_selection() -> None:
    svg = image(top_percent(scan(q=1.0, v=1.0), "50"))
    # 1, 2, 4 and 8 are at equal distances on a logarithmic scale.
    for colour in (COLOURS[0], COLOURS[5], COLOURS[10], COLOURS[15]):
        assert boxes(svg, "fill", colour) == 2
    assert boxes(svg, "stroke", "#000") == boxes(svg, "stroke", "#fff") == 4
    assert words(svg) == ["q", "v", "0", "3"]


def test_a_scan_has_no_outlines() -> None:
    svg = image(scan(q=1.0))
    assert boxes(svg, "stroke", "#000") == 0
    assert "outlined" not in small_map(scan(q=1.0))


def test_norms_are_left_out_and_scores_without_a_colour_are_grey() -> None:
    norms = tuple(LayerSnr(f"h.{i}.norm", "norm", 1.0) for i in range(4))
    given = replace(scan(q=1.0), layers=(*norms, LayerSnr("h.0.k", "k", 0.0), LayerSnr("h.1.k", "k", math.inf)))
    svg = image(given)
    assert boxes(svg, "fill", "#ddd") == 2
    assert "norm" not in words(svg)
    assert "k" in words(svg)


def test_experts_share_a_row_which_is_dashed_if_some_are_selected() -> None:
    layers = [
        LayerSnr(f"h.{i}.experts.{e}.up", f"experts.{e}.up", 1.0 + (i + e) % 2) for i in range(2) for e in range(2)
    ]
    svg = image(top_percent(ScanResult("m", tuple(layers), (), (), None), "50"))
    dashed = [path for path in svg.iter(f"{SVG}path") if "stroke-dasharray" in path.attrib]
    assert sum(path.attrib["d"].count("M") for path in dashed) == 2
    assert words(svg)[0] == "experts.*.up"


def test_cells_lie_within_the_image_and_do_not_overlap() -> None:
    for depth in (1, 6, 32, 126):
        given = scan(depth, **{f"type{i}": 1e-30 for i in range(9)})
        svg = image(replace(given, layers=(*given.layers, LayerSnr("lm_head", "lm_head", 2.0))))
        width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
        assert width < 1000
        corners = [
            (float(x), float(y), float(w), float(h))
            for path in svg.iter(f"{SVG}path")
            for x, y, w, h in re.findall(r"M([\d.e+]+) ([\d.]+)h([\d.]+)v([\d.]+)h-", path.attrib["d"])
        ]
        assert len(corners) == 9 * depth + 1
        assert max(x + w for x, _, w, _ in corners) <= width
        assert max(y + h for _, y, _, h in corners) <= height - 3
        rows: dict[float, list[tuple[float, float]]] = {}
        for x, y, w, _ in corners:
            rows.setdefault(y, []).append((x, w))
        for row in rows.values():
            row.sort()
            assert all(x + w < following + 0.05 for (x, w), (following, _) in pairwise(row))


def test_each_cell_of_a_wide_map_has_a_place_of_its_own() -> None:
    layers = tuple(LayerSnr(f"h.{i}.q", "q", 1.0 + i) for i in range(3_000))
    paths = [path.attrib["d"] for path in image(ScanResult("m", layers, (), (), None)).iter(f"{SVG}path")]
    assert len({x for path in paths for x in re.findall(r"M(\S+) ", path)}) == 3_000


def test_a_map_that_would_make_the_notebook_large_is_left_out() -> None:
    assert small_map(scan(501, **{f"type{i}": 1e-150 for i in range(8)})) == ""
    assert small_map(ScanResult("m", (LayerSnr("norm", "norm", 1.0),), (), (), None)) == ""
    assert len(small_map(scan(100, **{f"type{i}": 1e-30 for i in range(10)}))) < 40_000


def test_it_stands_under_the_table_and_says_in_words_what_it_shows() -> None:
    shown = top_percent(scan(q=1.0), "25", order="lowest")._repr_html_()
    table, _, below = shown.partition("</table>")
    assert "<table>" in table
    assert re.search(r'<img alt="Heat map of org/model: [^"]*; outlined: lowest 25 percent of each layer type"', below)


def test_any_range_of_scores_has_colours() -> None:
    layers = tuple(LayerSnr(f"h.{i}.q", "q", snr) for i, snr in enumerate((5e-324, 1.0, 1.7e308)))
    svg = image(ScanResult("m", layers, (), (), None))
    assert boxes(svg, "fill", COLOURS[0]) == boxes(svg, "fill", COLOURS[-1]) == 1
    svg = image(ScanResult("m", (LayerSnr("h.0.q", "q", 0.0), LayerSnr("h.1.q", "q", math.inf)), (), (), None))
    assert boxes(svg, "fill", "#ddd") == 2


def test_one_layer_has_a_map_and_a_long_name_loses_its_middle() -> None:
    svg = image(ScanResult("m", (LayerSnr("h.0.q", "q" * 5000, 2.0),), (), (), None))
    assert boxes(svg, "fill", COLOURS[8]) == 1
    assert len(words(svg)[0]) < 40
    assert float(svg.attrib["width"]) < 300


@pytest.mark.parametrize("name", ['"><script>x</script>', "a\nb", "<b>&amp;", "a\0b", "a\ud800"])
def test_names_stay_text(name: str) -> None:
    given = replace(scan(q=1.0), model=name, layers=(LayerSnr(name, name, 1.5), LayerSnr("h.0.q", "q", 2.0)))
    shown = small_map(given)
    assert "<script" not in shown
    alt = re.search(r'alt="([^"]*)"', shown)
    assert alt is not None
    assert in_line(name) in html.unescape(alt[1])
    assert OUTSIDE not in shown
    assert image(given).find(f".//{SVG}script") is None
