"""What the page's engine and the command each say of a selection, in the same words, to be compared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from spectrum.cli.select import _check_any
from spectrum.errors import SelectionError, SpectrumError
from spectrum.files import selection_path
from spectrum.plots.page.page import PageSettings, page, page_data
from spectrum.records import LayerSnr, ScanResult
from spectrum.scanning.request import ScanCallbacks
from spectrum.selection import selection
from spectrum.selection.order import control
from spectrum.selection.selection import Selection, top_percent
from spectrum.text import in_line
from spectrum.trainers import memory
from spectrum.trainers.formats.formats import FORMATS
from tests.helpers.browser import browser, complaints, open_page

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

DEVICES = (1, 3, 8)


@dataclass(frozen=True)
class Asked:
    """A selection. off: the rows that are switched off."""

    percent: str
    embeddings: bool = True
    off: tuple[int, ...] = ()


_STATE = """
const page = JSON.parse(arguments[0]);
const state = ({percent, embeddings, off}) => ({
  percent, topParams: null, embeddings, off: new Set(off), format: "axolotl", optimizer: 0, sharding: 0, devices: 1});
"""
_ENGINE = """
const scan = page.scans[0];
const name = (layer) => scan.layers.name[layer];
const plans = (chosen) => page.optimizers.flatMap((_, optimizer) => page.shardings.flatMap((_, sharding) =>
  arguments[2].map((devices) => memoryPerDevice(page, chosen, optimizer, sharding, devices))));
return JSON.stringify(JSON.parse(arguments[1]).map((asked) => {
  const isOn = typesOn(scan, page, state(asked));
  const chosen = selectLayers(scan, state(asked), isOn);
  const on = scan.types.map((_, type) => type).filter((type) => isOn[type]);
  return {
    layers: Object.fromEntries(on.map((type) => [scan.types[type].name, chosen.layers[type].map(name)])),
    counts: on.map((type) => chosen.counts[type]),
    isSelected: [...chosen.isSelected.keys()].filter((layer) => chosen.isSelected[layer]).map(name).sort(),
    embedding: chosen.embedding,
    trained: chosen.trained,
    problem: chosen.problem,
    warning: chosen.warning,
    margins: on.map((type) => describeMargin(page, chosen, type)),
    steps: percentSteps(scan, isOn),
    numbers: [numTrained(scan, chosen.trained), numTotal(scan)],
    memory: plans(chosen),
    lists: Object.fromEntries(page.formats.map((form) => [form.name, writtenList(page, chosen, form.name)])),
    files: page.formats.map((form) => listFile(page, chosen, form.name)),
  };
}));
"""


@contextmanager
def engine_in_browser() -> Iterator[Chrome]:
    """A browser that shows a page, whatever is on it, and so knows the engine."""
    scan = ScanResult("m", (LayerSnr("a", "a", 1.0),), (), ("a",), None)
    with TemporaryDirectory() as directory, browser() as driver:
        path = Path(directory) / "page.html"
        path.write_text(page(scan, PageSettings(None)), "utf-8")
        open_page(driver, path)
        assert complaints(driver) == []
        yield driver


def by_engine(driver: Chrome, data: Mapping[str, Any], asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """What the page says of each selection. data: that of the page."""
    questions = [{"percent": one.percent, "embeddings": one.embeddings, "off": one.off} for one in asked]
    said = driver.execute_script(_STATE + _ENGINE, json.dumps(data), json.dumps(questions), DEVICES)
    answers: list[dict[str, Any]] = json.loads(said)
    return answers


def asked_of_engine(driver: Chrome, script: str, data: Mapping[str, Any], asked: Sequence[Asked]) -> Any:
    """What a function of `asked`, its state, the page and one or two scans gives for each question."""
    body = f"""{_STATE}
    const [scan, other] = page.scans;
    const answer = (asked, state, isOn) => ({script});
    return JSON.stringify(JSON.parse(arguments[1]).map(
      (asked) => answer(asked, state(asked), typesOn(scan, page, state(asked)))));
    """
    questions = [{"percent": one.percent, "embeddings": one.embeddings, "off": one.off} for one in asked]
    return json.loads(driver.execute_script(body, json.dumps(data), json.dumps(questions)))


def data_of(scan: ScanResult, order: str = "highest", settings: PageSettings | None = None) -> dict[str, Any]:
    """What the page knows, as the page reads it."""
    settings = settings or PageSettings(None)
    text = json.dumps(page_data(top_percent(scan, "50", order=order), settings), allow_nan=False)
    data: dict[str, Any] = json.loads(text)
    return data


def with_rows_off(scan: ScanResult, data: Mapping[str, Any], off: Sequence[int]) -> ScanResult:
    """The part of a scan whose rows are on, as `--layer-types` has it; the scan itself if all of them are."""
    rows, names = data["scans"][0]["rows"], [one["name"] for one in data["scans"][0]["types"]]
    if not off:
        return scan
    return scan.only([names[at] for i, row in enumerate(rows) if i not in off for at in row["types"]])


def by_command(scan: ScanResult, data: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """What the command says of a selection."""
    part = with_rows_off(scan, data, asked.off)
    chosen = top_percent(part, asked.percent, embeddings=asked.embeddings, order=data["order"])
    problem, warning = checked(chosen)
    layers, trained = chosen.layers(), chosen.trained()
    steps = selection._steps(part)
    info = scan.info
    return {
        "layers": layers,
        "counts": [ranked.num_selected for ranked in chosen.types],
        "isSelected": sorted(name for names in layers.values() for name in names),
        "embedding": list(chosen.embedding_parameters()),
        "trained": trained,
        "problem": problem,
        "warning": warning,
        "margins": [ranked.describe_margin() for ranked in chosen.types],
        "steps": [selection._shortest(steps, step) for step in range(len(steps))],
        "numbers": [None, None] if info is None else [info.num_elements(names) for names in (trained, info.parameters)],
        "memory": plans(chosen),
        "lists": {name: rendered(chosen, name) for name in FORMATS},
        "files": [
            in_line(
                selection_path(
                    Path(), scan.model, form.name, chosen.percent, form.ending, control=control(chosen.order)
                ).name
            )
            for form in FORMATS.values()
        ],
    }


def checked(chosen: Selection) -> tuple[str | None, str | None]:
    """The command's error, and its warning."""
    warned: list[str] = []

    def refuse(*_: object) -> Any:
        raise AssertionError

    try:
        _check_any(chosen, ScanCallbacks(info=refuse, warn=warned.append, choose=refuse, progress=refuse))
    except SpectrumError as error:
        return str(error), None
    return None, next(iter(warned), None)


def rendered(chosen: Selection, form: str) -> dict[str, Any]:
    """The content of a list, or why it is refused."""
    try:
        exported = FORMATS[form].render(chosen)
    except SelectionError as error:
        return {"text": None, "notes": [], "problem": str(error)}
    return {"text": exported.text, "notes": list(exported.notes), "problem": None}


def plans(chosen: Selection) -> list[dict[str, int] | None]:
    """The bytes on each device, for each optimizer, sharding and number of devices."""
    info = chosen.result.info
    if info is None or not info.knows_modules():
        return [None for _ in range(len(memory.OPTIMIZERS) * (1 + len(memory.SHARDINGS)) * len(DEVICES))]
    selected, everything = (memory.parameter_sizes(names, info) for names in (chosen.trained(), info.parameters))
    return [
        {
            name: memory.bytes_per_device(sizes, everything, optimizer, sharding, devices)
            for name, sizes in (("selected", selected), ("all", everything))
        }
        for optimizer in memory.OPTIMIZERS
        for sharding in (memory.UNSHARDED, *memory.SHARDINGS)
        for devices in DEVICES
    ]


def differences(answer: object, expected: object, at: str = "") -> list[str]:
    """Where two answers differ, each place with both values: texts are long, so only a part of them is shown."""
    if isinstance(answer, dict) and isinstance(expected, dict) and answer.keys() == expected.keys():
        return [found for key in expected for found in differences(answer[key], expected[key], f"{at}.{key}")]
    if answer == expected:
        return []
    if isinstance(answer, str) and isinstance(expected, str):
        start = next((i for i, both in enumerate(zip(answer, expected, strict=False)) if len(set(both)) > 1), 0)
        answer, expected = answer[max(start - 60, 0) : start + 60], expected[max(start - 60, 0) : start + 60]
    return [f"{at}: {answer!r}, not {expected!r}"]
