"""The page's heat map in a real browser: what its cells show and say, and how they are pointed at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spectrum.layer_types import layer_number
from spectrum.plots.page.page import PageSettings, page
from spectrum.plots.table import COLOURS
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import Selection, top_percent
from tests.helpers.browser import complaints, needs_browser, stop_emulation
from tests.helpers.page_map import DEPTH, EXPERTS, cells, click, drawn, facts, mixed, names, selected, show, text, write

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

MIDDLE = ("attn.q", "layer 4")
OUTSIDE = "outside the stack"


@pytest.fixture(autouse=True)
def _as_on_a_desk(driver: Chrome) -> Iterator[None]:
    yield
    assert complaints(driver) == []
    stop_emulation(driver)


def place_of(driver: Chrome, row: str, column: str) -> str:
    """A selector of the cell at a place."""
    script = """const table = document.querySelector(".heat-map");
        const heads = [...table.tHead.rows[0].cells];
        const at = heads.findIndex((head) => (head.getAttribute("aria-label") ?? head.textContent) === arguments[1]);
        const rows = [...table.tBodies[0].rows];
        const line = rows.findIndex((row) => row.cells[0].getAttribute("aria-label") === arguments[0]);
        return `.heat-map tbody tr:nth-child(${line + 1}) > :nth-child(${at + 1})`;"""
    selector: str = driver.execute_script(script, row, column)
    return selector


def keys(driver: Chrome, *pressed: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*pressed).perform()
    drawn(driver)


def with_control(driver: Chrome, key: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    ActionChains(driver).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()
    drawn(driver)


def focused(driver: Chrome) -> str:
    """What has the focus, as a screen reader names it."""
    label: str = driver.execute_script("return document.activeElement.getAttribute('aria-label')")
    return label


def hover(driver: Chrome, selector: str) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    ActionChains(driver).move_to_element(driver.find_element(By.CSS_SELECTOR, selector)).perform()
    drawn(driver)


def words_of(selection: Selection, layer: LayerSnr) -> str:
    """The label that a cell of one layer should have."""
    scores = [other.snr for other in selection.result.by_type()[layer.layer_type]]
    rank, tied = 1 + sum(score > layer.snr for score in scores), scores.count(layer.snr)
    number = layer_number(layer.name, layer.layer_type)
    label = [layer.layer_type, OUTSIDE if number is None else f"layer {number}"]
    label.append(f"{f'median of {EXPERTS} experts, ' if layer.experts else ''}SNR {layer.snr:.4g}")
    label.append(f"rank {rank} of {len(scores)}{f' shared by {tied}' if tied > 1 else ''}")
    if layer.name in names(selection):
        return ", ".join([*label, "selected"])
    always = layer.name in selection.always_training()
    return ", ".join([*label, f"not selected{', but trains as input embedding or output head' if always else ''}"])


@pytest.mark.parametrize("percent", ["25", "60"])
def test_every_cell_says_all_of_its_layer_in_words(driver: Chrome, tmp_path: Path, percent: str) -> None:
    selection = top_percent(mixed(), percent)
    show(driver, tmp_path, selection)
    click(driver, ".tools button")  # norms too
    for button in range(2):
        driver.execute_script("document.querySelectorAll('.unfold')[arguments[0]].click()", button)
    shown = {label for cell in cells(driver).values() for label in [cell["label"]]}
    wanted = {words_of(selection, layer) for layer in selection.result.layers}
    assert len(wanted) == len(selection.result.layers)
    assert wanted <= shown
    marked = {
        cell["label"] for cell in cells(driver).values() if cell["selected"] == "true" and "rank" in cell["label"]
    }
    assert marked == {label for label in wanted if label.endswith(", selected")}


def test_colours_run_from_the_lowest_median_to_the_highest(driver: Chrome, tmp_path: Path) -> None:
    layers = tuple(LayerSnr(f"h.{i}.w", "w", snr) for i, snr in enumerate((0.01, 0.1, 1.0, 10.0)))
    show(driver, tmp_path, ScanResult("org/m", layers, (), ("w",), None))
    shown = [cells(driver)["w", f"layer {i}"]["colour"] for i in range(4)]
    # Four scores at equal steps of the logarithm: the ends, a third and two thirds of the sixteen colours.
    for colour, wanted in zip(shown, (COLOURS[0], COLOURS[5], COLOURS[10], COLOURS[15]), strict=True):
        assert colour == f"rgb({', '.join(str(int(wanted[at : at + 2], 16)) for at in (1, 3, 5))})"
    ticks = driver.execute_script(
        "return [...document.querySelectorAll('.ticks span')].map((tick) => tick.textContent)"
    )
    assert ticks == ["0.01", "0.1", "1", "10"]


def test_signs_stand_for_scores_without_a_colour(driver: Chrome, tmp_path: Path) -> None:
    layers = [LayerSnr(f"h.{i}.w", "w", snr) for i, snr in enumerate((0.0, 2.0, float("inf"), 0.5))]
    layers += [LayerSnr(f"h.{i}.ln", "ln", 1.0) for i in range(4)]
    show(driver, tmp_path, ScanResult("org/m", tuple(layers), (), ("ln", "w"), None))
    assert [cells(driver)["w", f"layer {i}"]["text"] for i in range(4)] == ["0", "", "∞", ""]
    assert "every layer of the type scores exactly 1" not in text(driver, ".legend")
    click(driver, ".tools button")
    assert [cells(driver)["ln", f"layer {i}"]["text"] for i in range(4)] == ["1"] * 4
    for meaning in ("above the bulk edge", "scores exactly 1", "no noise to divide by"):
        assert meaning in text(driver, ".legend")


def test_outlines_differ_and_have_a_word_in_the_legend(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(mixed(), "25")
    show(driver, tmp_path, selection)
    shown = cells(driver)
    for i in range(DEPTH):
        of_experts = [f"model.layers.{i}.moe.experts.{expert}.up" in names(selection) for expert in range(EXPERTS)]
        wanted = "chosen" if all(of_experts) else "some" if any(of_experts) else ""
        classes = set(shown["moe.experts.*.up", f"layer {i}"]["classes"].split())
        assert classes & {"chosen", "some", "always"} == ({wanted} if wanted else set())
    assert "always" in shown["lm_head", OUTSIDE]["classes"].split()
    styles = {}
    for name in ("chosen", "some", "always"):
        script = """const style = getComputedStyle(document.querySelector(`td.${arguments[0]}`), "::after");
            return [style.borderStyle, style.borderWidth, style.content]"""
        styles[name] = driver.execute_script(script, name)
    assert [styles["chosen"][0], styles["some"][0]] == ["solid", "dashed"]
    assert styles["always"][2] == '""'
    for meaning in ("selected", "some of the experts selected", "trains as input embedding or output head"):
        assert meaning in text(driver, ".legend")
    click(driver, "#embeddings")
    assert "always" not in cells(driver)["lm_head", OUTSIDE]["classes"].split()
    assert "output head, though not selected" not in text(driver, ".legend")


def test_details_have_all_that_is_known_of_a_layer(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(mixed(), "25")
    ranked = next(each for each in selection.types if each.layer_type == "attn.q")
    show(driver, tmp_path, selection)
    click(driver, place_of(driver, "attn.q", "layer 2"))
    layer = next(layer for layer in ranked.layers if layer.name == "model.layers.2.attn.q")
    place = ranked.layers.index(layer)
    found = facts(driver)
    assert text(driver, "#details h3") == layer.name
    assert found["SNR"] == f"{layer.snr:.4g}"
    assert found["Rank in its type"] == f"{place + 1} of {DEPTH}"
    assert found["Margin of its type's cut"] == ranked.describe_margin()
    said = re.fullmatch(r"(yes|no), from ([\d.]+) % on", found["Selected"])
    assert said is not None
    assert (said[1] == "yes") == (layer.name in names(selection))
    assert layer.name in names(top_percent(selection.result, said[2]))
    # It is the smallest such percentage: with a hundredth less, the layer is not selected.
    assert layer.name not in names(top_percent(selection.result, f"{float(said[2]) - 0.01:.2f}"))
    assert found["Shape"] == "8 \N{MULTIPLICATION SIGN} 8; bfloat16"
    assert found["Parameters"] == "64"
    edge = (
        "5 singular values above, 5 below; the nearest is 1.25 % away; moving the edge by 1 % varies the score by 30 %"
    )
    assert found["Bulk edge"] == f"{edge}; singular values crowd the edge: this score says little"
    click(driver, place_of(driver, "attn.q", "layer 3"))
    assert "crowd" not in facts(driver)["Bulk edge"]
    assert "varies the score by 6.25 %" in facts(driver)["Bulk edge"]


@pytest.mark.parametrize("order", ["lowest", "random:7"])
def test_details_tell_the_place_in_another_order(driver: Chrome, tmp_path: Path, order: str) -> None:
    selection = top_percent(mixed(), "25", order=order)
    show(driver, tmp_path, selection)
    click(driver, place_of(driver, "mlp.down", "layer 3"))
    ranked = next(each for each in selection.types if each.layer_type == "mlp.down").layers
    place = 1 + [layer.name for layer in ranked].index("model.layers.3.mlp.down")
    rank = 1 + sum(layer.snr > ranked[place - 1].snr for layer in ranked)
    assert facts(driver)["Rank in its type"] == f"{rank} of {DEPTH}; place {place} of {DEPTH} in the order {order}"
    assert ("Margin of its type's cut" in facts(driver)) == (order == "lowest")


def test_details_of_scans_that_say_little(driver: Chrome, tmp_path: Path) -> None:
    scan = mixed(sized=False)
    scan = replace(scan, layers=tuple(replace(layer, edge=None) for layer in scan.layers))
    show(driver, tmp_path, scan)
    click(driver, place_of(driver, *MIDDLE))
    assert facts(driver)["Shape"] == "not in this scan"
    assert {"Bulk edge", "Parameters"}.isdisjoint(facts(driver))
    assert facts(driver)["Rank in its type"].endswith(" shared by 2")  # layers 4 and 5 tie


def test_the_pointer_shows_details_and_the_focus_keeps_them(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed())
    assert facts(driver) == {}
    hover(driver, place_of(driver, *MIDDLE))
    assert text(driver, "#details h3") == "model.layers.4.attn.q"
    click(driver, place_of(driver, "mlp.down", "layer 6"))
    assert text(driver, "#details h3") == "model.layers.6.mlp.down"
    assert focused(driver).startswith("mlp.down, layer 6, ")
    hover(driver, place_of(driver, "attn.q", "layer 7"))
    assert text(driver, "#details h3") == "model.layers.7.attn.q"
    hover(driver, "h1")
    assert text(driver, "#details h3") == "model.layers.6.mlp.down"
    from selenium.webdriver import Keys

    keys(driver, Keys.ESCAPE)
    assert facts(driver) == {}
    assert focused(driver).startswith("mlp.down, layer 6, ")


def test_enter_reads_the_details_and_escape_returns(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    show(driver, tmp_path, mixed())
    click(driver, place_of(driver, *MIDDLE))
    keys(driver, Keys.ENTER)
    assert driver.execute_script("return document.activeElement.id") == "details"
    keys(driver, Keys.TAB, Keys.TAB)  # to the last button within
    assert focused(driver) == "Close the details"
    keys(driver, Keys.ESCAPE)
    assert focused(driver).startswith("attn.q, layer 4, ")
    assert facts(driver) == {}


def test_a_tap_shows_details_where_no_finger_is(driver: Chrome, tmp_path: Path) -> None:
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 1})
    show(driver, tmp_path, mixed())
    # The layers of lowest rows, at the lower edge of the screen, where the details come up.
    selector = place_of(driver, "mlp.down", "layer 1")
    driver.execute_script("document.querySelector(arguments[0]).scrollIntoView({ block: 'end' })", selector)
    middle = """const box = document.querySelector(arguments[0]).getBoundingClientRect();
        return { x: box.x + box.width / 2, y: box.y + box.height / 2 };"""
    point = driver.execute_script(middle, selector)
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    drawn(driver)
    assert text(driver, "#details h3") == "model.layers.1.mlp.down"
    assert facts(driver)["SNR"].startswith("0; no singular value lies above")
    boxes = """return [arguments[0], "#details"].map((each) =>
        document.querySelector(each).getBoundingClientRect().toJSON())"""
    cell, details = driver.execute_script(boxes, selector)
    assert cell["bottom"] <= details["top"]
    assert details["bottom"] <= 740


def test_the_keyboard_moves_within_one_stop(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import Keys

    show(driver, tmp_path, mixed())
    stops = "return [...document.querySelectorAll('.heat-map [tabindex=\"0\"]')].length"
    assert driver.execute_script(stops) == 1
    click(driver, place_of(driver, *MIDDLE))
    for key, wanted in (
        (Keys.ARROW_RIGHT, "attn.q, layer 5, "),
        (Keys.ARROW_DOWN, "mlp.down, layer 5, "),
        (Keys.ARROW_LEFT, "mlp.down, layer 4, "),
        (Keys.END, f"mlp.down, layer {DEPTH - 1}, "),
        (Keys.ARROW_RIGHT, f"mlp.down, layer {DEPTH - 1}, "),
        (Keys.ARROW_UP, f"attn.q, layer {DEPTH - 1}, "),
        (Keys.ARROW_UP, "model.embed, outside the stack, "),
        (Keys.ARROW_DOWN, f"attn.q, layer {DEPTH - 1}, "),  # it remembers the column
        (Keys.PAGE_DOWN, "lm_head, outside the stack, "),
        (Keys.PAGE_UP, "model.embed, outside the stack, "),
        (Keys.HOME, "select layers of model.embed"),
        (Keys.ARROW_DOWN, "select layers of attn.q"),
    ):
        keys(driver, key)
        assert focused(driver).startswith(wanted), key
        assert driver.execute_script(stops) == 1
    with_control(driver, Keys.END)
    assert focused(driver).startswith("lm_head, outside the stack, ")
    assert text(driver, "#details h3") == "lm_head"
    with_control(driver, Keys.HOME)
    assert focused(driver) == "select layers of model.embed"
    keys(driver, Keys.TAB)
    assert driver.execute_script("return document.activeElement.closest('.heat-map')") is None


def test_the_cell_with_the_focus_is_in_sight(driver: Chrome, tmp_path: Path) -> None:
    # Row names and counts stay where they are while cells scroll, and could hide them.
    show(driver, tmp_path, mixed(depth=150))
    click(driver, place_of(driver, "attn.q", "layer 0"))
    script = """const [key, seen] = [arguments[0], []];
        for (let i = 0; i < 150; i++) {
          const cell = document.activeElement.getBoundingClientRect();
          const at = document.elementFromPoint(cell.x + cell.width / 2, cell.y + cell.height / 2);
          seen.push(at === document.activeElement);
          document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        }
        return seen"""
    assert driver.execute_script(script, "ArrowRight") == [True] * 150
    assert focused(driver).startswith("attn.q, layer 149, ")
    assert driver.execute_script(script, "ArrowLeft") == [True] * 150
    assert focused(driver) == "select layers of attn.q"


def test_norms_are_folded_away_until_they_are_asked_for(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(mixed(), "25")
    show(driver, tmp_path, selection)
    rows = {row for row, _ in cells(driver)}
    assert {"norm", "model.norm"}.isdisjoint(rows)
    assert text(driver, ".tools button") == "Show 2 rows of equal scores"
    assert (
        text(driver, ".tools .muted")
        == f"Not shown: 2 rows of equal scores, as norms have; 2 of their {DEPTH + 1} layers selected."
    )
    click(driver, ".tools button")
    assert {row for row, _ in cells(driver)} == {*rows, "norm", "model.norm"}
    assert text(driver, ".tools button") == "Hide 2 rows of equal scores"


def test_a_model_of_nothing_but_norms_is_not_folded_away(driver: Chrome, tmp_path: Path) -> None:
    layers = tuple(LayerSnr(f"h.{i}.ln", "ln", 1.0) for i in range(3))
    show(driver, tmp_path, ScanResult("org/m", layers, (), ("ln",), None))
    assert len(cells(driver)) == 3
    assert driver.execute_script("return document.querySelector('.tools button').hidden")


def test_experts_that_are_modules_unfold_to_their_types(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(mixed(), "25")
    show(driver, tmp_path, selection)
    before = cells(driver)
    some = [f"model.layers.3.moe.experts.{expert}.up" in names(selection) for expert in range(EXPERTS)].count(True)
    scores = sorted(layer.snr for layer in selection.result.layers if re.search(r"\.3\.moe\.", layer.name))
    wanted = f"moe.experts.*.up, layer 3, median of {EXPERTS} experts, SNR {(scores[1] + scores[2]) / 2:.4g}, "
    assert before["moe.experts.*.up", "layer 3"]["label"].startswith(wanted)
    assert before["moe.experts.*.up", "layer 3"]["label"].removeprefix(wanted) in (
        {0: "not selected", EXPERTS: "selected"}.get(some, f"{some} of {EXPERTS} selected"),
    )
    click(driver, ".unfold")
    added = {place: cell for place, cell in cells(driver).items() if place not in before}
    assert len(added) == EXPERTS * DEPTH
    for expert in range(EXPERTS):
        name = f"moe.experts.{expert}.up"
        count = len(selection.layers()[name])
        script = "return document.querySelector(`th[aria-label='${arguments[0]}']`).closest('tr').innerText"
        assert f"{count} of {DEPTH}" in driver.execute_script(script, name)
    click(driver, ".unfold")
    assert cells(driver) == before


def test_a_stack_unfolds_to_the_scores_of_its_experts(driver: Chrome, tmp_path: Path) -> None:
    selection = top_percent(mixed(), "25")
    show(driver, tmp_path, selection)
    before = cells(driver)
    click(driver, "tr:has([aria-label='mixer.experts_up']) .unfold")
    added = {place: cell for place, cell in cells(driver).items() if place not in before}
    assert len(added) == EXPERTS * DEPTH
    for layer in selection.result.by_type()["mixer.experts_up"]:
        number = layer_number(layer.name, layer.layer_type)
        for expert, snr in enumerate(layer.experts or ()):
            is_selected = "selected" if layer.name in names(selection) else "not selected"
            wanted = f"mixer.experts_up, layer {number}, expert {expert}, SNR {snr:.4g}, its layer is {is_selected}"
            assert added[f"expert {expert}", f"layer {number}"]["label"] == wanted
    click(driver, place_of(driver, "expert 2", "layer 4"))
    assert text(driver, "#details h3") == "model.layers.4.mixer.experts_up, expert 2"
    experts = next(each.experts for each in selection.result.layers if each.name == "model.layers.4.mixer.experts_up")
    assert experts is not None
    rank = 1 + sum(snr > experts[2] for snr in experts)
    assert facts(driver)["Rank in its layer"] == f"{rank} of {EXPERTS} experts"


def test_no_cell_has_a_listener_of_its_own(driver: Chrome, tmp_path: Path) -> None:
    # A model of 58 stacks of 256 experts has 15,000 cells.
    show(driver, tmp_path, mixed())
    click(driver, ".unfold")
    for selector in ("td.cell", ".inner td.cell"):
        found = driver.execute_cdp_cmd("Runtime.evaluate", {"expression": f"document.querySelector('{selector}')"})
        listeners = driver.execute_cdp_cmd("DOMDebugger.getEventListeners", {"objectId": found["result"]["objectId"]})
        assert listeners["listeners"] == []


def test_rows_are_switched_off_and_on(driver: Chrome, tmp_path: Path) -> None:
    scan = mixed()
    show(driver, tmp_path, top_percent(scan, "25"))
    for row in ("attn.q", "moe.experts.*.up"):
        click(driver, f"[aria-label='select layers of {row}']")
    rest = tuple(layer for layer in scan.layers if not re.match(r"attn\.q|moe\.", layer.layer_type))
    wanted = top_percent(replace(scan, layers=rest), "25")
    assert selected(driver) == names(wanted)
    assert text(driver, ".counts").startswith(f"{len(names(wanted))} of {len(rest)} layers,")
    assert "off" in text(driver, "tr:has([aria-label='attn.q'])")
    assert driver.execute_script("return document.querySelectorAll('tr.row.off').length") == 2
    assert cells(driver)["attn.q", "layer 4"]["label"].endswith("not selected")
    click(driver, place_of(driver, *MIDDLE))
    assert facts(driver)["Selected"] == "no, since its type is switched off"
    driver.execute_script("[...document.querySelectorAll('.tools button')].at(-1).click()")
    drawn(driver)
    assert selected(driver) == []
    assert text(driver, ".report .problem") == "nothing to train: every layer type is switched off"
    driver.execute_script("[...document.querySelectorAll('.tools button')].at(-2).click()")
    drawn(driver)
    assert selected(driver) == names(top_percent(scan, "25"))
    assert text(driver, "#controls .report").startswith(text(driver, ".counts"))


@pytest.mark.parametrize("types", [["attn.q", "norm"], ["attn.q", "moe.experts.1.up", "moe.experts.3.up"]])
def test_a_selection_of_some_types_begins_with_the_others_off(driver: Chrome, tmp_path: Path, types: list[str]) -> None:
    selection = top_percent(mixed().only(types), "40")
    show(driver, tmp_path, selection)
    assert selected(driver) == names(selection)
    click(driver, "[aria-label='select layers of attn.q']")
    assert selected(driver) == names(top_percent(mixed().only(types[1:]), "40"))


@pytest.mark.parametrize("name", ["model.layers.7.mlp.down", "model.layers.2.norm", "model.layers.5.moe.experts.3.up"])
def test_a_link_leads_to_a_layer(driver: Chrome, tmp_path: Path, name: str) -> None:
    path = write(tmp_path, mixed())
    driver.get(f"{path.as_uri()}#layer={name}")
    assert text(driver, "#details h3") == name
    driver.get(f"{path.as_uri()}#layer=lm_head")  # the same page: only its address changes
    drawn(driver)
    assert text(driver, "#details h3") == "lm_head"


@pytest.mark.parametrize("hash_", ["layer=nothing", "layer=%", "layer", "map", "layer=__proto__"])
def test_a_link_to_nothing_shows_the_page_as_it_is(driver: Chrome, tmp_path: Path, hash_: str) -> None:
    driver.get(f"{write(tmp_path, mixed()).as_uri()}#{hash_}")
    assert facts(driver) == {}
    assert len(cells(driver)) > DEPTH


def test_details_lead_to_the_table_of_layers(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed())
    click(driver, place_of(driver, *MIDDLE))
    click(driver, ".card .button")
    assert "model.layers.4.attn.q" in driver.execute_script(
        "return document.activeElement.closest('#layers tr').innerText"
    )


def test_names_are_text_and_nothing_else(driver: Chrome, tmp_path: Path) -> None:
    hostile = '<img src=x onerror="document.title=1">'
    long = "very." * 60 + "long"
    layers = [LayerSnr(f"h.{i}.{name}", name, 1.5 + i) for name in (hostile, long) for i in range(3)]
    show(driver, tmp_path, ScanResult(f"org/{hostile}", tuple(layers), (hostile,), (hostile, long), None))
    assert driver.title == f"org/{hostile}: scores"
    assert driver.execute_script("return document.images.length") == 0
    assert cells(driver)[hostile, "layer 1"]["label"].startswith(f"{hostile}, layer 1, ")
    header = "tr:has([aria-label^='very.']) th"
    shown, whole = driver.execute_script(
        "const head = document.querySelector(arguments[0]); return [head.innerText, head.title]", header
    )
    assert whole == long
    assert "…" in shown
    assert shown.endswith("long")
    assert len(shown) < 90


def test_no_script_takes_the_name_of_another(tmp_path: Path) -> None:
    # All scripts share one scope: the second function of a name would replace the first.
    html = page(mixed(), PageSettings(None))
    declared = re.findall(r"^(?:async )?(?:function|const|let|class) (?:\[(.*?)\]|(\w+))", html, re.MULTILINE)
    found = [name.strip() for group, single in declared for name in (single or group).split(",")]
    assert len(found) > 100
    assert sorted(found) == sorted(set(found))
