"""What the page says to type: the command writes the list that the page shows, and Python selects the same layers."""

from __future__ import annotations

import json
import shlex
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import spectrum
from spectrum.cli.console.options import SelectOptions, parse
from spectrum.layer_types import match_types
from spectrum.plots.page.page import PageSettings
from spectrum.records import LayerSnr, ScanResult
from spectrum.scanning.scan_json import read_published
from spectrum.selection.selection import Selection
from tests.helpers.browser import needs_browser
from tests.helpers.command import run
from tests.helpers.page_engine import Asked, asked_of_engine, data_of, with_rows_off
from tests.helpers.paths import TINY_LLAMA

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]


def said(driver: Chrome, function: str, data: dict[str, Any], asked: Asked, **state: object) -> Any:
    """What a function of the engine gives that takes the page, the selection and the state."""
    script = f"""((state) => {{
      const chosen = selectLayers(scan, state, isOn);
      return {function};
    }})({{...state, ...{json.dumps(state)}}})"""
    return asked_of_engine(driver, script, data, [asked])[0]


LINE = "commandLine(page, chosen, state)"
WRITTEN = (
    "[commandLine(page, chosen, state), writtenList(page, chosen, state.format), listFile(page, chosen, state.format)]"
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ScanResult]:
    """A directory with a scan of the sample model, and the scan."""
    directory = tmp_path_factory.mktemp("it's a sample")
    assert run(directory, "--model-name", TINY_LLAMA, "--top-percent", "25").status == 0
    (path,) = (
        path
        for path in (directory / "model_snr_results").glob("*.json")
        if not path.stem.endswith(("_sorted", ".meta"))
    )
    return directory, read_published(path)


@pytest.mark.parametrize(
    ("asked", "order", "more"),
    [
        (Asked("25"), "highest", {}),
        (Asked("12.50", embeddings=False), "highest", {"format": "names"}),
        (Asked("50", off=(0,)), "lowest", {"format": "json"}),
        (Asked("75", embeddings=False, off=(1, 3)), "random:7", {"format": "frozen"}),
        (Asked("60", off=(0, 2, 4)), "random:0", {"format": "swift"}),
        (Asked("40", off=(5,)), "highest", {"format": "peft"}),
        (Asked("20", embeddings=False), "lowest", {"topParams": "20"}),
        (Asked("30", off=(2,)), "highest", {"topParams": "45.5", "format": "nemo"}),
    ],
)
def test_the_command_writes_the_list_that_the_page_shows(
    asked: Asked, order: str, more: dict[str, str], sample: tuple[Path, ScanResult], engine: Chrome, tmp_path: Path
) -> None:
    directory, scan = sample
    results, output = directory / "model_snr_results", tmp_path / "lists of $USER"
    command = ("spectrum", "--model-name", scan.model, "--results-dir", str(results), "--output-dir", str(output))
    data = data_of(scan, order, PageSettings(command))
    if "topParams" in more:
        script = f"percentOfParams(scan, state, isOn, {more['topParams']!r}).percent"
        asked = Asked(said(engine, script, data, asked), asked.embeddings, asked.off)
    line, written, name = said(engine, WRITTEN, data, asked, **more)
    done = run(tmp_path, *shlex.split(line)[1:])
    assert done.status == 0, done.err
    assert (output / name).read_text() == written["text"]


def experts() -> ScanResult:
    """Experts are modules of their own, and names of types say things to --layer-types."""
    layers = [f"layers.{i}.experts.{e}.{kind}" for kind in ("up", "down") for e in range(3) for i in range(2)]
    layers += [f"layers.{i}.{kind}" for kind in ("all", "experts", "norm") for i in range(2)]
    scored = (LayerSnr(name, name.split(".", 2)[2], 1.0 + i % 3) for i, name in enumerate(layers))
    ordered = tuple(sorted(scored, key=lambda layer: layer.layer_type))
    return ScanResult("m", ordered, (), tuple(dict.fromkeys(layer.layer_type for layer in ordered)), None)


@pytest.mark.parametrize("off", [(0,), (1,), (2,), (3,), (4,), (0, 1), (1, 3, 4), (0, 1, 2, 3)])
def test_the_rows_that_are_on_are_the_types_of_the_command(off: tuple[int, ...], engine: Chrome) -> None:
    scan = experts()
    data = data_of(scan, settings=PageSettings(("spectrum", "--model-name", "m")))
    assert [row["label"] for row in data["scans"][0]["rows"]] == [
        *("all", "experts", "experts.*.down", "experts.*.up", "norm"),
    ]
    options = parse(shlex.split(said(engine, LINE, data, Asked("30", off=off)))[1:]).mode
    assert isinstance(options, SelectOptions)
    assert options.layer_types is not None
    names = {name: [layer.name for layer in layers] for name, layers in scan.by_type().items()}
    assert match_types(options.layer_types, names) == list(with_rows_off(scan, data, off).by_type())
    assert options.top_percent == "30"


def test_experts_are_chosen_by_one_word(engine: Chrome) -> None:
    data = data_of(experts(), settings=PageSettings(("spectrum",)))
    line = said(engine, LINE, data, Asked("30", off=(0, 1, 2)))
    assert line == "spectrum --layer-types 'experts.*.up' norm --top-percent 30"


def test_words_are_quoted_for_the_shell(engine: Chrome) -> None:
    words = ("spectrum", "--model-name", "it's $HOME", "", "~", "größe", "a\nb", "x=1,2", "a;b", "*", "50%", "@+:./-_")
    line = said(engine, LINE, data_of(experts(), settings=PageSettings(words)), Asked("30"))
    assert line == shlex.join([*words, "--top-percent", "30"])


def test_a_percentage_of_parameters_has_no_sign(engine: Chrome) -> None:
    data = data_of(experts(), settings=PageSettings(("spectrum",)))
    assert said(engine, LINE, data, Asked("25"), topParams="12.50 %") == "spectrum --top-params 12.50"
    line = said(engine, "pythonLine(page, chosen, state)", data, Asked("25"), topParams="7%")
    assert line == "selection = spectrum.select(result, top_params=7)"


def test_the_defaults_need_no_words(engine: Chrome) -> None:
    data = data_of(experts(), settings=PageSettings(("spectrum", "--model-name", "m")))
    assert said(engine, LINE, data, Asked("50")) == "spectrum --model-name m --top-percent 50"


def test_no_command_writes_the_list_of_a_model_in_memory(engine: Chrome) -> None:
    assert said(engine, LINE, data_of(experts()), Asked("50")) is None


@pytest.mark.parametrize(
    ("asked", "order", "more", "line"),
    [
        (Asked("75"), "highest", {}, "selection = spectrum.select(result, top_percent=75)"),
        (
            Asked("050.5", embeddings=False, off=(0, 1, 3)),
            "random:7",
            {},
            'selection = spectrum.select(result.only(["experts.0.down", "experts.1.down", "experts.2.down", "norm"]), '
            'top_percent="050.5", embeddings=False, order="random:7")',
        ),
    ],
)
def test_python_selects_the_same_layers(
    asked: Asked, order: str, more: dict[str, str], line: str, engine: Chrome
) -> None:
    scan = experts()
    data = data_of(scan, order)
    found, layers = said(
        engine,
        "[pythonLine(page, chosen, state), chosen.layers.flat().map((layer) => scan.layers.name[layer])]",
        data,
        asked,
        **more,
    )
    assert found == line
    space: dict[str, Any] = {"spectrum": spectrum, "result": scan}
    exec(found, space)
    selection: Selection = space["selection"]
    assert [name for names in selection.layers().values() for name in names] == layers
    assert selection.percent == asked.percent


@pytest.mark.parametrize("percent", ["20", "0.5", "5.250", ".5", "99.999999999999999"])
def test_python_takes_a_percentage_of_parameters(percent: str, sample: tuple[Path, ScanResult], engine: Chrome) -> None:
    line = said(engine, "pythonLine(page, chosen, state)", data_of(sample[1]), Asked("25"), topParams=percent)
    value = line.removeprefix("selection = spectrum.select(result, top_params=").removesuffix(")")
    assert Decimal(str(eval(value))) == Decimal(percent)
    assert value.strip('"') == percent
