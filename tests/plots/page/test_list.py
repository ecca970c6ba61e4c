"""The list to copy, in a real browser: what is copied and saved is the file that the command writes, byte for byte."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from typing import TYPE_CHECKING, Any

import pytest

import spectrum
from spectrum.plots.page.page import PageSettings, page
from spectrum.records import LayerSnr, ScanResult
from spectrum.scanning import scan_json
from spectrum.selection.selection import top_percent
from spectrum.trainers.formats.formats import FORMATS
from tests.helpers.browser import allow_clipboard, browser, complaints, needs_browser, open_page, retype
from tests.helpers.command import run
from tests.helpers.paths import PUBLISHED, TINY_LLAMA

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = [pytest.mark.slow, needs_browser]

PERCENTAGES = (
    *("0.9", "3", "6.25", "8", "12.5", "14.29", "20", "25", "30", "33.4", "37.50", "42", "50", "55.55", "62.5", "70"),
    *("83", "87.5", "96", "100"),
)
MODELS = {  # each with the file of its scan; None for the sample checkpoint
    str(TINY_LLAMA): None,
    "HuggingFaceTB/SmolLM-135M": "snr_results_HuggingFaceTB-SmolLM-135M.json",
    "openai/gpt-oss-120b": "snr_results_openai-gpt-oss-120b.json",
    "xai/grok": "snr_results_xai-grok.json",
}
NO_CLIPBOARD = "Object.defineProperty(navigator, 'clipboard', {value: undefined});"
NO_COPYING = NO_CLIPBOARD + "document.execCommand = () => false;"


@dataclass(frozen=True)
class Scanned:
    """A scan, the words of the command that reads it from the cache, and where that runs."""

    result: ScanResult
    words: tuple[str, ...]
    directory: Path

    def written(self, *options: str) -> bytes | str:
        """The file that the command writes, or its error."""
        place = self.directory / "lists"
        done = run(self.directory, *self.words[1:], *options, "--quiet", "--output-dir", place)
        if done.status:
            assert place not in Path(done.out).parents
            return done.err.splitlines()[-1].removeprefix("spectrum: error: ")
        return Path(done.out.removesuffix("\n")).read_bytes()


@pytest.fixture(scope="module", params=MODELS, ids=lambda name: Path(name).name)
def scanned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    directory, name = tmp_path_factory.mktemp("run"), str(request.param)
    words = ("spectrum", "--model-name", name, "--results-dir", str(directory))
    file = MODELS[name]
    if file is None:
        done = run(directory, *words[1:], "--yes", "--quiet")
        assert done.status == 0, done.err
        cached = directory / f"snr_results_{name.replace('/', '-').replace('_', '-')}.json"
        read = scan_json.read_scan(cached, cached.with_suffix(".meta.json"), name)
        assert read is not None
        return Scanned(read.result, words, directory)
    if not (PUBLISHED / file).is_file():
        pytest.skip("the published scans are not here")
    copy(PUBLISHED / file, directory)
    read = scan_json.read_scan(directory / file, directory / "no.meta.json", name)
    assert read is not None
    return Scanned(read.result, words, directory)


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the browser saves files."""
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads: Path) -> Iterator[Chrome]:
    with browser("--force-prefers-reduced-motion") as driver:
        allow_clipboard(driver)
        driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        yield driver


def show(driver: Chrome, directory: Path, result: ScanResult, words: tuple[str, ...] | None, percent: str) -> None:
    path = directory / "page.html"
    path.write_text(page(top_percent(result, percent), PageSettings(words)))
    open_page(driver, path)
    assert complaints(driver) == []


@contextmanager
def script_before(driver: Chrome, script: str) -> Iterator[None]:
    """A script that runs in every page before its own."""
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    try:
        yield
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def type_percent(driver: Chrome, percent: str) -> None:
    retype(driver, "percent", percent)
    drawn(driver)


def choose_format(driver: Chrome, name: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", "list-format")).select_by_value(name)
    drawn(driver)


def drawn(driver: Chrome) -> None:
    """Wait until the list in sight is that of the page's state."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.execute_script("document.getElementById('list').scrollIntoView()")
    driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    is_up_to_date = """
      const chosen = selectLayers(page.scans[0], state, typesOn(page.scans[0], page, state));
      return document.querySelector(".list-file").textContent === listFile(page, chosen, state.format);"""
    WebDriverWait(driver, 10).until(lambda _: driver.execute_script(is_up_to_date))


def button(driver: Chrome, label: str) -> WebElement:
    return driver.find_element("xpath", f"//section[@id='list']//button[normalize-space()='{label}']")


def press(driver: Chrome, label: str) -> str:
    """Press a button, and return what the page says then, if it says something."""
    from selenium.webdriver.support.ui import WebDriverWait

    pressed = button(driver, label)
    pressed.click()
    said = pressed.find_elements("xpath", "../span[@role='status']")[0]
    WebDriverWait(driver, 10).until(lambda _: said.text or not label.startswith("Copy"))
    return str(said.text)


def clipboard(driver: Chrome) -> bytes:
    script = "const done = arguments[0]; navigator.clipboard.readText().then(done, (error) => done(String(error)))"
    text: str = driver.execute_async_script(script)
    return text.encode()


def pasted(driver: Chrome) -> bytes:
    """What Ctrl+V inserts into a field."""
    from selenium.webdriver.common.keys import Keys

    driver.execute_script(
        "const field = document.createElement('textarea'); field.id = 'pasted'; document.body.prepend(field);"
        "scrollTo(0, 0); field.focus();"
    )
    field = driver.find_element("id", "pasted")
    field.send_keys(Keys.CONTROL, "v")
    text: str = driver.execute_script("const {value} = arguments[0]; arguments[0].remove(); return value", field)
    return text.encode()


def wait_for_file(driver: Chrome, file: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10).until(lambda _: file.is_file() and file.stat().st_size > 0)


def shown(driver: Chrome) -> str:
    text: str = driver.execute_script("return document.querySelector('.list-text').textContent")
    return text


def test_what_is_copied_is_the_commands_file_at_every_percentage(driver: Chrome, scanned: Scanned) -> None:
    show(driver, scanned.directory, scanned.result, scanned.words, "50")
    # The engine's own tests have every cut. What a large list adds is seen at a few.
    for percent in PERCENTAGES if scanned.result.info else PERCENTAGES[::5]:
        type_percent(driver, percent)
        assert press(driver, "Copy the list") == "Copied"
        expected = scanned.written("--top-percent", percent)
        assert clipboard(driver) == expected, percent
        assert isinstance(expected, bytes)
        assert shown(driver) == "".join(expected.decode().splitlines(keepends=True)[:1000])


@pytest.mark.parametrize("form", FORMATS)
def test_each_format_is_the_commands(driver: Chrome, scanned: Scanned, form: str) -> None:
    show(driver, scanned.directory, scanned.result, scanned.words, "50")
    choose_format(driver, form)
    for percent in ("12.5", "100") if scanned.result.info else ("12.5",):
        type_percent(driver, percent)
        expected = scanned.written("--top-percent", percent, "--format", form)
        if isinstance(expected, str):
            assert driver.find_element("css selector", "#list .problem").text == expected
            assert not driver.find_element("css selector", ".list-text").is_displayed()
            assert not button(driver, "Copy the list").is_enabled()
            assert not button(driver, "Save as a file").is_enabled()
        else:
            assert press(driver, "Copy the list") == "Copied"
            assert clipboard(driver) == expected, percent


def test_notes_are_those_of_the_command(driver: Chrome, scanned: Scanned) -> None:
    show(driver, scanned.directory, scanned.result, scanned.words, "50")
    noted = 0
    for form in FORMATS:
        choose_format(driver, form)
        notes = [item.text for item in driver.find_elements("css selector", ".list-notes li")]
        place = scanned.directory / "noted"
        options = ("--top-percent", "50", "--format", form, "--output-dir", place)
        said = run(scanned.directory, *scanned.words[1:], *options).out
        assert all(note in said for note in notes)
        noted += len(notes)
        use = driver.find_element("css selector", ".list-use").text
        for line in FORMATS[form].use.split("\n"):
            assert line.split("LIST")[0] in use
        assert "LIST" not in use
    if scanned.result.info is not None:
        assert noted > 0


@pytest.mark.parametrize("form", ["axolotl", "names", "json"])
def test_the_commands_copy_writes_the_same_list(driver: Chrome, scanned: Scanned, form: str, tmp_path: Path) -> None:
    show(driver, scanned.directory, scanned.result, scanned.words, "50")
    driver.execute_script("change({embeddings: false, off: new Set([1])})")
    choose_format(driver, form)
    type_percent(driver, "62.5")
    press(driver, "Copy the list")
    copied = clipboard(driver)
    file = driver.find_element("css selector", ".list-file").text
    assert press(driver, "Copy the command") == "Copied"
    command = clipboard(driver).decode()
    assert command == driver.find_element("css selector", ".command-text").text
    words = shlex.split(command)
    assert words[0] == "spectrum"
    done = run(tmp_path, *words[1:])
    assert done.status == 0, done.err
    assert (tmp_path / file).read_bytes() == copied


def test_the_saved_file_has_the_same_bytes(driver: Chrome, scanned: Scanned, downloads: Path) -> None:
    show(driver, scanned.directory, scanned.result, scanned.words, "20")
    drawn(driver)
    for form in ("axolotl", "json") if scanned.result.info else ("axolotl",):
        choose_format(driver, form)
        file = downloads / driver.find_element("css selector", ".list-file").text
        button(driver, "Save as a file").click()
        wait_for_file(driver, file)
        assert file.read_bytes() == scanned.written("--top-percent", "20", "--format", form)
        assert complaints(driver) == []


def models_in_memory() -> ScanResult:
    layers = [LayerSnr(f"h.{i}.{kind}", kind, 1 + (i * 5 % 8)) for kind in ("up", "down") for i in range(8)]
    return ScanResult("a model", tuple(layers), (), ("up", "down"), None)


def test_without_a_clipboard_the_browsers_own_command_copies(driver: Chrome, tmp_path: Path) -> None:
    result = models_in_memory()
    with script_before(driver, NO_CLIPBOARD):
        show(driver, tmp_path, result, None, "25")
        assert driver.execute_script("return navigator.clipboard") is None
        type_percent(driver, "38")
        pressed = button(driver, "Copy the list")
        assert press(driver, "Copy the list") == "Copied"
        assert driver.switch_to.active_element == pressed
        assert not driver.find_elements("css selector", ".copy-source")
        assert pasted(driver) == top_percent(result, "38").yaml().encode()
        press(driver, "Copy the line")
        assert pasted(driver).decode() == driver.find_element("css selector", ".command-text").text


def test_if_nothing_copies_the_text_is_selected_for_the_keys(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    result = models_in_memory()
    with script_before(driver, NO_COPYING):
        show(driver, tmp_path, result, None, "63")
        drawn(driver)
        assert "press Ctrl+C" in press(driver, "Copy the list")
        assert driver.switch_to.active_element.get_attribute("aria-label") == "Text of the list"
        ActionChains(driver).key_down(Keys.CONTROL).send_keys("c").key_up(Keys.CONTROL).perform()
        assert pasted(driver) == top_percent(result, "63").yaml().encode()


def test_the_box_is_reached_and_selected_by_keyboard(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    result = models_in_memory()
    show(driver, tmp_path, result, None, "50")
    drawn(driver)
    button(driver, "Save as a file").send_keys(Keys.TAB)
    assert driver.switch_to.active_element.get_attribute("aria-label") == "Text of the list"
    ActionChains(driver).key_down(Keys.CONTROL).send_keys("a").send_keys("c").key_up(Keys.CONTROL).perform()
    selected = driver.execute_script("return getSelection().toString()")
    assert selected.strip() == top_percent(result, "50").yaml().strip()  # and nothing else of the page
    assert clipboard(driver) == top_percent(result, "50").yaml().encode()


def test_a_part_that_is_selected_is_copied_as_it_is(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    show(driver, tmp_path, models_in_memory(), None, "50")
    drawn(driver)
    driver.execute_script(
        "const box = document.querySelector('.list-text'); box.focus();"
        "getSelection().setBaseAndExtent(box.firstChild, 2, box.firstChild, 9)"
    )
    ActionChains(driver).key_down(Keys.CONTROL).send_keys("c").key_up(Keys.CONTROL).perform()
    assert clipboard(driver) == b"frozen_"


def test_a_percentage_is_left_alone_while_it_is_typed(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, models_in_memory(), None, "50")
    field = driver.find_element("id", "percent")
    type_percent(driver, "12")
    driver.execute_script("change({percent: '13'}); arguments[0].focus(); arguments[0].value = '12.'", field)
    drawn(driver)
    assert field.get_attribute("value") == "12."
    field.send_keys("5")
    drawn(driver)
    assert driver.execute_script("return state.percent") == "12.5"


def test_a_long_list_is_copied_saved_and_printed_whole(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    layers = tuple(LayerSnr(f"h.{i}.w", "w", float(i % 977)) for i in range(9000))
    result = ScanResult("org/long", layers, (), ("w",), None)
    show(driver, tmp_path, result, None, "40")
    type_percent(driver, "90")
    expected = top_percent(result, "90").yaml()
    WebDriverWait(driver, 10).until(lambda _: shown(driver) == "".join(expected.splitlines(True)[:1000]))
    assert "7,104 more lines are copied and saved too." in driver.find_element("id", "list").text
    press(driver, "Copy the list")
    assert clipboard(driver) == expected.encode()
    copy_at_once = (
        "change({percent: '12.3'});"
        "const [button, done] = arguments;"
        "requestAnimationFrame(() => { button.click(); done(document.getElementById('list').innerText); })"
    )
    said = driver.execute_async_script(copy_at_once, button(driver, "Copy the list"))
    assert "7,104 more lines" in said  # the new list is not shown yet
    few = top_percent(result, "12.3").yaml()
    WebDriverWait(driver, 10).until(lambda _: clipboard(driver) == few.encode())
    type_percent(driver, "80")
    driver.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert shown(driver) == top_percent(result, "80").yaml()
    driver.execute_script("dispatchEvent(new Event('afterprint'))")
    assert shown(driver) == "".join(top_percent(result, "80").yaml().splitlines(True)[:1000])


def test_what_was_copied_stays_said_until_the_list_is_another(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    layers = tuple(LayerSnr(f"h.{i}.w", "w", float(i)) for i in range(6000))
    result = ScanResult("org/long", layers, (), ("w",), None)
    show(driver, tmp_path, result, None, "40")
    drawn(driver)
    copy_at_once = (
        "change({percent: '12.3'}); const [button, done] = arguments;"
        "requestAnimationFrame(() => { button.click(); setTimeout(done); })"
    )
    driver.execute_async_script(copy_at_once, button(driver, "Copy the list"))
    WebDriverWait(driver, 10).until(lambda _: shown(driver) == top_percent(result, "12.3").yaml())
    said = button(driver, "Copy the list").find_element("xpath", "../span[@role='status']")
    WebDriverWait(driver, 10).until(lambda _: said.text == "Copied")
    driver.execute_script("change({percent: '7'})")
    WebDriverWait(driver, 10).until(lambda _: said.text == "")


def test_a_list_that_is_out_of_sight_is_written_too(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    result = models_in_memory()
    show(driver, tmp_path, result, None, "50")
    driver.execute_script("document.getElementById('map').style.marginBottom = '3000px'")
    assert driver.execute_script("return document.getElementById('list').getBoundingClientRect().top > innerHeight")
    WebDriverWait(driver, 10).until(lambda _: shown(driver) == top_percent(result, "50").yaml())
    driver.execute_script("change({percent: '100'})")
    WebDriverWait(driver, 10).until(lambda _: shown(driver) == top_percent(result, "100").yaml())
    assert driver.execute_script("return scrollY") == 0


def test_formats_and_copies_leave_the_page_where_it_is(driver: Chrome, scanned: Scanned) -> None:
    show(driver, scanned.directory, scanned.result, scanned.words, "25")
    drawn(driver)
    place_of_choice = "return document.getElementById('list-format').getBoundingClientRect().top"
    place = driver.execute_script(place_of_choice)
    assert driver.execute_script("return scrollY") > 0
    for form in FORMATS:
        choose = "const s = document.getElementById('list-format'); s.value = arguments[0];"
        driver.execute_script(f"{choose} s.dispatchEvent(new Event('change'))", form)
        driver.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
        if button(driver, "Copy the list").is_enabled():
            driver.execute_script("arguments[0].click()", button(driver, "Copy the list"))
        assert driver.execute_script(place_of_choice) == pytest.approx(place, abs=1)


def test_nothing_to_train_is_said_in_place_of_the_list(driver: Chrome, tmp_path: Path) -> None:
    layers = (LayerSnr("lm_head", "lm_head", 1.0), *(LayerSnr(f"h.{i}.w", "w", 1.0 + i) for i in range(4)))
    result = ScanResult("org/m", layers, (), ("lm_head", "w"), None)
    show(driver, tmp_path, result, ("spectrum", "--model-name", "org/m"), "50")
    driver.execute_script("change({embeddings: false})")
    type_percent(driver, "7")
    problem = driver.find_element("css selector", "#list .problem").text
    assert problem.startswith("nothing to train: ")
    assert not button(driver, "Copy the list").is_enabled()
    assert not driver.find_element("css selector", ".command-text").is_displayed()
    type_percent(driver, "75")
    assert button(driver, "Copy the list").is_enabled()
    assert driver.find_element("css selector", "#list .problem").text == ""


def test_the_line_of_python_selects_the_same_from_a_model_in_memory(driver: Chrome, tmp_path: Path) -> None:
    result = models_in_memory()
    show(driver, tmp_path, result, None, "50")
    for changes in ({}, {"percent": "37.50"}, {"embeddings": False}, {"off": [0]}):
        script = "const news = arguments[0]; if (news.off) news.off = new Set(news.off); change(news)"
        driver.execute_script(script, changes)
        drawn(driver)
        press(driver, "Copy the list")
        copied = clipboard(driver).decode()
        press(driver, "Copy the line")
        known: dict[str, Any] = {"spectrum": spectrum, "result": result}
        exec(clipboard(driver).decode(), known)
        assert known["selection"].yaml() == copied


def test_every_control_has_a_name_and_what_was_copied_is_read_aloud(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, models_in_memory(), None, "50")
    drawn(driver)
    tree = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = ("button", "combobox", "textbox", "spinbutton", "slider", "link", "checkbox", "radio")
    nameless = [
        node
        for node in tree
        if node.get("role", {}).get("value") in roles and not node.get("name", {}).get("value", "").strip()
    ]
    assert json.dumps(nameless) == "[]"
    press(driver, "Copy the list")
    said = driver.find_element("xpath", "//section[@id='list']//*[@role='status'][text()='Copied']")
    assert said.is_displayed()
