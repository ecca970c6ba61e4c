"""The page with names from a stranger: nothing runs, nothing is loaded, and everything still works."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from spectrum.layer_types import MODULE_PATH
from spectrum.plots.page.page import PageSettings, page
from spectrum.records import LayerSnr, Parameter, ScanResult
from spectrum.selection.selection import top_percent
from spectrum.trainers.formats.formats import FORMATS
from tests.helpers.browser import allow_clipboard, browser, complaints, needs_browser, open_page
from tests.helpers.page_engine import rendered
from tests.helpers.records import PROVENANCE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

NAMES = {
    "script": "</script><script>window.ran = 1</script>",
    "image": "<img src=x onerror='window.ran = 1'>",
    "image from elsewhere": '"><img src="http://127.0.0.1:9/x.png">',
    "style": "</style></title><svg onload=window.ran=1>",
    "comment": "<!-- <script> -->",
    "end of data": "]]></script>",
    "place to fill": "{{data}}{{scripts}}{{title}}",
    "quotes": "'\"`${window.ran = 1}`\"'",
    "backslash": "\\u003cscript\\u003e \\",
    "entity": "&lt;b&gt;&amp;amp;",
    "address": "javascript:window.ran=1",
    "right to left": "\u202emodel\u2066 gnp.exe",
    "lines": "one\ntwo\r\nthree\u2028four\u2029five",
    "controls": "a\0b\x1b[31mc\x7f",
    "half a character": "a\ud800b\udc00",
    "long": "m" * 4000,
    "long word": "layer_" * 700,
    "spaces": "  a  b ",
    "prototype": "__proto__",
    "constructor": "constructor",
    "text of an object": "toString",
    "own property": "hasOwnProperty",
    "length": "length",
    "place": "0",
    "number": "1e5",
    "truth value": "no",
    "long path": "m" * 250,
}


def hostile(name: str) -> ScanResult:
    """A scan in which the model, its class, layers, types and parameters have a hostile name."""
    types = {name: [name], "up": [f"h.{i}.up" for i in range(3)], f"{name}.x": [f"h.{i}.{name}.x" for i in range(3)]}
    layers = tuple(
        LayerSnr(layer, layer_type, 1.0 + i, (1.0, 2.0 + i) if layer_type == name else None)
        for layer_type, names in types.items()
        for i, layer in enumerate(names)
    )
    parameters = {f"{layer.name}.weight": Parameter((4, 6), "bfloat16", module="Linear") for layer in layers}
    info = replace(
        PROVENANCE.info,
        model_class=name,
        parameters=parameters,
        layer_types=tuple(types),
        head=None,
        embedding=f"{name}.weight",
    )
    return ScanResult(name, layers, (f"left.{name}",), tuple(types), replace(PROVENANCE, info=info))


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser("--force-prefers-reduced-motion") as driver:
        allow_clipboard(driver)
        yield driver


def write(directory: Path, result: ScanResult, **settings: Any) -> Path:
    path = directory / "page.html"
    path.write_text(page(top_percent(result, "70"), PageSettings(None, **settings)), "utf-8")
    return path


def requests(driver: Chrome) -> list[str]:
    """The addresses of all that the browser has loaded since the page was opened, the page left out."""
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    loaded: list[str] = driver.execute_script(script)
    return loaded


def drawn(driver: Chrome) -> None:
    wait = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
    driver.execute_async_script(f"document.getElementById('list').scrollIntoView(); {wait}")


def use_everything(driver: Chrome) -> None:
    """Move, choose, sort, filter, unfold, focus: whatever shows names."""
    script = """
    for (const layer of page.scans[0].layers.name.keys()) { focusLayer(layer); layersPanel.reveal(layer); }
    for (const button of document.querySelectorAll("button")) if (button.checkVisibility()) button.click();
    for (const details of document.querySelectorAll("details")) details.open = true;
    for (const control of document.querySelectorAll("main input, main select")) {
      control.focus();
      control.dispatchEvent(new Event("input", {bubbles: true}));
      control.dispatchEvent(new Event("change", {bubbles: true}));
    }
    for (const place of document.querySelectorAll("main *")) {
      place.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
      place.dispatchEvent(new MouseEvent("mousemove", {bubbles: true}));
    }
    """
    driver.execute_script(script)
    drawn(driver)


def assert_harmless(driver: Chrome) -> None:
    """Nothing that a name says has run, or become an element, or was loaded."""
    assert driver.execute_script("return window.ran") is None
    assert driver.execute_script("return document.querySelectorAll('img, svg image, iframe, object, base').length") == 0
    assert requests(driver) == []
    assert complaints(driver) == []


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_hostile_name_is_only_text(driver: Chrome, tmp_path: Path, name: str) -> None:
    result = hostile(name)
    other = ScanResult(f"other {name}", result.layers[::-1], (), result.scanned, result.provenance)
    open_page(driver, write(tmp_path, result, other=other))
    assert_harmless(driver)
    rows = "return [...document.querySelectorAll('#layers tbody a')].map((link) => link.textContent)"
    layers = driver.execute_script(f"return JSON.stringify((() => {{ {rows} }})())")
    assert sorted(json.loads(layers)) == sorted(layer.name for layer in result.layers)
    use_everything(driver)
    assert_harmless(driver)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_with_a_hostile_name_lists_are_still_the_commands(driver: Chrome, tmp_path: Path, name: str) -> None:
    # Scans refuse other names of parameters than these. The name of a model may be any.
    is_path = MODULE_PATH.fullmatch(f"h.2.{name}.x")
    result = hostile(name) if is_path else replace(hostile("m"), model=name)
    open_page(driver, write(tmp_path, result))
    script = """
    const chosen = selectLayers(page.scans[0], state, typesOn(page.scans[0], page, state));
    return JSON.stringify(page.formats.map((form) => writtenList(page, chosen, form.name)));
    """
    for form, written in zip(FORMATS, json.loads(driver.execute_script(script)), strict=True):
        expected = rendered(top_percent(result, "70"), form)
        assert written.get("text") == expected["text"], form
        assert written.get("problem") == expected["problem"]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_a_link_to_a_hostile_name_finds_its_layer(driver: Chrome, tmp_path: Path, name: str) -> None:
    open_page(driver, write(tmp_path, hostile(name)))
    driver.execute_script("mapPanel.focusLayer = (layer) => { window.found = layer; }")
    links = driver.find_elements("css selector", "#layers tbody a")
    for link in links:
        driver.execute_script("delete window.found; arguments[0].click()", link)
        found = driver.execute_script("return JSON.stringify(page.scans[0].layers.name[window.found])")
        assert json.loads(found) == json.loads(
            driver.execute_script("return JSON.stringify(arguments[0].textContent)", link)
        )
        assert str(link.get_attribute("href")).split("#")[0] == driver.current_url.split("#")[0]


def test_the_policy_blocks_what_gets_in_all_the_same(driver: Chrome, tmp_path: Path) -> None:
    open_page(driver, write(tmp_path, hostile("m")))
    driver.execute_script("""
      window.blocked = [];
      document.addEventListener("securitypolicyviolation", (event) => window.blocked.push(event.effectiveDirective));
      const add = (tag, values) => document.body.append(Object.assign(document.createElement(tag), values));
      add("script", {textContent: "window.ran = 1"});
      add("script", {src: "http://127.0.0.1:9/x.js"});
      add("img", {src: "http://127.0.0.1:9/x.png"});
      add("iframe", {src: "http://127.0.0.1:9/"});
      add("link", {rel: "stylesheet", href: "http://127.0.0.1:9/x.css"});
      add("style", {textContent: "body { display: none }"});
      add("div", {innerHTML: "<b onclick='window.ran = 1' id=b>x</b><p style='color: red' id=p>x</p>"});
      document.getElementById("b").click();
      fetch("http://127.0.0.1:9/").catch(() => null);
      setTimeout(() => { window.evaluated = eval("window.ran = 1"); });
      try { new WebSocket("ws://127.0.0.1:9/"); } catch {}
    """)
    from selenium.webdriver.support.ui import WebDriverWait

    expected = {
        "script-src-elem",
        "script-src-attr",
        "script-src",
        "img-src",
        "frame-src",
        "style-src-elem",
        "style-src-attr",
        "connect-src",
    }
    WebDriverWait(driver, 10).until(lambda _: set(driver.execute_script("return window.blocked")) >= expected)
    assert driver.execute_script("return window.ran") is None
    assert driver.execute_script("return getComputedStyle(document.body).display") != "none"
    assert complaints(driver)  # of what was blocked


def test_the_page_itself_never_breaks_its_policy(driver: Chrome, tmp_path: Path) -> None:
    open_page(driver, write(tmp_path, hostile("m"), devices=4))
    use_everything(driver)
    assert complaints(driver) == []
    assert requests(driver) == []


FRAMES: Mapping[str, str] = {
    "sandboxed file": '<iframe id="frame" width="1000" height="800" sandbox="allow-scripts" src="page.html"></iframe>',
    "sandboxed text": '<iframe id="frame" width="1000" height="800" sandbox="allow-scripts" srcdoc="{}"></iframe>',
    "text": '<iframe id="frame" width="1000" height="800" srcdoc="{}"></iframe>',
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES.keys())
def test_the_page_works_in_a_notebooks_frame(driver: Chrome, tmp_path: Path, frame: str) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    result = hostile("m")
    text = write(tmp_path, result).read_text()
    around = tmp_path / "around.html"
    around.write_text(f"<!DOCTYPE html><textarea id=field></textarea>{frame.replace('{}', escape(text))}")
    open_page(driver, around)
    driver.switch_to.frame("frame")
    drawn(driver)
    button = driver.find_element("xpath", "//button[.='Copy the list']")
    button.click()
    said = button.find_element("xpath", "../span")
    WebDriverWait(driver, 10).until(lambda _: said.text)
    assert said.text == "Copied"
    driver.switch_to.default_content()
    field = driver.find_element("id", "field")
    field.send_keys(Keys.CONTROL, "v")
    assert driver.execute_script("return arguments[0].value", field) == top_percent(result, "70").yaml()
    driver.switch_to.frame("frame")
    driver.execute_script("window.found = []; mapPanel.focusLayer = (layer) => window.found.push(layer);")
    links = driver.find_elements("css selector", "a")
    for link in links:  # of which none may lead out of the frame's page
        driver.execute_script("arguments[0].click()", link)
    assert len(set(driver.execute_script("return window.found"))) == len(result.layers) < len(links)
    use_everything(driver)
    assert driver.execute_script("return document.querySelectorAll('#layers tbody tr').length") == len(result.layers)
    driver.switch_to.default_content()
    assert complaints(driver) == []
