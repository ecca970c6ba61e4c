"""Pictures: what is drawn where, read from the figures; that they are legible, repeatable, and whole or absent."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import spectrum.api  # noqa: F401 - says what draws results
from spectrum.errors import ResultsError, SpectrumError
from spectrum.plots import heatmap, histogram, table
from spectrum.plots.figure import check_can_draw, own_settings
from spectrum.plots.histogram import spectrum_histogram
from spectrum.records import LayerSnr, LayerSpectrum, ScanResult
from spectrum.scanning.uncached import describe_spectrum
from spectrum.selection.selection import Selection, top_percent
from tests.helpers.oracle import oracle_snr
from tests.helpers.paths import files_below

OUTSIDE, INFINITY, ELLIPSIS = "outside the stack", "\N{INFINITY}", "\N{HORIZONTAL ELLIPSIS}"
MAGIC = {".png": b"\x89PNG\r\n", ".svg": b"<?xml", ".pdf": b"%PDF-", ".PNG": b"\x89PNG\r\n"}
LLAMA = ("input_layernorm", "mlp.down_proj", "mlp.gate_proj", "self_attn.o_proj", "self_attn.q_proj")


def scan(*layers: tuple[str, str, float], model: str = "org/model") -> ScanResult:
    return ScanResult(model, tuple(LayerSnr(*layer) for layer in layers), (), (), None)


def llama(depth: int, percent: str = "25", model: str = "org/model", types: tuple[str, ...] = LLAMA) -> Selection:
    """A model of so many layers, its head, its embedding and its norms, with SNR from 0.02 to 50."""
    scores = np.random.default_rng(0).permutation(np.geomspace(0.02, 50, depth * len(types)))
    layers = [
        (f"model.layers.{i}.{t}", t, 1.0 if "norm" in t else float(scores[i + depth * row]))
        for row, t in enumerate(types)
        for i in range(depth)
    ]
    layers += [("lm_head", "lm_head", 0.3), ("model.embed_tokens", "model.embed_tokens", 2.0)]
    return top_percent(scan(*layers, model=model), percent)


def drawn(result: Selection | ScanResult) -> Figure:
    return heatmap.picture(result).figure


def boxes(figure: Figure, gid: str) -> dict[tuple[str, str], float | None]:
    """Where there is a box of this kind: the labels of its row and column, and its value."""
    axes = figure.axes[0]
    rows = {tick: label.get_text() for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    columns = {tick: label.get_text() for tick, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)}
    found: dict[tuple[str, str], float | None] = {}
    for patches in axes.collections:
        if patches.get_gid() == gid:
            values = patches.get_array()
            for i, path in enumerate(patches.get_paths()):
                box = path.get_extents()
                key = rows[round((box.y0 + box.y1) / 2, 6)], columns[round((box.x0 + box.x1) / 2, 6)]
                found[key] = None if values is None else float(values[i])
    return found


def signs(figure: Figure) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in figure.axes[0].texts}


def written(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def extents(texts: Sequence[Text]) -> list[Bbox]:
    return [text.get_window_extent() for text in texts if text.get_visible() and text.get_text()]


def spectrum_of(
    values: np.ndarray[Any, np.dtype[np.float64]], shape: tuple[int, int], name: str = "h.3.mlp"
) -> LayerSpectrum:
    """As the command computes it for a matrix of these singular values."""
    return describe_spectrum(name, shape, torch.from_numpy(values))


def draw_both(directory: Path, suffix: str) -> list[Path]:
    paths = [directory / f"{name}{suffix}" for name in ("map", "histogram")]
    heatmap.heatmap(llama(6), paths[0])
    spectrum_histogram(spectrum_of(np.linspace(0, 2, 64) ** 3, (64, 128)), "org/model", paths[1])
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("suffix", MAGIC)
def test_a_suffix_says_the_format(tmp_path: Path, suffix: str) -> None:
    for path in draw_both(tmp_path, suffix):
        assert path.read_bytes().startswith(MAGIC[suffix])
    assert files_below(tmp_path) == sorted(f"{name}{suffix}" for name in ("map", "histogram"))


@pytest.mark.parametrize("name", ["map.jpg", "map", "png", ".png", "map.png.gz"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpectrumError, match=re.escape(name)) as refused:
        check_can_draw(Path(name))
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(SpectrumError, match=r"\.png, \.svg or \.pdf"):
        heatmap.heatmap(llama(6), tmp_path / name)
    with pytest.raises(SpectrumError, match=r"\.png, \.svg or \.pdf"):
        spectrum_histogram(spectrum_of(np.ones(1), (1, 4)), "org/model", tmp_path / name)
    assert files_below(tmp_path) == []


def test_without_matplotlib_a_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_draw(tmp_path / "map.png")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SpectrumError, match=re.escape("pip install matplotlib")) as refused:
        check_can_draw(tmp_path / "map.png")
    assert len(str(refused.value).splitlines()) == 1
    with pytest.raises(SpectrumError, match="matplotlib"):
        heatmap.heatmap(llama(6), tmp_path / "map.png")
    # At once, not when a notebook shows the picture.
    for result in (llama(6), llama(6).result):
        for draw in (result.plot, partial(result.plot, tmp_path / "map.png")):
            with pytest.raises(SpectrumError, match=re.escape("pictures need matplotlib: pip install matplotlib")):
                draw()
    assert files_below(tmp_path) == []


@pytest.mark.slow
def test_nothing_large_is_imported_until_something_is_drawn_and_pyplot_never(tmp_path: Path) -> None:
    program = f"""
import sys
from spectrum.plots.heatmap import heatmap
from spectrum.records import LayerSnr, LayerSpectrum, ScanResult
from spectrum.scanning.uncached import describe_spectrum
from spectrum.selection.selection import top_percent
wanted = {{"torch", "numpy", "matplotlib"}}
print(*sorted(wanted & sys.modules.keys()))
scan = ScanResult("m", (LayerSnr("h.0.a", "a", 2.0),), (), (), None)
heatmap(top_percent(scan, "50"), {str(tmp_path / "map.png")!r})
print(*sorted((wanted | {{"matplotlib.pyplot"}}) & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines() == ["", "matplotlib numpy"]


@pytest.mark.parametrize("percent", ["1", "25", "50", "100"])
def test_the_selected_cells_are_outlined_and_no_other(percent: str) -> None:
    selection = llama(6, percent)
    figure = drawn(selection)

    def place(name: str) -> str:
        return next((part for part in name.split(".") if part.isdigit()), OUTSIDE)

    expected = {(kind.layer_type, place(layer.name)) for kind in selection.types for layer in kind.selected}
    assert boxes(figure, "solid").keys() == expected
    assert boxes(figure, "dashed") == {}
    scored = {
        (layer.layer_type, place(layer.name)): layer.snr
        for layer in selection.result.layers
        if "norm" not in layer.layer_type
    }
    assert boxes(figure, "scores") == scored
    # What is in no layer stands apart.
    assert list(np.diff(figure.axes[0].get_xticks())) == [1.5, 1, 1, 1, 1, 1]


def test_an_outline_is_black_on_a_wider_white() -> None:
    outlines = [patches for patches in drawn(llama(6)).axes[0].collections if patches.get_gid() != "scores"]
    for white, black in zip(outlines[::2], outlines[1::2], strict=True):
        assert black.get_gid() in ("solid", "dashed")
        assert len(white.get_paths()) == len(black.get_paths())
        assert np.allclose(white.get_edgecolor(), mpl.colors.to_rgba("white"))
        assert np.allclose(black.get_edgecolor(), mpl.colors.to_rgba("black"))
        assert np.max(black.get_linewidth()) < np.min(white.get_linewidth())
    assert sum(len(black.get_paths()) for black in outlines[1::2]) == 5


def test_the_colours_are_those_of_a_log_scale_from_the_lowest_to_the_highest_score() -> None:
    selection = llama(6)
    figure = drawn(selection)
    (mesh,) = (patches for patches in figure.axes[0].collections if patches.get_gid() == "scores")
    scores = [layer.snr for layer in selection.result.layers if "norm" not in layer.layer_type]
    assert isinstance(mesh, PatchCollection)
    assert isinstance(mesh.norm, LogNorm)
    assert (mesh.norm.vmin, mesh.norm.vmax) == (min(scores), max(scores))
    bar = figure.axes[1]
    assert bar.get_ylabel() == "SNR"
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0.03", "0.1", "0.3", "1", "3", "10", "30"]


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0.0013, 12269, ["0.01", "0.1", "1", "10", "100", "1000", "10000"]),
        (0.2, 6, ["0.2", "0.5", "1", "2", "5"]),
        (0.92, 0.97, ["0.92", "0.9447", "0.97"]),
        (1e-300, 1e300, None),
        (1e-310, 3.0, None),
    ],
)
def test_the_colour_bar_has_a_few_plain_numbers(low: float, high: float, labels: list[str] | None) -> None:
    figure = drawn(top_percent(scan(("h.0.a", "a", low), ("h.1.a", "a", high)), "50"))
    figure.draw_without_rendering()
    shown = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert shown == labels if labels else 3 <= len(shown) <= 8
    for a, b in combinations(extents(figure.axes[1].get_yticklabels()), 2):
        assert not a.overlaps(b)


def test_layers_of_norms_have_a_sign_and_take_no_part_in_the_colours() -> None:
    layers = [(f"h.{i}.{t}", t, 0.01 * (i + 1) if t == "mlp" else 1.0) for t in ("mlp", "ln") for i in range(4)]
    figure = drawn(top_percent(scan(*layers), "25"))
    (mesh,) = (patches for patches in figure.axes[0].collections if patches.get_gid() == "scores")
    assert isinstance(mesh, PatchCollection)
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.01, 0.04)
    assert signs(figure) == {(i + 0.5, 1.5): "1" for i in range(4)}
    assert "1: every layer of the type scores exactly 1" in written(figure)
    assert boxes(figure, "solid").keys() == {("mlp", "3"), ("ln", "0")}


def test_of_norms_alone_there_is_no_colour_bar() -> None:
    figure = drawn(top_percent(scan(("h.0.ln", "ln", 1.0), ("norm", "norm", 1.0)), "100"))
    assert len(figure.axes) == 1
    assert boxes(figure, "solid").keys() == {("ln", "0"), ("norm", OUTSIDE)}


def test_a_single_score_has_a_colour() -> None:
    figure = drawn(top_percent(scan(("lm_head", "lm_head", 2.0)), "25"))
    assert boxes(figure, "scores") == {("lm_head", OUTSIDE): 2.0}
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["1.818", "2", "2.2"]


def test_infinity_and_zero_have_signs_and_what_is_missing_has_nothing() -> None:
    layers = [
        ("h.0.a", "a", math.inf),
        ("h.1.a", "a", 0.0),
        ("h.2.a", "a", 3.0),
        ("h.0.b", "b", 1.0),
        ("h.2.b", "b", 2.0),
    ]
    figure = drawn(top_percent(scan(*layers), "50"))
    assert boxes(figure, "scores") == {("a", "2"): 3.0, ("b", "0"): 1.0, ("b", "2"): 2.0}
    assert signs(figure) == {(0.5, 0.5): INFINITY, (1.5, 0.5): "0"}
    assert boxes(figure, "solid").keys() == {("a", "0"), ("b", "2")}
    notes = written(figure)
    assert f"{INFINITY}: no noise" in notes
    assert "0: no singular value lies above" in notes
    assert "exactly 1" not in notes
    assert "dashed" not in notes


def test_the_column_of_a_layer_is_the_number_that_counts_it() -> None:
    # Blocks of a stage, experts in a layer, and sublayers of a block: the type says which number counts.
    layers = [
        *((f"swin.layers.1.blocks.{i}.fc", "swin.layers.1.blocks.fc", 2.0 + i) for i in range(2)),
        *((f"h.{i}.block.1.q", "block.1.q", 3.0 + i) for i in (5, 6)),
        ("swin.layers.7.merge", "merge", 4.0),
    ]
    assert boxes(drawn(top_percent(scan(*layers), "50")), "scores").keys() == {
        ("swin.layers.1.blocks.fc", "0"),
        ("swin.layers.1.blocks.fc", "1"),
        ("block.1.q", "5"),
        ("block.1.q", "6"),
        ("merge", "7"),
    }


def test_what_does_not_occur_is_not_explained() -> None:
    figure = drawn(top_percent(scan(("h.0.a", "a", 3.0), ("h.1.a", "a", 2.0)), "50"))
    assert written(figure).splitlines() == ["org/model", "outlined: top 50 percent of each layer type"]


def test_experts_that_are_modules_share_a_row() -> None:
    layers = [
        (f"model.layers.{i}.mlp.experts.{e}.w{w}", f"mlp.experts.{e}.w{w}", snr)
        for w in (1, 2)
        for e in range(3)
        for i, snr in enumerate([10.0, 1.0 + 8 * (e == 0) * w + e, 5.0 - e])
    ]
    # Of each expert's three layers one is selected: the first, but for expert 0 of w2, the second of which scores 17.
    figure = drawn(top_percent(scan(*layers, ("model.layers.1.mlp.gate", "mlp.gate", 0.5)), "34"))
    first, second = "mlp.experts.*.w1", "mlp.experts.*.w2"
    assert boxes(figure, "scores") == {
        (first, "0"): 10.0, (first, "1"): 3.0, (first, "2"): 4.0,
        (second, "0"): 10.0, (second, "1"): 3.0, (second, "2"): 4.0,
        ("mlp.gate", "1"): 0.5,
    }  # fmt: skip
    assert boxes(figure, "solid").keys() == {(first, "0")}
    assert boxes(figure, "dashed").keys() == {(second, "0"), (second, "1")}
    assert "dashed: some of the experts" in written(figure)


def test_a_lone_expert_keeps_its_number_and_a_stack_is_a_cell() -> None:
    stack = LayerSnr("h.0.experts.up", "experts.up", 4.0, (1.0, 4.0, 9.0))
    lone = [LayerSnr(f"h.{i}.experts.7.down", "experts.7.down", 2.0 + i) for i in range(2)]
    figure = drawn(top_percent(ScanResult("m", (stack, *lone), (), (), None), "50"))
    assert boxes(figure, "scores") == {
        ("experts.up", "0"): 4.0, ("experts.7.down", "0"): 2.0, ("experts.7.down", "1"): 3.0
    }  # fmt: skip


def test_columns_go_by_number_however_long_it_is_after_those_of_no_layer() -> None:
    long = "9" * 5000  # more digits than int() takes
    layers = [(f"h.{i}.a", "a", 2.0 + n) for n, i in enumerate(["10", "9", long, "0"])]
    selection = top_percent(scan(*layers, ("lm_head", "lm_head", 2.0)), "25")
    assert table.table(selection.result).columns == (OUTSIDE, "0", "9", "10", long)
    figure = drawn(selection)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [OUTSIDE, "0", "10"]
    assert len(figure.axes[0].collections[0].get_paths()) == 5
    assert figure.get_figwidth() < 8


TOWERS = (
    "model.language_model.layers.self_attn.q_proj",
    "model.vision_tower.vision_model.encoder.layers.self_attn.out",
)
MANY = tuple(f"block.sub.part_{i}" for i in range(30))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "types"),
    [
        (1, LLAMA[:1]),
        (6, LLAMA),
        (24, MANY),
        (32, LLAMA + TOWERS),
        (80, LLAMA[:2]),
        (126, LLAMA[:2]),
        (300, TOWERS[:1]),
    ],
)
def test_text_is_large_enough_and_neither_overlaps_nor_leaves_the_picture(depth: int, types: tuple[str, ...]) -> None:
    figure = drawn(llama(depth, types=types))
    figure.draw_without_rendering()
    texts: list[Text] = [*figure.texts]
    for axes in figure.axes:
        texts += [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
    found = extents(texts)
    assert len(found) > len(types) + 3
    assert not [(a, b) for a, b in combinations(found, 2) if a.overlaps(b)]
    assert all(figure.bbox.containsx(e.x0) and figure.bbox.containsx(e.x1) for e in found)
    assert all(figure.bbox.containsy(e.y0) and figure.bbox.containsy(e.y1) for e in found)
    assert not [axes for axes in figure.axes for text in extents(figure.texts) if axes.bbox.overlaps(text)]
    assert min(float(text.get_fontsize()) for text in figure.findobj(Text)) >= 6
    # Signs of norms stay within their cells.
    width = figure.axes[0].transData.transform([[0, 0], [1, 0]])
    assert all(e.width < width[1, 0] - width[0, 0] for e in extents(figure.axes[0].texts))


def test_of_many_layers_every_fifth_or_tenth_is_labelled() -> None:
    labels = [label.get_text() for label in drawn(llama(126)).axes[0].get_xticklabels()]
    steps = {int(b) - int(a) for a, b in combinations(labels[1:], 2) if labels.index(b) == labels.index(a) + 1}
    assert labels[:2] == [OUTSIDE, "0"]
    assert steps <= {2, 5, 10}
    assert len(steps) == 1


def test_the_title_has_the_model_and_the_percentage() -> None:
    figure = drawn(llama(6, "12.5", model="meta-llama/Llama-3.1-8B"))
    assert [text.get_text() for text in figure.texts[:2]] == [
        "meta-llama/Llama-3.1-8B",
        "outlined: top 12.5 percent of each layer type",
    ]


@pytest.mark.slow
def test_a_long_and_strange_name_keeps_its_ends_and_what_the_font_has(tmp_path: Path) -> None:
    name = "/home/" + "someone/" * 30 + "m$\\nope$d\N{LATIN SMALL LETTER E WITH ACUTE}l-\u6a21\n\ud800-\\frac"
    selection = llama(6, model=name)
    title = drawn(selection).texts[0].get_text()
    assert len(title) == 80
    assert title.startswith("/home/someone/")
    assert title.endswith("m$\\nope$d\N{LATIN SMALL LETTER E WITH ACUTE}l-???-\\frac")
    assert ELLIPSIS in title
    for suffix in (".png", ".svg", ".pdf"):
        heatmap.heatmap(selection, tmp_path / f"map{suffix}")
        spectrum_histogram(spectrum_of(np.arange(1.0, 9.0), (8, 8), "$x"), name, tmp_path / f"histogram{suffix}")


@pytest.mark.parametrize(
    ("order", "share"),
    [("highest", "top 25 percent"), ("lowest", "lowest 25 percent"), ("random:7", "random 25 percent (seed 7)")],
)
def test_a_control_is_outlined_and_named(order: str, share: str) -> None:
    layers = [(f"h.{i}.a", "a", 2.0 + i) for i in range(8)]
    selection = top_percent(scan(*layers), "25", order=order)
    figure = drawn(selection)
    assert figure.texts[1].get_text() == f"outlined: {share} of each layer type"
    names = {f"h.{column}.{row}" for row, column in boxes(figure, "solid")}
    assert names == set(selection.layers()["a"])
    assert len(names) == 2


def test_a_scan_is_drawn_as_its_selections_are_but_without_outlines() -> None:
    selection = llama(6)
    figure, outlined = drawn(selection.result), drawn(selection)
    assert boxes(figure, "scores") == boxes(outlined, "scores")
    assert signs(figure) == signs(outlined)
    assert boxes(outlined, "solid")
    assert boxes(figure, "solid") == boxes(figure, "dashed") == {}
    assert figure.texts[1].get_text() == "signal-to-noise ratio of each layer"
    assert "outlined" not in written(figure)
    assert tuple(figure.get_size_inches()) == tuple(outlined.get_size_inches())


def test_the_colour_of_experts_is_explained_with_or_without_a_selection() -> None:
    layers = [(f"h.{i}.experts.{e}.up", f"experts.{e}.up", 1.0 + e + i) for i in range(4) for e in range(3)]
    median = "the colour is that of the median of a layer's experts"
    result = scan(*layers)
    assert median in written(drawn(result))
    assert median in written(drawn(top_percent(result, "100")))
    some = top_percent(scan(*layers, ("h.4.experts.0.up", "experts.0.up", 9.0)), "75")
    assert "dashed: some of the experts are selected; the colour is that of their median" in written(drawn(some))
    assert median not in written(drawn(some))
    assert median not in written(drawn(llama(6).result))


# From Python.


@pytest.mark.parametrize("kind", ["scan", "selection"])
def test_a_result_draws_itself(kind: str, tmp_path: Path) -> None:
    result = llama(6).result if kind == "scan" else llama(6)
    picture = result.plot()
    png, shape = picture._repr_png_()
    assert png.startswith(MAGIC[".png"])
    # The notebook shows it this wide, and scales the height along.
    width = int.from_bytes(png[16:20], "big")
    assert 300 < shape["width"] < width < 2 * shape["width"]
    assert repr(picture) == "Heat map of org/model: a notebook shows it, save(path) writes it"
    assert not hasattr(picture, "_repr_html_")
    assert result.plot(tmp_path / "a.png") == tmp_path / "a.png"
    assert picture.save(str(tmp_path / "b.png")) == tmp_path / "b.png"
    heatmap.heatmap(result, tmp_path / "c.png")
    assert {(tmp_path / f"{name}.png").read_bytes() for name in "abc"} == {png}
    for suffix in (".svg", ".pdf"):
        assert result.plot(tmp_path / f"d{suffix}").read_bytes().startswith(MAGIC[suffix])


def test_a_picture_is_opaque_and_white_whatever_the_users_settings() -> None:
    with mpl.rc_context({"figure.facecolor": "black", "savefig.transparent": True, "savefig.facecolor": "none"}):
        png, _ = llama(6).plot()._repr_png_()
    pixels = matplotlib.image.imread(io.BytesIO(png))
    assert pixels[0, 0].tolist() == [1.0, 1.0, 1.0, 1.0]
    assert (pixels[..., 3] == 1).all()


def test_a_picture_goes_to_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert llama(6).plot("~/scores.svg") == tmp_path / "scores.svg"
    assert files_below(tmp_path) == ["scores.svg"]


@pytest.mark.parametrize("name", ["map.jpg", "map", "map.html.txt"])
def test_a_result_refuses_another_suffix(name: str, tmp_path: Path) -> None:
    for draw in (llama(6).plot, llama(6).result.plot, llama(6).plot().save):
        with pytest.raises(SpectrumError, match=re.escape(".png, .svg or .pdf; ")):
            draw(tmp_path / name)
    assert files_below(tmp_path) == []


def test_what_draws_is_known_once_the_interface_is_imported(tmp_path: Path) -> None:
    probe = """
from spectrum.records import LayerSnr, ScanResult
r = ScanResult("m", (LayerSnr("h.0.a", "a", 2.0),), (), (), None)
try:
    r.plot()
except Exception as error:
    print(type(error).__name__, error)
import spectrum
spectrum.select
print(r.plot("a.png"))
import sys
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "SpectrumError nothing can draw this result yet; import spectrum.api first",
        "a.png",
        "False",
    ]


def test_where_there_is_no_layer_nothing_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(SpectrumError, match="there is no layer of org/model to draw"):
        heatmap.heatmap(top_percent(scan(("h.0.a", "a", 1.0)).only(()), "50"), tmp_path / "map.png")
    with pytest.raises(SpectrumError, match="there is no layer of org/model to draw"):
        scan().plot()
    assert files_below(tmp_path) == []


def test_the_colours_grow_lighter_all_the_way() -> None:
    colours = mpl.colormaps[heatmap._COLOURS](np.linspace(0, 1, 256))[:, :3]
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    assert luminance[-1] > 20 * luminance[0]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_scan_gives_the_same_bytes_whatever_the_users_settings(tmp_path: Path, suffix: str) -> None:
    first = [path.read_bytes() for path in draw_both(tmp_path / "a", suffix)]
    # Drawn within a second, a date would be the same twice.
    assert not [content for content in first if b"Date" in content or b"dc:date" in content]
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "savefig.bbox": "tight", "svg.fonttype": "none"}):
        before = dict(mpl.rcParams)
        assert [path.read_bytes() for path in draw_both(tmp_path / "b", suffix)] == first
        assert dict(mpl.rcParams) == before


def test_a_directory_is_made_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    heatmap.heatmap(llama(6), tmp_path / "new" / "map.png")
    assert files_below(tmp_path) == ["new/map.png"]
    with pytest.raises(ResultsError, match=r"cannot write .*map\.png/map\.svg: "):
        heatmap.heatmap(llama(6), tmp_path / "new" / "map.png" / "map.svg")
    assert files_below(tmp_path) == ["new/map.png"]


def test_a_picture_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    taken = tmp_path / "map.png"
    taken.mkdir()  # a file cannot take the place of a directory, which is noticed last of all
    with pytest.raises(ResultsError, match=r"cannot write .*map\.png"):
        heatmap.heatmap(llama(6), taken)
    assert [path.name for path in tmp_path.rglob("*")] == ["map.png"]
    taken.rmdir()
    taken.write_text("an old picture")
    with taken.open() as old:
        heatmap.heatmap(llama(6), taken)
        assert old.read() == "an old picture"  # what was there is put aside, not written over
    assert taken.read_bytes().startswith(MAGIC[".png"])
    assert files_below(tmp_path) == ["map.png"]


def drawn_histogram(
    weight: np.ndarray[Any, np.dtype[np.float64]],
) -> tuple[Figure, np.ndarray[Any, np.dtype[np.float64]]]:
    values = np.sort(np.linalg.svd(weight, compute_uv=False))
    with own_settings():
        spectrum = spectrum_of(values, (weight.shape[0], weight.shape[1]))
        return histogram._histogram_figure(spectrum, "org/model"), values


def steps(axes: Axes, gid: str) -> StepPatch:
    (found,) = (patch for patch in axes.patches if patch.get_gid() == gid)
    assert isinstance(found, StepPatch)
    return found


def legend(figure: Figure) -> str:
    (found,) = figure.legends
    return "\n".join(text.get_text() for text in found.get_texts())


def line(figure: Figure, gid: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    found = [line for line in figure.axes[0].lines if line.get_gid() == gid]
    return (np.asarray(found[0].get_xdata()), np.asarray(found[0].get_ydata())) if found else None


def spiked(rows: int, columns: int, spike: float = 3.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Noise, with two directions that stand out of it, and a heavy tail."""
    random = np.random.default_rng(rows + columns)
    noise = random.standard_t(3, size=(rows, columns))
    return noise + spike * random.normal(size=(rows, 2)) @ random.normal(size=(2, columns))


SHAPES = [(96, 96), (64, 80), (300, 290), (48, 192), (200, 50)]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_edge_the_counts_and_the_snr_are_the_oracles(shape: tuple[int, int]) -> None:
    weight = spiked(*shape)
    figure, values = drawn_histogram(weight)
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    sigma = (three_quarters - quarter) / 1.349
    edge = sigma * (1 + math.sqrt(min(shape) / max(shape)))
    over = int((values > edge).sum())

    drawn_edge = line(figure, "edge")
    assert drawn_edge is not None
    assert drawn_edge[0] == pytest.approx([edge, edge])
    said = legend(figure)
    facts = f"{shape[0]} \N{MULTIPLICATION SIGN} {shape[1]}, SNR {oracle_snr(weight):.4g}"
    assert facts in written(figure).splitlines()
    assert f"sigma = (q75 - q25) / 1.349 = {sigma:.4g}. " in " ".join(written(figure).split())
    assert f"bulk edge {edge:.4g}" in said
    assert f"signal: {over} values" in said
    assert f"noise: {len(values) - over} values" in said

    below, _, _ = steps(figure.axes[0], "noise").get_data()
    top, _, bottom = steps(figure.axes[0], "signal").get_data()
    assert below.sum() == len(values) - over
    assert (top - bottom).sum() == over
    # The edge ends a bin, so none has both.
    assert not ((below > 0) & (top > bottom)).any()
    assert "h.3.mlp  of  org/model" in written(figure).splitlines()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_law_has_the_area_of_the_noise_and_the_papers_form(shape: tuple[int, int]) -> None:
    figure, values = drawn_histogram(spiked(*shape))
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    sigma, root = (three_quarters - quarter) / 1.349, math.sqrt(min(shape) / max(shape))
    noise = int((values <= sigma * (1 + root)).sum())
    law = line(figure, "law")
    if noise == 0:
        assert law is None
        return
    assert law is not None
    _, edges, _ = steps(figure.axes[0], "noise").get_data()
    width = edges[1] - edges[0]
    x, counts = law
    area = float(((counts[1:] + counts[:-1]) / 2 * np.diff(x)).sum())
    assert area / width == pytest.approx(noise, rel=1e-3)
    middle = sigma * 1.1
    s = middle / sigma
    density = math.sqrt(((1 + root) ** 2 - s**2) * (s**2 - (1 - root) ** 2)) / (math.pi * root**2 * s)
    assert np.interp(middle, x, counts) == pytest.approx(noise * density * width / sigma, rel=1e-3)
    assert counts.max() <= figure.axes[0].get_ylim()[1]


def test_signal_and_noise_differ_in_grey_too() -> None:
    figure, _ = drawn_histogram(spiked(96, 96))
    noise, signal = steps(figure.axes[0], "noise"), steps(figure.axes[0], "signal")
    grey = [sum(mpl.colors.to_rgb(patch.get_facecolor())) / 3 for patch in (noise, signal)]
    assert grey[0] > grey[1] + 0.3
    assert noise.get_hatch()
    assert not signal.get_hatch()


def test_a_value_far_beyond_the_others_has_a_panel_of_its_own() -> None:
    figure, values = drawn_histogram(spiked(300, 290, spike=40.0))
    bulk, tail = figure.axes
    assert bulk.get_xlim()[1] <= tail.get_xlim()[0]
    assert bulk.get_xlim()[1] < values[-1] / 2
    assert "After the break, scale and bins are wider." in " ".join(written(figure).split())
    # The bulk keeps its width, and each of the two has a stroke where it is.
    assert bulk.get_xlim()[1] < 3 * np.quantile(values, 0.98)
    assert tail.get_xlim()[0] < values[-2] <= values[-1] < tail.get_xlim()[1]
    strokes = [segment[0, 0] for segment in tail.collections[0].get_segments()]  # type: ignore[attr-defined]
    assert strokes[-2:] == pytest.approx(values[-2:])
    figure.draw_without_rendering()
    ticks = [
        label
        for panel in (bulk, tail)
        for x, label in zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
        if panel.get_xlim()[0] <= x <= panel.get_xlim()[1]
    ]
    assert len(ticks) > 5
    assert not [(a, b) for a, b in combinations(extents([*figure.texts, *ticks]), 2) if a.overlaps(b)]


SPIKES = [0.0, 3.0, 12.0, 40.0, 400.0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("spike", SPIKES)
def test_panels_end_where_their_values_end_and_every_bar_is_whole(shape: tuple[int, int], spike: float) -> None:
    figure, values = drawn_histogram(spiked(*shape, spike=spike))
    edges = list((line(figure, "edge") or ([], []))[0])[:1]
    top, limits, _ = steps(figure.axes[0], "signal").get_data()
    for panel in figure.axes:
        low, high = panel.get_xlim()
        inside = [*(v for v in values if low <= v <= high), *(e for e in edges if low <= e <= high)]
        bins = [(a, b) for a, b in pairwise(limits) if low <= a and b <= high]
        widest = max(b - a for a, b in bins)
        assert high - max(inside) <= 2.001 * widest  # no empty stretch, neither before a break nor at the end
        if panel is not figure.axes[0]:
            assert min(inside) - low <= 1.001 * widest
    drawn_bars = [(a, b) for a, b, count in zip(limits[:-1], limits[1:], top, strict=True) if count]
    assert all(any(p.get_xlim()[0] <= a and b <= p.get_xlim()[1] for p in figure.axes) for a, b in drawn_bars)
    assert sum(low <= v <= high for v in values for low, high in (p.get_xlim() for p in figure.axes)) == len(values)


@pytest.mark.parametrize("spike", SPIKES)
def test_the_plot_fills_the_page_and_plain_words_are_below_it(spike: float) -> None:
    figure, _ = drawn_histogram(spiked(96, 200, spike=spike))
    figure.draw_without_rendering()
    assert figure.axes[-1].get_position().x1 > 0.95
    *_, words = (text.get_window_extent() for text in figure.texts)
    key = figure.legends[0].get_window_extent()
    assert key.x1 < figure.bbox.x1
    assert words.x1 < figure.bbox.x1
    labels = extents([label for axes in figure.axes for label in (*axes.get_xticklabels(), axes.xaxis.label)])
    assert key.y1 < min(label.y0 for label in labels)
    assert 0 < words.y0 < words.y1 < key.y0


@pytest.mark.parametrize(("length", "end"), [(5.0, "Every vector scores exactly 1."), (0.0, "so it scores 0.")])
def test_a_norm_has_a_sentence_of_its_own(length: float, end: str) -> None:
    with own_settings():
        figure = histogram._histogram_figure(spectrum_of(np.array([length]), (1, 8)), "org/model")
    words = " ".join(written(figure).split())
    assert "This weight is a vector, as the weights of norms are." in words
    assert words.endswith(end)
    assert "bulk edge are signal" not in words


@pytest.mark.parametrize(
    ("values", "shape", "edge", "said"),
    [
        ([0.0] * 8, (8, 8), 0.0, ["SNR 0", "signal: 0 values", "noise: 8 values"]),
        ([0.0], (1, 8), 0.0, ["SNR 0", "signal: 0 values", "noise: 1 value"]),
        ([5.0], (1, 8), 0.0, ["SNR 1", "signal: 1 value", "noise: 0 values"]),
        ([0.0] * 60 + [1.0, 3.0], (62, 62), 0.0, ["SNR 1.333", "signal: 2 values", "noise: 60 values"]),
        ([2.0] * 4, (4, 9), 0.0, ["SNR 4", "signal: 4 values", "noise: 0 values"]),
        ([0.0, 0.0, 1.0, 1.0], (4, 4), 2 / 1.349, ["SNR 0", "signal: 0 values", "noise: 4 values"]),
        ([1e-9] * 60 + [2e-9] * 60 + [1.0], (121, 121), 2e-9 / 1.349, ["signal: 61 values"]),
    ],
    ids=["zeros", "a zero", "a norm", "low rank", "all equal", "no signal", "nearly low rank"],
)
def test_matrices_without_bulk_are_drawn(
    tmp_path: Path, values: list[float], shape: tuple[int, int], edge: float, said: list[str]
) -> None:
    spectrum = spectrum_of(np.array(values), shape)
    with own_settings():
        figure = histogram._histogram_figure(spectrum, "org/model")
    drawn_edge = line(figure, "edge")
    assert drawn_edge is not None
    assert drawn_edge[0] == pytest.approx([edge, edge])
    low, high = figure.axes[0].get_xlim()
    assert low <= edge <= high
    assert figure.axes[-1].get_xlim()[1] > values[-1]
    snr = written(figure).splitlines()[1].partition(", ")[2]
    for words in said:
        assert words in [snr, *legend(figure).splitlines()]
    spectrum_histogram(spectrum, "org/model", tmp_path / "histogram.png")
    assert files_below(tmp_path) == ["histogram.png"]
