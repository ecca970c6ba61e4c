"""The page's plan of training memory in a real browser: the figures and words of the command's report."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spectrum.cli import report
from spectrum.plots.page.page import PageSettings, page
from spectrum.records import LayerSnr, Parameter, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers import memory
from spectrum.trainers.formats.formats import FORMATS
from tests.helpers.browser import complaints, needs_browser, open_page, retype
from tests.helpers.page_map import drawn
from tests.helpers.records import PROVENANCE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]


def model(width: int, depth: int = 6, tied: bool = False) -> ScanResult:
    """A model of so many layers, with an embedding, a head that may be tied, and biases too small for 8 bits."""
    head = Parameter((50 * width, width), "bfloat16", "embed.weight" if tied else None, "Linear", "head")
    parameters = {"embed.weight": Parameter((50 * width, width), "bfloat16", module="Embedding", layer_type="embed")}
    for i in range(depth):
        for kind, shape in {"up": (3 * width, width), "down": (width, 3 * width)}.items():
            parameters[f"h.{i}.{kind}.weight"] = Parameter(shape, "bfloat16", module="Linear", layer_type=kind)
            parameters[f"h.{i}.{kind}.bias"] = Parameter(shape[:1], "bfloat16", module="Linear")
    parameters["head.weight"] = head
    layers = [LayerSnr(f"h.{i}.{kind}", kind, 2 + (i * 5 % 7) / 3) for kind in ("down", "up") for i in range(depth)]
    layers += [LayerSnr("embed", "embed", 1.5), LayerSnr("head", "head", 1.5)]
    info = replace(PROVENANCE.info, parameters=parameters, head="head.weight", embedding="embed.weight")
    return ScanResult("org/m", tuple(layers), (), ("down", "up", "embed", "head"), replace(PROVENANCE, info=info))


def show(driver: Chrome, tmp_path: Path, selection: Selection, devices: int = 1) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(selection, PageSettings(None, devices=devices)))
    open_page(driver, path)
    driver.execute_script("document.querySelector('#plan details').open = true")
    drawn(driver)
    assert complaints(driver) == []


def choose(driver: Chrome, control: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", f"plan-{control}")).select_by_visible_text(text)
    drawn(driver)


def type_devices(driver: Chrome, text: str) -> None:
    retype(driver, "plan-devices", text)
    drawn(driver)


def value(driver: Chrome, control: str) -> str:
    field = driver.find_element("id", f"plan-{control}")
    option = field.find_elements("css selector", "option:checked")
    return option[0].text if option else str(field.get_attribute("value"))


def figures(driver: Chrome) -> list[str]:
    return [field.text for field in driver.find_elements("css selector", ".plan-value")]


def table(driver: Chrome) -> list[list[str]]:
    """The rows of the table of all plans, the head included."""
    rows = driver.find_elements("css selector", ".plan-table tr")
    return [[cell.text for cell in row.find_elements("css selector", "th, td")] for row in rows]


def reported(selection: Selection, devices: int) -> tuple[str, list[list[str]]]:
    """The sentence on parameters, and the rows of the table, of the command's report."""
    text = report.training_plan_of(selection, devices, None)
    sentence, plan = text.split("\n\n")
    lines = plan.splitlines()
    return sentence.splitlines()[0], [re.split(r"\s{2,}", line) for line in lines[2:]]


@pytest.mark.parametrize("devices", [1, 2, 7, 1_000_000])
@pytest.mark.parametrize("width", [12, 256, 6000])
def test_the_table_is_that_of_the_report(driver: Chrome, tmp_path: Path, width: int, devices: int) -> None:
    for percent, embeddings, tied in (("20", True, False), ("55", False, True), ("100", False, False)):
        selection = top_percent(model(width, tied=tied), percent, embeddings=embeddings)
        show(driver, tmp_path, selection, devices)
        sentence, rows = reported(selection, devices)
        assert table(driver) == rows
        assert driver.find_element("css selector", ".plan-counts").text == sentence
        unit = re.search("in ([GM]iB):", report.training_plan_of(selection, devices, None))
        assert unit is not None
        assert driver.find_element("id", "plan-meaning").text.startswith(unit[1])


def test_the_figures_are_those_of_what_is_chosen(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(model(900), "40")
    info = selection.result.info
    assert info is not None
    trained, everything = (memory.parameter_sizes(names, info) for names in (selection.trained(), info.parameters))
    show(driver, tmp_path, selection, 8)
    shardings = (memory.UNSHARDED, *memory.SHARDINGS)
    for optimizer, sharding, devices in itertools.product(memory.OPTIMIZERS, shardings, (3, 16)):
        type_devices(driver, str(devices))
        choose(driver, "optimizer", optimizer)
        choose(driver, "sharding", sharding.name)
        sizes = [memory.bytes_per_device(s, everything, optimizer, sharding, devices) for s in (trained, everything)]
        expected = [f"{size / 2**30:.3g} GiB" for size in sizes]
        assert figures(driver) == expected, (optimizer, sharding, devices)


def test_another_percentage_takes_other_memory(driver: Chrome, tmp_path: Path) -> None:
    result = model(40)
    show(driver, tmp_path, top_percent(result, "20"), 8)
    for percent in ("50", "84", "100"):
        driver.execute_script("change({percent: arguments[0]})", percent)
        drawn(driver)
        assert table(driver) == reported(top_percent(result, percent), 8)[1]


def test_sharding_takes_two_devices(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, top_percent(model(40), "20"))
    hint = driver.find_element("id", "plan-hint")
    assert "two or more devices" in hint.text
    choose(driver, "sharding", "ZeRO-3")
    assert value(driver, "devices") == "2"
    assert [row[0] for row in table(driver)] == ["", "one device", "ZeRO-2 of 2", "ZeRO-3 of 2", "FSDP of 2"]
    type_devices(driver, "1")
    assert value(driver, "sharding") == "one device"
    assert [row[0] for row in table(driver)] == ["", "one device"]
    type_devices(driver, "16")
    assert value(driver, "sharding") == "ZeRO-3"  # as before the 1, which was typed on the way, too
    choose(driver, "sharding", "one device")
    assert "Without sharding, each device holds everything" in hint.text


@pytest.mark.parametrize("text", ["0", "-3", "2.5", "1000001", "", "1e9"])
def test_what_is_no_number_of_devices_changes_nothing(driver: Chrome, tmp_path: Path, text: str) -> None:
    show(driver, tmp_path, top_percent(model(40), "20"), 8)
    before = table(driver)
    enter = "const f = document.getElementById('plan-devices'); f.focus(); f.value = arguments[0];"
    driver.execute_script(f"{enter} f.dispatchEvent(new Event('input'))", text)  # at once, as pasted
    drawn(driver)
    assert driver.find_element("id", "plan-hint").text == "A whole number from 1 to 1,000,000 is expected."
    field = driver.find_element("id", "plan-devices")
    assert field.get_attribute("aria-invalid") == "true"
    assert table(driver) == before
    driver.execute_script("change({percent: '50'})")
    drawn(driver)
    assert field.get_attribute("aria-invalid") == "true"  # still, since somebody is typing
    driver.find_element("id", "plan-optimizer").send_keys("")  # which takes the focus
    assert (field.get_attribute("aria-invalid"), field.get_attribute("value")) == ("false", "8")


def test_a_hint_goes_with_its_reason(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, top_percent(model(40), "20"), 8)
    choose(driver, "sharding", "FSDP")
    type_devices(driver, "0")
    drawn(driver)
    assert driver.find_element("id", "plan-hint").text
    type_devices(driver, "8")
    assert driver.find_element("id", "plan-hint").text == ""
    assert driver.find_element("id", "plan-devices").get_attribute("aria-invalid") == "false"


def test_a_format_for_adapters_has_no_plan(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, top_percent(model(40), "20"))
    for name, form in FORMATS.items():
        driver.execute_script("change({format: arguments[0]})", name)
        drawn(driver)
        assert driver.find_element("id", "plan-optimizer").is_displayed() != form.adapters
        assert (f"The list {name} is for adapters." in driver.find_element("id", "plan").text) == form.adapters


def test_without_sizes_the_report_says_so(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(replace(model(40), provenance=None), "20")
    show(driver, tmp_path, selection)
    assert report.training_plan_of(selection, 8, None) in driver.find_element("id", "plan").text
    assert not driver.find_element("id", "plan-optimizer").is_displayed()


def test_a_number_on_the_half_is_rounded_as_python_does(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, top_percent(model(40), "20"))
    for number in (100.5, 101.5, 1234.5, 99.95, 0.12345, 0.0625, 1e-7, 2.5, 100.0, 99.999):
        shown = driver.execute_script("return threeDigits(arguments[0])", number)
        assert shown == report._three_digits(number)
