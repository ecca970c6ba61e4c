"""What anybody can see and use of the page: on a phone, in the dark, on paper, by keyboard, with a screen reader."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spectrum.plots.table import COLOURS
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import top_percent
from tests.helpers.browser import browser, complaints, needs_browser, stop_emulation
from tests.helpers.page_map import DEPTH, cells, click, drawn, mixed, show, text

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

LEAST_CONTRAST = 4.5  # of text, by WCAG 2.2, level AA
A4_WIDTH = round((297 - 2 * 10) / 25.4 * 96)  # CSS pixels of A4 in landscape, within the margins of the page's style


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as driver:
        yield driver


@pytest.fixture(autouse=True)
def _as_on_a_desk(driver: Chrome) -> Iterator[None]:
    yield
    assert complaints(driver) == []
    stop_emulation(driver)


def emulate(driver: Chrome, media: str = "", **features: str) -> None:
    """A kind of medium, and what its user prefers, with `_` for `-`."""
    wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": wanted})


def resize(driver: Chrome, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    drawn(driver)


def unfold_all(driver: Chrome) -> None:
    """Show everything that the map can show."""
    click(driver, ".tools button")
    for place in range(len(driver.execute_script("return [...document.querySelectorAll('.unfold')].map(() => 0)"))):
        driver.execute_script("document.querySelectorAll('.unfold')[arguments[0]].click()", place)
    click(driver, "td.cell")


def nested() -> ScanResult:
    """A model with names that are longer than a phone is wide."""
    types = [f"vision_tower.encoder.a_module_with_a_very_long_name.{'deeper.' * 9}{name}" for name in ("query", "key")]
    layers = [LayerSnr(f"model.layers.{i}.{name}", name, 1.0 + i) for name in types for i in range(40)]
    return ScanResult(f"organisation/{'a-very-long-name-' * 8}7b", tuple(layers), (), tuple(types), None)


@pytest.mark.parametrize("width", [320, 360, 640, 1280])
@pytest.mark.parametrize("kind", ["deep", "long names", "two scans"])
def test_the_page_never_scrolls_sideways(driver: Chrome, tmp_path: Path, width: int, kind: str) -> None:
    # 640 is what a window of 1,280 has at a zoom of 200 percent.
    resize(driver, width, 740)
    if kind == "long names":
        show(driver, tmp_path, nested())
        click(driver, "td.cell")
    else:
        other = mixed("org/trained", depth=126, seed=5) if kind == "two scans" else None
        show(driver, tmp_path, mixed(depth=126), other=other)
        unfold_all(driver)
    assert driver.execute_script("return document.documentElement.scrollWidth") == width
    # What is wider than the page scrolls in a box of its own.
    boxes = "return [...document.querySelectorAll('.heat-box')].every((box) => box.scrollWidth >= box.clientWidth)"
    assert driver.execute_script(boxes)


@pytest.mark.parametrize(("depth", "fits"), [(6, True), (32, True), (60, True), (126, False)])
def test_cells_shrink_before_the_map_scrolls(driver: Chrome, tmp_path: Path, depth: int, fits: bool) -> None:
    resize(driver, 1280, 900)
    show(driver, tmp_path, mixed(depth=depth))
    script = """const box = document.querySelector(".heat-box");
        return [box.scrollWidth <= box.clientWidth, document.querySelector("td.cell:not(.outside)").offsetWidth];"""
    has_room, width = driver.execute_script(script)
    assert has_room == fits
    assert 10 <= width <= 48


def test_row_names_stay_in_sight(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed(depth=150))
    script = """const box = document.querySelector(".heat-box");
        box.scrollLeft = arguments[0];
        return document.querySelector("tbody th").getBoundingClientRect().left - box.getBoundingClientRect().left"""
    assert driver.execute_script(script, 0) == pytest.approx(driver.execute_script(script, 900), abs=1.5)
    assert driver.execute_script("return document.querySelector('.heat-box').scrollLeft") > 100


CONTRASTS = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const parse = (colour) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = colour;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = ([r, g, b, a], below) => [r, g, b].map((value, i) => value * a + below[i] * (1 - a));
const backdrop = (element) => {
  if (element === null) return [255, 255, 255];
  return over(parse(getComputedStyle(element).backgroundColor), backdrop(element.parentElement));
};
const light = (colour) => {
  const [r, g, b] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
};
const found = [];
for (const element of document.querySelectorAll("body *:not(script):not(option)")) {
  const texts = [...element.childNodes].filter((node) => node.nodeType === 3);
  const own = texts.map((node) => node.textContent.trim()).join("");
  if (!own || !element.checkVisibility({ visibilityProperty: true }) || element.disabled) continue;
  const behind = backdrop(element);
  const [a, b] = [light(over(parse(getComputedStyle(element).color), behind)), light(behind)];
  found.push([own.slice(0, 40), Math.max(a, b) / Math.min(a, b)]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(driver: Chrome, tmp_path: Path, scheme: str) -> None:
    emulate(driver, prefers_color_scheme=scheme)
    # Signs of a comparison stand on cells of every colour.
    show(driver, tmp_path, mixed(), other=mixed("org/trained", seed=5))
    unfold_all(driver)
    click(driver, "[aria-label='select layers of attn.q']")
    driver.execute_script("document.querySelector('#percent').value = 'x'")
    driver.execute_script("document.querySelector('#percent').dispatchEvent(new Event('input'))")
    contrasts = driver.execute_script(CONTRASTS)
    assert len(contrasts) > 100
    assert [each for each in contrasts if each[1] < LEAST_CONTRAST] == []


def test_the_dark_page_is_dark(driver: Chrome, tmp_path: Path) -> None:
    script = "return getComputedStyle(document.body).backgroundColor"
    brightness = {}
    for scheme in ("light", "dark"):
        emulate(driver, prefers_color_scheme=scheme)
        show(driver, tmp_path, mixed())
        brightness[scheme] = sum(map(int, re.findall(r"\d+", driver.execute_script(script))))
    assert brightness["dark"] < 150 < 600 < brightness["light"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_outline_is_seen_on_every_colour(driver: Chrome, tmp_path: Path, scheme: str) -> None:
    emulate(driver, prefers_color_scheme=scheme)
    show(driver, tmp_path, top_percent(mixed(), "25"))
    style = """const style = getComputedStyle(document.querySelector("td.chosen"), "::after");
        return [style.borderTopColor, style.boxShadow]"""
    border, shadow = driver.execute_script(style)
    lines = [tuple(map(int, re.findall(r"\d+", each)[:3])) for each in (border, shadow)]
    # Non-text needs a contrast of 3, by WCAG 2.2: one of the two lines has it.
    assert _contrast(*lines) >= 3
    for colour in COLOURS:
        cell = tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))
        assert max(_contrast(cell, line) for line in lines) >= 3, colour


def _contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    def light(colour: tuple[int, ...]) -> float:
        parts = [each / 255 / 12.92 if each <= 10 else ((each / 255 + 0.055) / 1.055) ** 2.4 for each in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05

    return max(light(one), light(other)) / min(light(one), light(other))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("depth", [6, 32, 126])
def test_the_map_fits_on_paper(driver: Chrome, tmp_path: Path, depth: int, scheme: str) -> None:
    resize(driver, A4_WIDTH, 700)
    emulate(driver, "print", prefers_color_scheme=scheme)
    show(driver, tmp_path, mixed(depth=depth))
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    table, page = driver.execute_script(
        "return [document.querySelector('.heat-map').offsetWidth, document.documentElement.scrollWidth]"
    )
    assert table <= A4_WIDTH
    assert page <= A4_WIDTH
    for selector in ("#slider", "#percent", ".tools button", ".head input", ".unfold", "#details", ".skip-link"):
        shown = "return document.querySelector(arguments[0]).checkVisibility()"
        assert not driver.execute_script(shown, selector), selector
    for selector in (".counts", ".heat-map", ".legend"):
        assert driver.execute_script("return document.querySelector(arguments[0]).checkVisibility()", selector)
    style = driver.execute_script(
        "const s = getComputedStyle(document.querySelector('td.cell')); return s.printColorAdjust"
    )
    assert style == "exact"
    assert driver.execute_script("return getComputedStyle(document.body).color") == "rgb(27, 31, 36)"


def test_the_page_can_be_printed(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed())
    printed: dict[str, str] = driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    sheets = base64.b64decode(printed["data"])
    width, height = map(float, re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", sheets)[0])
    assert width > height


def test_whatever_can_be_used_has_a_name(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed(), other=mixed("org/trained", seed=5))
    unfold_all(driver)
    driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes: list[dict[str, Any]] = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    driver.execute_cdp_cmd("Accessibility.disable", {})
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert roles.count("grid") == 2
    assert {"gridcell", "rowheader", "columnheader", "slider", "heading", "main"} <= set(roles)
    focusable = [
        node
        for node in nodes
        if not node["ignored"]
        and node["role"]["value"] != "RootWebArea"
        and any(each["name"] == "focusable" and each["value"]["value"] for each in node.get("properties", []))
    ]
    assert len(focusable) > 30
    unnamed = [node["role"]["value"] for node in focusable if not node.get("name", {}).get("value", "").strip()]
    assert unnamed == []
    cells_of_map = [
        node["name"]["value"] for node in nodes if node["role"]["value"] == "gridcell" and "SNR" in str(node)
    ]
    assert len(cells_of_map) > 4 * DEPTH
    assert all(", SNR " in name for name in cells_of_map)


def test_tab_leads_through_the_page_and_out_of_it(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    show(driver, tmp_path, mixed(depth=2))
    seen: list[str] = []
    script = """const at = document.activeElement;
        const place = [...document.querySelectorAll("*")].indexOf(at);
        return at === document.body ? "" : `${place} ${at.id || at.className}`"""
    for _ in range(150):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        seen.append(driver.execute_script(script))
        if len(seen) > 1 and (seen[-1] == "" or seen[-1] in seen[:-1]):
            break
    else:
        pytest.fail("Tab never left the page")
    places = [int(each.split()[0]) for each in seen[:-1]]
    assert seen[0].endswith(" skip-link")
    assert places == sorted(places)
    in_map = (
        "return [...document.querySelectorAll('.heat-map [tabindex=\"0\"], .heat-map input:not([tabindex])')].length"
    )
    assert driver.execute_script(in_map) == 1


def test_the_page_says_what_it_is(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed(), other=mixed("org/trained", seed=5))
    assert driver.execute_script("return document.documentElement.lang") == "en"
    assert text(driver, "h1") == "org/mixed"
    levels = driver.execute_script(
        "return [...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    titled = """return [...document.querySelectorAll("main > section")].every((section) =>
        document.getElementById(section.getAttribute("aria-labelledby")).tagName === "H2")"""
    assert driver.execute_script(titled)
    click(driver, ".skip-link")
    assert driver.execute_script("return location.hash") == "#map"


def test_targets_are_large_enough_for_a_finger(driver: Chrome, tmp_path: Path) -> None:
    small = """const targets = "#controls button, #controls input, #map button, td.cell, th label";
        return [...document.querySelectorAll(targets)].filter((each) => each.checkVisibility())
        .map((each) => [each, (each.closest("label") ?? each).getBoundingClientRect()])
        .filter(([, box]) => Math.min(box.width, box.height) < 23.5).map(([each]) => each.outerHTML.slice(0, 90))"""
    resize(driver, 360, 740)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 1})
    show(driver, tmp_path, mixed())
    click(driver, "td.cell")
    # What is above another target cannot be tapped either.
    apart = """return [...document.querySelectorAll("#map button, th label, th button")]
        .filter((each) => each.checkVisibility()).every((each) => {
          each.scrollIntoView({ block: "center", behavior: "instant" });
          const { x, y, width, height } = each.getBoundingClientRect();
          return each.contains(document.elementFromPoint(x + width / 2, y + height / 2));
        })"""
    assert driver.execute_script(apart)
    assert driver.execute_script("return matchMedia('(pointer: coarse)').matches")
    assert driver.execute_script(small) == []


def test_forced_colours_leave_colours_of_scores_and_outlines(driver: Chrome, tmp_path: Path) -> None:
    emulate(driver, forced_colors="active")
    show(driver, tmp_path, top_percent(mixed(), "25"))
    shown = "return [...document.querySelectorAll('td.cell')].map((cell) => getComputedStyle(cell).backgroundColor)"
    assert driver.execute_script(shown) == [cell["colour"] or "rgba(0, 0, 0, 0)" for cell in cells(driver).values()]
    gap = "return getComputedStyle(document.querySelector('td.outside')).borderInlineEndColor"
    assert driver.execute_script(gap) == driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    outline = "return getComputedStyle(document.querySelector('td.chosen'), '::after').borderTopStyle"
    assert driver.execute_script(outline) == "solid"
    button = "const {color, backgroundColor} = getComputedStyle(arguments[0]); return [color, backgroundColor]"
    system = """const probe = document.body.appendChild(document.createElement("i"));
        Object.assign(probe.style, {color: "HighlightText", backgroundColor: "Highlight"});
        const {color, backgroundColor} = getComputedStyle(probe); return [color, backgroundColor]"""
    assert driver.execute_script(button, driver.find_element("css selector", ".button.main")) == (
        driver.execute_script(system)
    )


def test_the_map_is_skipped_to_as_often_as_asked(driver: Chrome, tmp_path: Path) -> None:
    emulate(driver, prefers_reduced_motion="reduce")
    show(driver, tmp_path, mixed())
    resize(driver, 800, 500)
    for _ in range(2):
        driver.execute_script("scrollTo(0, 0)")
        driver.execute_script("document.querySelector('.skip-link').focus()")
        click(driver, ".skip-link")
        assert driver.execute_script("return Math.abs(document.querySelector('#map').getBoundingClientRect().top)") < 40
        assert driver.execute_script("return document.activeElement.id") == "map"


def test_nothing_glides_for_those_who_prefer_less_motion(driver: Chrome, tmp_path: Path) -> None:
    behaviour = "return getComputedStyle(document.documentElement).scrollBehavior"
    for preference, wanted in (("no-preference", "smooth"), ("reduce", "auto")):
        emulate(driver, prefers_reduced_motion=preference)
        show(driver, tmp_path, mixed(depth=2))
        assert driver.execute_script(behaviour) == wanted
