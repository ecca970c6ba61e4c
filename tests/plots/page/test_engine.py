"""The page writes what the command writes, byte for byte, of every architecture, at every cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from spectrum.checkpoint.reader import of_model
from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection import selection
from spectrum.selection.selection import top_percent
from tests.helpers.architectures import ARCHITECTURES, dbrx, dinov2, longformer
from tests.helpers.browser import needs_browser
from tests.helpers.page_engine import (
    Asked,
    asked_of_engine,
    by_command,
    by_engine,
    data_of,
    differences,
    with_rows_off,
)

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

MODELS: Mapping[str, Callable[[], Any]] = {**ARCHITECTURES, "dinov2": dinov2, "dbrx": dbrx, "longformer": longformer}
AS_TYPED = ("33.3", ".5", "12.50")


def scan_of(model: str, scores: random.Random) -> ScanResult:
    """A scan of a model, with random scores of which many tie, and some are 0 or infinite."""
    checkpoint = of_model(MODELS[model](), "org/model")
    some = [0.0, 1.0, float("inf"), *(scores.uniform(0, 9) for _ in range(3))]
    layers = (
        LayerSnr(weight.name, weight.layer_type, scores.choice(some) if scores.random() < 0.5 else 9 * scores.random())
        for weight in checkpoint.weights
    )
    order = {name: i for i, name in enumerate(checkpoint.provenance.info.layer_types)}
    ordered = sorted(layers, key=lambda layer: order[layer.layer_type])
    return ScanResult("org/model", tuple(ordered), (), tuple(order), checkpoint.provenance)


def questions(data: Mapping[str, Any], draw: random.Random) -> list[Asked]:
    """Every cut, with embeddings and without, percentages as typed, and rows switched off at some of them."""
    sizes = {len(one["ranked"]) for one in data["scans"][0]["types"]}
    cuts = sorted({100 * i / size for size in sizes for i in range(1, size + 1)})
    steps = [f"{cut + 0.005:.2f}" if cut < 100 else "100" for cut in cuts]
    both = [Asked(percent, embeddings) for percent in steps for embeddings in (True, False)]
    typed = [Asked(percent, draw.random() < 0.5) for percent in AS_TYPED]
    rows = range(len(data["scans"][0]["rows"]))
    singly = [Asked(draw.choice(steps), draw.random() < 0.5, (row,)) for row in rows if len(rows) > 1]
    subsets = [
        Asked(draw.choice(steps), draw.random() < 0.5, tuple(draw.sample(rows, draw.randrange(1, len(rows)))))
        for _ in range(4)
        if len(rows) > 1
    ]
    return [*both, *typed, *singly, *subsets]


def entering(scan: ScanResult, order: str) -> list[str]:
    """For each layer, the least percentage of at most two decimals that selects it."""
    least: dict[str, str] = {}
    for ranked in top_percent(scan, "100", order=order).types:
        for place, layer in enumerate(ranked.layers):
            hundredths = -(-10_000 * (place + 1) // len(ranked.layers))
            least[layer.name] = f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")
    return [least[layer.name] for layer in scan.layers]


def by_params(scan: ScanResult, percent: str, embeddings: bool, order: str) -> dict[str, str]:
    try:
        return {"percent": selection.top_params(scan, percent, embeddings=embeddings, order=order).percent}
    except SelectionError as error:
        return {"problem": str(error)}


def shares(scan: ScanResult) -> list[str]:
    """Percentages of all parameters: some as typed, and those at which one more selection is small enough."""
    assert scan.info is not None
    steps, total = selection._steps(scan), scan.info.num_elements(scan.info.parameters)
    exact = {
        100 * scan.info.num_elements(top_percent(scan, percent, embeddings=embeddings).trained()) / total
        for percent in (selection._shortest(steps, step) for step in {0, len(steps) // 2, len(steps) - 1})
        for embeddings in (True, False)
    }
    near = (f"{share + more:.{digits}f}"[:24] for share in exact for more, digits in ((0, 21), (0, 2), (-1e-13, 14)))
    return ["1", ".5", "25", "66.6", "100", *(text for text in near if 0 < float(text) <= 100)]


@pytest.mark.parametrize("model", MODELS)
def test_percentages_of_parameters_and_of_layers_are_those_of_the_command(model: str, engine: Chrome) -> None:
    draw = random.Random(model)
    scan = scan_of(model, draw)
    order = draw.choice(("highest", "lowest", "random:7"))
    data = data_of(scan, order)
    row = draw.randrange(len(data["scans"][0]["rows"]))
    for off in ((), (row,)) if len(data["scans"][0]["rows"]) > 1 else ((),):
        part = with_rows_off(scan, data, off)
        asked = [Asked(percent, embeddings, off) for percent in shares(part) for embeddings in (True, False)]
        answers = asked_of_engine(engine, "percentOfParams(scan, state, isOn, asked.percent)", data, asked)
        for one, answer in zip(asked, answers, strict=True):
            assert answer == by_params(part, one.percent, one.embeddings, order), one
        script = "scan.layers.name.map((_, layer) => enteringPercent(scan, layer, isOn))"
        (found,) = asked_of_engine(engine, script, data, [Asked("50", True, off)])
        assert [percent for percent in found if percent is not None] == entering(part, order)


@pytest.mark.parametrize("model", MODELS)
def test_the_page_writes_what_the_command_writes(model: str, engine: Chrome) -> None:
    draw = random.Random(model)
    scan = scan_of(model, draw)
    for order in ("highest", "lowest", "random:7"):
        data = data_of(scan, order)
        asked = questions(data, draw)
        for one, answer in zip(asked, by_engine(engine, data, asked), strict=True):
            assert differences(answer, by_command(scan, data, one)) == [], (order, one)
