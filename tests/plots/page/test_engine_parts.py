"""The small parts of the page's engine: numbers and texts as Python spells them, percentages as typed, comparisons."""

from __future__ import annotations

import json
import math
import random
import struct
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from spectrum.errors import SelectionError
from spectrum.plots.page.page import PageSettings
from spectrum.records import LayerSnr, ModelInfo, Parameter, Provenance, ScanResult
from spectrum.selection import selection
from spectrum.selection.comparison import compare
from spectrum.selection.selection import parse_percent, top_percent
from tests.helpers.browser import needs_browser
from tests.helpers.page_engine import Asked, asked_of_engine, data_of, with_rows_off

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]


def each(driver: Chrome, function: str, values: object) -> list[Any]:
    """What a function of the engine gives for each value."""
    script = f"return JSON.stringify(JSON.parse(arguments[0]).map((value) => ({function})(value)))"
    answers: list[Any] = json.loads(driver.execute_script(script, json.dumps(values)))
    return answers


@cache
def floats() -> list[float]:
    draw = random.Random(0)
    bits = (struct.unpack("d", struct.pack("Q", draw.getrandbits(64)))[0] for _ in range(3000))
    eighths = (draw.randrange(1, 9000) / 8 for _ in range(1000))  # many are halfway between numbers of a few digits
    scaled = (draw.uniform(-1, 1) * 10 ** draw.randint(-9, 20) for _ in range(3000))
    some = (0.0, -0.0, 1.0, 12.5, 13.5, 0.5, 1e16, 9999999999999998.0, 1e-4, 9.9e-5, 9.9999999e-5, 99.95, 5e-324, 1e22)
    return [*some, *eighths, *scaled, *filter(math.isfinite, bits)]


@pytest.mark.parametrize("digits", [1, 2, 3, 4, 6, 17])
def test_numbers_are_rounded_and_spelt_as_in_python(digits: int, engine: Chrome) -> None:
    found = each(engine, f"(x) => formatNumber(x, {digits})", floats())
    assert found == [f"{x:.{digits}g}" for x in floats()]


def test_infinity_is_spelt_as_in_python(engine: Chrome) -> None:
    found = each(engine, "(x) => formatNumber(scoreOf(x), 4)", ["inf", "-inf", "nan", 2.0])
    assert found == ["inf", "nan", "nan", "2"]  # no score is negative
    assert each(engine, "(x) => formatNumber(-1 / x, 4)", [0]) == ["-inf"]
    assert each(engine, "(x) => formatNumber(x, 4)", ["inf", "nan"]) == ["inf", "nan"]  # as they are in the data


def test_floats_are_those_of_pythons_json(engine: Chrome) -> None:
    assert each(engine, "pythonFloat", floats()) == list(map(json.dumps, floats()))


def test_texts_are_those_of_pythons_json(engine: Chrome) -> None:
    draw = random.Random(1)
    codes = ((draw.randrange(128), draw.randrange(0xD800)) for _ in range(900))
    texts = ["".join(map(chr, code)) for code in codes]
    texts += ["\x7f\x80\u2028</script>", "\U0001f600", '"\\/\b\f\n\r\t\x00']
    assert each(engine, "jsonText", texts) == list(map(json.dumps, texts))


def percent_or_none(text: str) -> str | None:
    try:
        return parse_percent(text)
    except ValueError:
        return None


def test_percentages_are_taken_as_the_command_takes_them(engine: Chrome) -> None:
    draw = random.Random(2)
    pieces = ("0", "1", "9", "25", "100", ".", "-", "+", "e", " ", "%", ",", "\n", "00", "\N{ARABIC-INDIC DIGIT THREE}")
    texts = ["".join(draw.choices(pieces, k=draw.randrange(6))) for _ in range(4000)]
    texts += ["25 %", "25%%", "100.000", "100.0001", "000", "0" * 23 + "1", "0" * 24 + "1", "1" + " " * 30 + "%", "1\n"]
    found = each(engine, "parsePercent", texts)
    assert found == list(map(percent_or_none, texts))
    assert 50 < sum(one is not None for one in found) < len(found)


def test_a_percentage_that_is_none_is_refused(engine: Chrome) -> None:
    script = "percentOfParams(scan, state, isOn, 'much')"
    (found,) = asked_of_engine(engine, script, data_of(published("m", "a.0.up", "a.1.up")), [Asked("50")])
    assert found == {"problem": "a number over 0 and at most 100 is expected, such as 25 or 12.5, not 'much'"}


def test_a_scan_of_another_tool_does_not_say_how_much_trains(engine: Chrome) -> None:
    script = """[
        percentOfParams(scan, state, isOn, "25").problem,
        numTrained(scan, ["lm_head.weight"]),
        numTotal(scan),
        memoryPerDevice(page, selectLayers(scan, state, isOn), 0, 0, 1),
    ]"""
    (found,) = asked_of_engine(engine, script, data_of(published("org/m\n", "a.0.up", "a.1.up")), [Asked("50")])
    problem = "the cached scan of org/m\\n does not say how large its parameters are; scan again with --rescan"
    assert found == [problem, None, None, None]


def test_nothing_can_be_trained_where_every_row_is_off(engine: Chrome) -> None:
    data = data_of(published("m", "a.0.up", "a.1.up", "b.0.down"))
    script = """[selectLayers(scan, state, isOn).problem, percentSteps(scan, isOn),
      percentOfParams(scan, state, isOn, "5"), enteringPercent(scan, 0, isOn)]"""
    (found,) = asked_of_engine(engine, script, data, [Asked("50", off=(0, 1))])
    assert found[0] == "nothing to train: every layer type is switched off"
    assert found[1] == []
    assert found[3] is None


@pytest.mark.parametrize(("size", "percent"), [(1, "100"), (8, "12.5"), (32, "3.13"), (126, "0.8"), (20_001, "0.01")])
def test_the_percentage_of_a_layer_is_rounded_up_to_two_decimals(size: int, percent: str, engine: Chrome) -> None:
    scan = published("m", *names(size, "up"), *names(7, "down"))
    ranked = next(each for each in top_percent(scan, percent).types if len(each.layers) == size)
    first = ranked.selected[0].name
    script = f"enteringPercent(scan, scan.layers.name.indexOf({first!r}), isOn)"
    assert asked_of_engine(engine, script, data_of(scan), [Asked("50")]) == [percent]


def test_cuts_are_exact(engine: Chrome) -> None:
    # With binary floats, 12.3 percent of 1000 layers are 122, and 14.5 percent are 144.
    scan = published("m", *names(1000, "up"), *names(61, "down"), *names(7, "gate"), *names(3, "q"))
    data = data_of(scan)
    asked = [Asked(f"{tenths / 10}") for tenths in range(1, 1001)] + [Asked("99.99999999999999999999"), Asked(".1")]
    found = asked_of_engine(engine, "selectLayers(scan, state, isOn).counts", data, asked)
    for one, counts in zip(asked, found, strict=True):
        assert counts == [ranked.num_selected for ranked in top_percent(scan, one.percent).types], one


def test_the_shortest_percentage_of_each_cut_is_that_of_the_command(engine: Chrome) -> None:
    scan = published("m", *names(331, "up"), *names(330, "down"), *names(128, "gate"), *names(1, "q"))
    steps = selection._steps(scan)
    (found,) = asked_of_engine(engine, "percentSteps(scan, isOn)", data_of(scan), [Asked("50")])
    assert found == [selection._shortest(steps, step) for step in range(len(steps))]
    assert max(map(len, found)) > 5  # where cuts are close to each other


# Comparisons.


def published(model: str, *layers: str, seed: int = 0) -> ScanResult:
    """A scan of another tool: each layer's type is the end of its name."""
    draw = random.Random(seed)
    scored = (LayerSnr(name, name.rpartition(".")[2], draw.choice((draw.random(), 1.0, 2.0))) for name in layers)
    ordered = sorted(scored, key=lambda layer: layer.layer_type)
    return ScanResult(model, tuple(ordered), (), tuple(dict.fromkeys(layer.layer_type for layer in ordered)), None)


def names(depth: int, *kinds: str) -> list[str]:
    return [f"model.layers.{i}.{kind}" for kind in kinds for i in range(depth)]


def described(scan: ScanResult) -> ScanResult:
    """The same scan with a description of the model, in which the last layer is the output head."""
    last = scan.layers[-1].name
    parameters = {f"{layer.name}.weight": Parameter((8, 4), "bfloat16") for layer in scan.layers}
    info = ModelInfo("Toy", parameters, scan.scanned, f"{last}.weight", None)
    return replace(scan, provenance=Provenance(None, None, "f", None, {}, info))


PAIRS = {
    "of one model": (published("a", *names(7, "up", "down")), published("b", *names(7, "up", "down"), seed=1)),
    "of two depths": (published("a", *names(7, "up", "down")), published("b", *names(12, "up", "down"), seed=1)),
    "of other types": (
        published("a", *names(5, "up", "q", "k"), "lm_head"),
        published("b", *names(6, "up", "v"), "lm_head", *names(2, "k"), seed=1),
    ),
    "with a head": (
        described(published("a", *names(4, "up", "down"))),
        described(published("b", *names(9, "down", "up"), seed=1)),
    ),
    "of a single layer": (published("a", *names(1, "up", "down")), published("b", *names(1, "up", "down"), seed=1)),
    "of other layers": (published("a", "x.0.up", "x.1.up"), published("b", "y.0.up", "y.1.up")),
    "of other kinds": (published("a", "x.0.up"), published("b\t", "x.0.down")),
}


@pytest.mark.parametrize("order", ["highest", "lowest", "random:7"])
@pytest.mark.parametrize("pair", PAIRS)
def test_scans_are_compared_as_the_command_does(pair: str, order: str, engine: Chrome) -> None:
    first, second = PAIRS[pair]
    data = data_of(first, order, PageSettings(None, other=second))
    rows = range(len(data["scans"][0]["rows"]))
    off = [(), *((row,) for row in rows if len(rows) > 1)]
    percents = ("5", "15", "33.4", "50", "80", "100")
    asked = [Asked(percent, embeddings, some) for percent in percents for embeddings in (True, False) for some in off]
    answers = asked_of_engine(engine, "compareScans(page, state)", data, asked)
    for one, answer in zip(asked, answers, strict=True):
        part = with_rows_off(first, data, one.off)
        assert answer == compared(part, second if not one.off else second.only(part.scanned), one, order), one


def compared(first: ScanResult, second: ScanResult, asked: Asked, order: str) -> dict[str, Any]:
    both = [top_percent(scan, asked.percent, embeddings=asked.embeddings, order=order) for scan in (first, second)]
    try:
        found = compare(*both)
    except SelectionError as error:
        return {"problem": str(error)}
    types = [
        {
            "name": one.layer_type,
            "numLayers": one.num_layers,
            "numFirst": one.num_first,
            "numSecond": one.num_second,
            "correlation": one.correlation,
            "enter": list(one.enter),
            "leave": list(one.leave),
        }
        for one in found.types
    ]
    only = {"onlyFirst": list(found.only_first), "onlySecond": list(found.only_second)}
    return {"problem": None, "types": types, **only}
