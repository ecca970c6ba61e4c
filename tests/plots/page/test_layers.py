"""The page's table of all layers in a real browser: sorted, filtered, with links, as far as it goes."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spectrum.plots.page.page import PageSettings, page
from spectrum.records import LayerSnr, Parameter, ScanResult
from spectrum.selection.selection import Selection, top_percent
from tests.helpers.browser import complaints, needs_browser, open_page
from tests.helpers.records import PROVENANCE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

TYPES = {"mlp.down": (8, 24), "mlp.down_up": (24, 8), "attn.q": (4, 5, 6)}
DEPTH = 12


def mixture() -> Selection:
    """A model in which every layer differs in SNR, with a stack of experts, a tied head and a layer left out."""
    scored, parameters = [], {"model.embed.weight": Parameter((30, 8), "bfloat16", module="Embedding")}
    for i in range(DEPTH):
        for j, (layer_type, shape) in enumerate(TYPES.items()):
            name, snr = f"model.layers.{i}.{layer_type}", math.sin(1 + i * 7 + j * 3) + 1.1
            experts = tuple(snr + (e - 1) / 8 for e in range(3)) if len(shape) == 3 else None
            scored.append(LayerSnr(name, layer_type, math.inf if (i, j) == (3, 0) else snr, experts))
            own = name if experts else f"{name}.weight"
            parameters[own] = Parameter(shape, "bfloat16", module="Linear", layer_type=layer_type)
    parameters["lm_head.weight"] = Parameter((30, 8), "bfloat16", tied_to="model.embed.weight", module="Linear")
    scored.append(LayerSnr("lm_head", "lm_head", 0.5))
    scored.sort(key=lambda layer: layer.layer_type)
    info = replace(PROVENANCE.info, parameters=parameters, head="lm_head.weight", embedding="model.embed.weight")
    scan = ScanResult("org/m", tuple(scored), ("model.layers.12.mlp.down",), (), replace(PROVENANCE, info=info))
    return top_percent(scan, "25")


def wide(count: int) -> Selection:
    """A scan by another tool with many layers of one type."""
    scored = tuple(LayerSnr(f"h.{i}.w", "w", 1 + (i * 37 % count)) for i in range(count))
    return top_percent(ScanResult("org/wide", scored, (), ("w",), None), "10")


def show(driver: Chrome, tmp_path: Path, selection: Selection, address: str = "") -> None:
    path = tmp_path / "page.html"
    path.write_text(page(selection, PageSettings(None)))
    open_page(driver, path)
    assert complaints(driver) == []


def rows(driver: Chrome) -> list[dict[str, str]]:
    """What the table shows: the cells of each row by their titles."""
    script = """return [...document.querySelectorAll("#layers tbody tr")].map((row) => Object.fromEntries(
        [["Layer", row.querySelector("a").textContent],
         ...[...row.querySelectorAll("td")].map((cell) => [cell.dataset.title, cell.textContent])]));"""
    shown: list[dict[str, str]] = driver.execute_script(script)
    return shown


def names(driver: Chrome) -> list[str]:
    return [row["Layer"] for row in rows(driver)]


def press(driver: Chrome, title: str) -> None:
    """Click the button that has this text."""
    for button in driver.find_elements("css selector", "#layers button"):
        if button.text.strip() == title:
            driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button)
            button.click()
            return
    raise AssertionError(f"there is no button {title!r}")


def type_filter(driver: Chrome, text: str) -> str:
    """Filter by a text, and return what is said of the matches."""
    field = driver.find_element("css selector", "#layers-filter")
    field.clear()
    field.send_keys(text)
    found = driver.find_element("css selector", "#layers-found")
    assert found.get_attribute("role") == "status"
    return found.text


def sorted_by(driver: Chrome) -> list[tuple[str, str | None]]:
    heads = driver.find_elements("css selector", "#layers thead th")
    return [
        (head.text.strip(), order) for head in heads if (order := head.get_attribute("aria-sort")) not in (None, "none")
    ]


def test_each_row_says_what_the_scan_says(driver: Chrome, tmp_path: Path) -> None:
    selection = mixture()
    show(driver, tmp_path, selection)
    expected = []
    info = selection.result.info
    assert info is not None
    for ranked in selection.types:
        for i, layer in enumerate(ranked.layers):
            always = "always" if layer.name == "lm_head" else ""
            own = layer.name if layer.experts else f"{layer.name}.weight"
            expected.append(
                {
                    "Layer": layer.name,
                    "Type": ranked.layer_type,
                    "SNR": f"{layer.snr:.4g}",
                    "Rank": f"{i + 1} of {len(ranked.layers)}",
                    "Parameters": f"{info.num_elements([own]):,}",
                    "Trains": "selected" if i < ranked.num_selected else always,
                }
            )
    assert rows(driver) == expected
    assert sorted_by(driver) == [("Type", "ascending")]


def test_another_percentage_marks_other_layers(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixture())
    for percent, embeddings in (("9", True), ("75", True), ("100", False)):
        script = "change({percent: arguments[0], embeddings: arguments[1]}); requestAnimationFrame(arguments[2])"
        driver.execute_async_script(script, percent, embeddings)
        chosen = top_percent(mixture().result, percent, embeddings=embeddings)
        selected = {name for group in chosen.layers().values() for name in group}
        assert {row["Layer"] for row in rows(driver) if row["Trains"] == "selected"} == selected
        assert {row["Layer"] for row in rows(driver) if row["Trains"] == "always"} == set(chosen.always_training())


def test_a_title_sorts_by_its_column_and_a_second_time_the_other_way(driver: Chrome, tmp_path: Path) -> None:
    selection = mixture()
    show(driver, tmp_path, selection)
    layers, info = selection.result.layers, selection.result.info
    assert info is not None
    place = {name.removesuffix(".weight"): i for i, name in enumerate(info.parameters)}
    size = {name.removesuffix(".weight"): info.num_elements([name]) for name in info.parameters}
    rank = {layer.name: i for ranked in selection.types for i, layer in enumerate(ranked.layers)}
    types = [ranked.layer_type for ranked in selection.types]
    keys: dict[str, Any] = {
        "Layer": lambda layer: place[layer.name],
        "SNR": lambda layer: layer.snr,
        "Rank in type": lambda layer: rank[layer.name],
        "Parameters": lambda layer: size[layer.name],
        "Type": lambda layer: types.index(layer.layer_type),
    }
    for title, key in keys.items():
        first = title in ("SNR", "Parameters")  # whether the highest comes first
        for descending in (first, not first):
            press(driver, title)
            assert sorted_by(driver) == [(title, "descending" if descending else "ascending")]
            sign = -1 if descending else 1
            expected = sorted(layers, key=lambda x: (sign * key(x), types.index(x.layer_type), rank[x.name]))
            assert names(driver) == [layer.name for layer in expected], (title, descending)


@pytest.mark.parametrize(
    "text",
    [
        "mlp",
        "mlp.down",
        "MLP.Down",
        "layers.1",
        "mlp.*",
        "*.1?.*",
        "model.layers.[3-5].attn.q",
        "[!m]*",
        "down_up 7",
        "nothing",
        "[z-a]",
        "[",
    ],
)
def test_the_filter_takes_parts_of_names_words_and_shell_patterns(driver: Chrome, tmp_path: Path, text: str) -> None:
    show(driver, tmp_path, mixture())

    def matches(word: str, name: str) -> bool:
        return word in name or fnmatchcase(name, word)

    every = names(driver)
    kind = {row["Layer"]: row["Type"] for row in rows(driver)}
    words = text.lower().split()
    expected = [name for name in every if all(matches(word, name) or matches(word, kind[name]) for word in words)]
    said = type_filter(driver, text)
    assert names(driver) == expected
    assert said == f"{len(expected)} of {len(every)} match"
    assert complaints(driver) == []
    assert type_filter(driver, " ") == f"{len(every)} layers"


def test_a_rows_link_leads_to_the_layers_cell_in_the_map(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    show(driver, tmp_path, mixture())
    driver.execute_script("window.focused = []; mapPanel.focusLayer = (layer) => window.focused.push(layer);")
    link = driver.find_element("link text", "model.layers.7.mlp.down")
    link.click()
    WebDriverWait(driver, 10).until(lambda _: driver.current_url.endswith("#layer=model.layers.7.mlp.down"))
    layer = driver.execute_script("return page.scans[0].layers.name.indexOf('model.layers.7.mlp.down')")
    assert set(driver.execute_script("return window.focused")) == {layer}
    driver.execute_script("window.focused = []")
    link.click()  # though the address is this one already
    assert set(driver.execute_script("return window.focused")) == {layer}


def reveal(driver: Chrome, name: str) -> str:
    """Reveal a layer as the map does, and return the text of what has the focus then."""
    driver.execute_script("layersPanel.reveal(page.scans[0].layers.name.indexOf(arguments[0]))", name)
    marked = driver.find_element("css selector", ".layers-revealed a")
    assert driver.switch_to.active_element == marked
    return str(marked.text)


def test_a_layer_is_revealed_wherever_it_is(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixture())
    type_filter(driver, "attn")
    assert reveal(driver, "model.layers.9.attn.q") == "model.layers.9.attn.q"
    assert len(names(driver)) == DEPTH  # as filtered
    assert reveal(driver, "model.layers.9.mlp.down") == "model.layers.9.mlp.down"
    assert driver.find_element("css selector", "#layers-filter").get_attribute("value") == ""
    show(driver, tmp_path, wide(5000))
    ranked = [layer.name for layer in wide(5000).types[0].layers]
    for place in (0, 199, 200, 1999, 2000, 4999):
        assert reveal(driver, ranked[place]) == ranked[place]
        assert len(names(driver)) <= 2000


def test_the_first_rows_are_shown_and_a_button_shows_more(driver: Chrome, tmp_path: Path) -> None:
    selection = wide(450)
    show(driver, tmp_path, selection)
    ranked = [layer.name for layer in selection.types[0].layers]
    assert names(driver) == ranked[:200]
    press(driver, "Show 200 more of 250")
    assert names(driver) == ranked[:400]
    assert driver.switch_to.active_element.text == ranked[200]
    press(driver, "Show 50 more of 50")
    assert names(driver) == ranked
    assert not [button for button in driver.find_elements("css selector", "#layers button") if "more" in button.text]
    assert "Parameters" not in rows(driver)[0]  # another tool's scan does not know them


def test_a_stack_unfolds_to_the_scores_of_its_experts(driver: Chrome, tmp_path: Path) -> None:
    selection = mixture()
    show(driver, tmp_path, selection)
    stacks = [layer for layer in selection.result.layers if layer.experts]
    buttons = driver.find_elements("css selector", ".layers-unfold")
    assert [button.text for button in buttons] == ["3 experts"] * len(stacks)
    row = buttons[0].find_element("xpath", "ancestor::tr")
    layer = next(each for each in stacks if each.name == row.find_element("tag name", "a").text)
    assert buttons[0].get_attribute("aria-expanded") == "false"
    buttons[0].click()
    assert buttons[0].get_attribute("aria-expanded") == "true"
    items = row.find_elements("css selector", "li")
    assert [item.text for item in items] == [f"{i}: {float(f'{x:.4g}'):.4g}" for i, x in enumerate(layer.experts or ())]
    buttons[0].click()
    assert not items[0].is_displayed()


def test_layers_that_have_no_score_are_named(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixture())
    note = driver.find_element("css selector", ".layers-left-out")
    assert re.search("1 layer left out.*NaN", note.text)
    assert "model.layers.12.mlp.down" in str(note.get_attribute("textContent"))


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_the_table_fits_every_width(driver: Chrome, tmp_path: Path, width: int) -> None:
    metrics = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        show(driver, tmp_path, mixture())
        box = driver.execute_script(
            "const p = document.getElementById('layers'); return [p.scrollWidth, p.clientWidth]"
        )
        assert box[0] <= box[1]
        press(driver, "SNR")  # whatever the width, there are buttons to sort
        assert sorted_by(driver) == [("SNR", "descending")]
        assert driver.find_element("css selector", "#layers tbody tr td[data-title=Trains]").text == "selected"
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_table_is_not_printed(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixture())
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not driver.find_element("id", "layers").is_displayed()
        assert driver.find_element("id", "list").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
