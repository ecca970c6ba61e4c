"""The page's slider, field, scale and counts in a real browser: what they select is what the command selects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from spectrum.errors import SelectionError
from spectrum.records import ScanResult
from spectrum.selection import comparison
from spectrum.selection.selection import top_params, top_percent
from tests.helpers.browser import browser, complaints, needs_browser
from tests.helpers.page_map import DEPTH, cells, choose, click, drawn, mixed, names, selected, show, state, text

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

PARAMS = "[name=scale][value=params]"
MINUS = "\N{MINUS SIGN}"
TYPES = "[name=scale][value=types]"


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    with browser() as driver:
        yield driver


@pytest.fixture(autouse=True)
def _without_complaints(driver: Chrome) -> Iterator[None]:
    yield
    assert complaints(driver) == []


def num_steps(driver: Chrome) -> int:
    return 1 + int(driver.execute_script("return document.querySelector('#slider').max"))


def field(driver: Chrome) -> str:
    value: str = driver.execute_script("return document.querySelector('#percent').value")
    return value


def slid(driver: Chrome) -> str:
    """What a screen reader says of the slider."""
    value: str = driver.execute_script("return document.querySelector('#slider').getAttribute('aria-valuetext')")
    return value


def counts(scan: ScanResult, percent: str, embeddings: bool = True) -> str:
    """The line that says how much trains."""
    selection = top_percent(scan, percent, embeddings=embeddings)
    assert scan.info is not None
    trained, total = map(scan.info.num_elements, (selection.trained(), scan.info.parameters))
    share = f"{trained:,} of {total:,} parameters train ({100 * trained / total:.3g} percent)"
    return f"{len(names(selection))} of {len(scan.layers)} layers, top {percent} percent of each layer type: {share}"


def test_the_slider_has_every_distinct_cut(driver: Chrome, tmp_path: Path) -> None:
    scan = mixed()
    show(driver, tmp_path, scan)
    found = []
    for step in range(num_steps(driver)):
        choose(driver, "#slider", str(step))
        percent = field(driver)
        assert text(driver, ".counts") == counts(scan, percent)
        assert slid(driver) == f"{percent} percent of each layer type"
        found.append(selected(driver))
        assert found[-1] == names(top_percent(scan, percent))
    # Every selection that some percentage makes, in order: types have 1, 9 or 10 layers here.
    every = [names(top_percent(scan, f"{tenths / 10:.1f}")) for tenths in range(1, 1001)]
    assert found == [group for i, group in enumerate(every) if group and (i == 0 or group != every[i - 1])]


def test_arrow_keys_move_the_slider_by_one_cut(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.common.by import By

    scan = mixed()
    show(driver, tmp_path, top_percent(scan, "25"))
    before = selected(driver)
    driver.find_element(By.ID, "slider").send_keys(Keys.ARROW_RIGHT)
    drawn(driver)
    assert len(selected(driver)) > len(before)
    assert field(driver) == "34"  # three of nine layers
    driver.find_element(By.ID, "slider").send_keys(Keys.ARROW_LEFT)
    drawn(driver)
    assert selected(driver) == before


@pytest.mark.parametrize("percent", ["12.5", ".5", "100", "33.333333333333333333333", "11.2"])
def test_any_percentage_can_be_typed(driver: Chrome, tmp_path: Path, percent: str) -> None:
    scan = mixed()
    show(driver, tmp_path, scan)
    choose(driver, "#percent", f" {percent} % ")
    assert state(driver)["percent"] == percent
    assert selected(driver) == names(top_percent(scan, percent))
    assert text(driver, ".counts") == counts(scan, percent)


@pytest.mark.parametrize("typed", ["", "0", "101", "abc", "1e1", "-5", "25 percent", "1,5,5", "1" * 30, "<b>"])
def test_a_wrong_percentage_gets_a_line_and_changes_nothing(driver: Chrome, tmp_path: Path, typed: str) -> None:
    show(driver, tmp_path, top_percent(mixed(), "25"))
    before = state(driver), text(driver, ".counts"), cells(driver)
    choose(driver, "#percent", typed)
    assert (state(driver), text(driver, ".counts"), cells(driver)) == before
    line = "A number over 0 and at most 100 is expected, such as 25 or 12.5, not "
    assert text(driver, "#percent-problem").startswith(line)
    assert driver.execute_script("return document.querySelector('#percent').ariaInvalid") == "true"
    choose(driver, "#percent", "25")  # as before
    assert text(driver, "#percent-problem") == ""
    assert driver.execute_script("return document.querySelector('#percent').ariaInvalid") == "false"


def test_the_first_digits_of_a_wrong_percentage_select_nothing(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.common.by import By

    show(driver, tmp_path, top_percent(mixed(), "25"))
    before = text(driver, ".counts")
    element = driver.find_element(By.ID, "percent")
    element.send_keys(Keys.CONTROL, "a")
    for key in "750":  # 75 is a percentage
        element.send_keys(key)
        drawn(driver)
    assert (state(driver)["percent"], text(driver, ".counts")) == ("25", before)
    assert field(driver) == "750"
    assert text(driver, "#percent-problem").startswith("A number over 0 and at most 100 is expected")


def test_a_comma_is_taken_for_the_point(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed())
    choose(driver, "#percent", "12,5")
    assert state(driver)["percent"] == "12.5"
    assert text(driver, "#percent-problem") == ""


def test_all_types_can_be_switched_off_more_than_once(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    show(driver, tmp_path, mixed())
    on, off = driver.find_elements(By.CSS_SELECTOR, ".switches button")
    for _ in range(2):
        off.click()
        drawn(driver)
        assert text(driver, ".counts").startswith("0 of ")
        on.click()
        drawn(driver)
        assert not text(driver, ".counts").startswith("0 of ")


def test_typing_is_not_disturbed(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.common.by import By

    show(driver, tmp_path, top_percent(mixed(), "25"))
    element = driver.find_element(By.ID, "percent")
    element.send_keys(Keys.CONTROL, "a")
    element.send_keys("1", "2", ".", "5", " ", "%")
    drawn(driver)
    assert field(driver) == "12.5 %"
    assert state(driver)["percent"] == "12.5"


def test_less_than_one_layer_is_said(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed())
    choose(driver, "#percent", "5")
    assert text(driver, ".report .warning").startswith(
        "nothing but input embedding and output head trains: 5 percent is"
    )
    click(driver, "#embeddings")
    assert text(driver, ".report .problem").startswith(
        "nothing to train: 5 percent is less than one layer of every type"
    )
    choose(driver, "#percent", "50")
    assert text(driver, ".report .problem") == text(driver, ".report .warning") == ""


def test_embeddings_can_be_kept_frozen(driver: Chrome, tmp_path: Path) -> None:
    scan = mixed()
    show(driver, tmp_path, top_percent(scan, "100"))
    assert "lm_head" in selected(driver)
    click(driver, "#embeddings")
    assert selected(driver) == names(top_percent(scan, "100", embeddings=False))
    assert text(driver, ".counts") == counts(scan, "100", embeddings=False)


@pytest.mark.parametrize("embeddings", [True, False])
def test_the_other_scale_is_that_of_all_parameters(driver: Chrome, tmp_path: Path, embeddings: bool) -> None:
    scan = mixed()
    show(driver, tmp_path, top_percent(scan, "25", embeddings=embeddings))
    click(driver, PARAMS)
    assert selected(driver) == names(top_percent(scan, "25", embeddings=embeddings))  # only the scale has changed
    for step in range(num_steps(driver)):
        choose(driver, "#slider", str(step))
        wanted = top_params(scan, field(driver), embeddings=embeddings)
        assert state(driver)["topParams"] == field(driver)
        assert selected(driver) == names(wanted)
        assert text(driver, ".equal") == f"the same as {wanted.percent} percent of each layer type"
        assert slid(driver).startswith(
            f"{field(driver)} percent of all parameters, as {wanted.percent} percent of each"
        )
    for percent in ("60", "75.25", "100"):
        choose(driver, "#percent", percent)
        assert selected(driver) == names(top_params(scan, percent, embeddings=embeddings))
    click(driver, TYPES)
    assert state(driver)["topParams"] is None
    assert selected(driver) == names(top_percent(scan, "100", embeddings=embeddings))


def test_no_list_is_offered_where_no_selection_is_as_small_as_asked(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    show(driver, tmp_path, top_percent(mixed(), "25"))
    click(driver, PARAMS)
    choose(driver, "#percent", "0.001")
    driver.execute_script("document.querySelector('#list').scrollIntoView()")
    WebDriverWait(driver, 10).until(lambda _: text(driver, "#list .problem"))
    assert text(driver, "#list .problem") == text(driver, "#percent-problem")
    assert text(driver, "#list .problem").startswith("the smallest selection trains ")
    assert driver.execute_script("return document.querySelector('#list .main').disabled") is True
    assert driver.execute_script("return document.querySelector('#list .command').hidden") is True


def test_the_scale_of_parameters_waits_for_a_type_that_is_on(driver: Chrome, tmp_path: Path) -> None:
    scan = mixed()
    show(driver, tmp_path, top_percent(scan, "60"))
    click(driver, ".switches button:last-child")
    click(driver, PARAMS)
    assert field(driver) == "60"
    assert text(driver, "#percent-problem") == "org/mixed has no layer to select"
    click(driver, ".switches button:first-child")
    assert text(driver, "#percent-problem") == ""
    assert selected(driver) == names(top_params(scan, "60"))


def test_nothing_that_trains_has_a_percentage_of_parameters_too(driver: Chrome, tmp_path: Path) -> None:
    head = mixed().only(["lm_head"])  # an embedding, so nothing trains without embeddings
    show(driver, tmp_path, top_percent(head, "100", embeddings=False))
    click(driver, PARAMS)
    assert text(driver, "#percent-problem") == ""
    assert state(driver)["topParams"] == field(driver)
    assert top_params(head, field(driver), embeddings=False).percent == state(driver)["percent"] == "100"


@pytest.mark.parametrize("percent", ["99.99999999999999999999", "44.44444444444444444444", "44.44444444444444444445"])
def test_the_slider_stands_at_the_cut_of_long_percentages(driver: Chrome, tmp_path: Path, percent: str) -> None:
    scan = mixed()
    show(driver, tmp_path, scan)
    choose(driver, "#percent", percent)
    assert selected(driver) == names(top_percent(scan, percent))
    steps = "percentSteps(page.scans[0], page.scans[0].types.map(() => true))"
    step = driver.execute_script(f"return {steps}[document.querySelector('#slider').value]")
    assert names(top_percent(scan, step)) == names(top_percent(scan, percent))


def test_too_few_parameters_are_refused_as_the_command_does(driver: Chrome, tmp_path: Path) -> None:
    scan = mixed()
    show(driver, tmp_path, top_percent(scan, "25"))
    click(driver, PARAMS)
    choose(driver, "#percent", "10")
    with pytest.raises(SelectionError) as error:
        top_params(scan, "10")
    assert text(driver, "#percent-problem") == str(error.value)
    assert selected(driver) == names(top_percent(scan, "25"))
    assert state(driver)["topParams"] is None
    click(driver, "#embeddings")  # then it is enough
    assert text(driver, "#percent-problem") == ""
    assert selected(driver) == names(top_params(scan, "10", embeddings=False))


def test_a_page_can_begin_at_a_share_of_all_parameters(driver: Chrome, tmp_path: Path) -> None:
    chosen = top_params(mixed(), "70")
    show(driver, tmp_path, chosen, top_params="70")
    assert selected(driver) == names(chosen)
    assert field(driver) == "70"
    assert driver.execute_script("return document.querySelector(arguments[0]).checked", PARAMS)
    click(driver, "[aria-label='select layers of attn.q']")
    rest = tuple(layer for layer in chosen.result.layers if layer.layer_type != "attn.q")
    assert selected(driver) == names(top_params(replace(chosen.result, layers=rest), "70"))


def test_a_scan_without_sizes_has_one_scale(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed(sized=False))
    assert "This scan does not say how large parameters are." in text(driver, "#controls")
    assert "all parameters" not in text(driver, "#controls")
    assert text(driver, ".counts").endswith("percent of each layer type")


@pytest.mark.parametrize(
    ("order", "said"), [("lowest", "the layers of lowest SNR"), ("random:7", "by lot"), ("highest", "")]
)
def test_controls_for_experiments_say_so(driver: Chrome, tmp_path: Path, order: str, said: str) -> None:
    selection = top_percent(mixed(), "25", order=order)
    show(driver, tmp_path, selection)
    assert selected(driver) == names(selection)
    assert ("As a control" in text(driver, "#controls")) == (order != "highest")
    assert said in text(driver, "#controls")
    has_margins = "margin" in text(driver, ".heat-map thead")
    assert has_margins == (order != "random:7")


def test_layers_without_a_score_are_named(driver: Chrome, tmp_path: Path) -> None:
    left_out = tuple(f"h.{i}.broken" for i in range(5))
    show(driver, tmp_path, replace(mixed(), left_out=left_out))
    warning = "Never selected, since their weights hold NaN or infinity: h.0.broken, h.1.broken, h.2.broken and 2 more"
    assert warning in text(driver, "#controls")


def test_counts_are_read_aloud_when_the_slider_rests(driver: Chrome, tmp_path: Path) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    show(driver, tmp_path, mixed())
    driver.execute_script(
        """window.spoken = [];
        const line = document.querySelector("[role=status].visually-hidden");
        new MutationObserver(() => spoken.push(line.textContent)).observe(line, { childList: true });"""
    )
    for step in range(num_steps(driver)):
        choose(driver, "#slider", str(step))
    last = text(driver, ".counts")
    WebDriverWait(driver, 10).until(lambda _: last in driver.execute_script("return spoken"))
    assert len(driver.execute_script("return spoken")) < num_steps(driver) / 2


@pytest.mark.parametrize("percent", ["25", "60"])
def test_two_scans_are_compared_as_the_command_does(driver: Chrome, tmp_path: Path, percent: str) -> None:
    first, second = mixed(), mixed("org/trained", seed=5)
    show(driver, tmp_path, top_percent(first, "40"), other=second)
    choose(driver, "#percent", percent)
    wanted = comparison.compare(top_percent(first, percent), top_percent(second, percent))
    enter, leave = ([name for each in wanted.types for name in getattr(each, side)] for side in ("enter", "leave"))
    assert enter
    assert leave
    script = (
        "return [...document.querySelectorAll('.names')].map((list) => [...list.children].map((item) => item.title))"
    )
    assert driver.execute_script(script) == [enter, leave]
    signs = "return [...document.querySelectorAll('.names li')].map((item) => item.textContent[0])"
    assert driver.execute_script(signs) == ["+"] * len(enter) + [MINUS] * len(leave)
    rows = driver.execute_script(
        """return [...document.querySelectorAll(".compared-types tbody tr")].map((row) =>
            [row.cells[0].title, ...[...row.cells].slice(1).map((cell) => cell.textContent)])"""
    )
    assert rows == [
        [
            each.layer_type,
            str(each.num_layers),
            "" if each.correlation is None else f"{round(each.correlation, 3) + 0.0:.3f}",
            str(len(each.enter)),
            str(len(each.leave)),
        ]
        for each in wanted.types
    ]
    for place in (0, 1):
        shown = cells(driver, place)
        for i in range(DEPTH):
            name, cell = f"model.layers.{i}.attn.q", shown["attn.q", f"layer {i}"]
            assert cell["text"] == ("+" if name in enter else MINUS if name in leave else "")
            assert ("enters the selection" in cell["label"]) == (name in enter)
    colours = [cells(driver, place)["model.embed", "outside the stack"]["colour"] for place in (0, 1)]
    assert colours[0] == colours[1]  # the same score on one scale


def test_switched_off_types_are_off_in_both_scans(driver: Chrome, tmp_path: Path) -> None:
    show(driver, tmp_path, mixed(), other=mixed("org/trained", seed=5))
    click(driver, "[aria-label='select layers of attn.q']")
    for place in (0, 1):
        assert {cell["selected"] for (row, _), cell in cells(driver, place).items() if row == "attn.q"} == {"false"}
    assert "attn.q" not in driver.execute_script("return document.querySelector('.names').innerText")


def test_models_of_other_depth_and_other_types_are_told_apart(driver: Chrome, tmp_path: Path) -> None:
    deeper = mixed("org/deeper", depth=DEPTH + 3, seed=5)
    deeper = replace(deeper, layers=tuple(each for each in deeper.layers if each.layer_type == "attn.q"))
    show(driver, tmp_path, mixed(), other=deeper)
    assert f"org/mixed has {DEPTH} layers of attn.q, org/deeper has {DEPTH + 3}" in text(driver, ".compared")
    assert "Only in org/mixed: model.embed, " in text(driver, ".compared")


def test_nothing_is_compared_while_no_common_type_is_on(driver: Chrome, tmp_path: Path) -> None:
    other = mixed("org/other", seed=5)
    other = replace(other, layers=tuple(each for each in other.layers if each.layer_type == "attn.q"))
    show(driver, tmp_path, mixed(), other=other)
    assert "enter" in text(driver, ".compared")
    click(driver, "[aria-label='select layers of attn.q']")
    problem = "org/mixed and org/other have no layer in common, so there is nothing to compare"
    assert text(driver, ".compared") == f"What changes {problem}"
    click(driver, ".switches button:last-child")
    assert text(driver, ".compared") == "What changes nothing to compare: every layer type is switched off"
