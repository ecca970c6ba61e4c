"""Scans for tests of the page's heat map, and what the page shows of them in a browser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.plots.page.page import PageSettings, page
from spectrum.records import BulkEdge, LayerSnr, ModelInfo, Parameter, ScanResult
from spectrum.selection.selection import Selection
from tests.helpers.browser import complaints, open_page
from tests.helpers.records import PROVENANCE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

DEPTH = 9
EXPERTS = 4  # modules in each layer, and matrices in each stack
COMMAND = ("spectrum", "--model-name", "org/mixed")


def mixed(model: str = "org/mixed", depth: int = DEPTH, seed: int = 3, sized: bool = True) -> ScanResult:
    """A model with all that a heat map has signs for: embeddings, norms, stacks and modules of experts, ties, zero.

    Args:
        model: its name.
        depth: how many layers it has.
        seed: of its scores.
        sized: whether the scan knows parameters; else it is one by another tool.
    """
    layers: list[LayerSnr] = []
    parameters: dict[str, Parameter] = {}

    def add(name: str, layer_type: str, shape: Sequence[int], snr: float, **more: Any) -> None:
        own = name if len(shape) == 3 else f"{name}.weight"
        parameters[own] = Parameter(tuple(shape), "bfloat16", None, more.pop("module", "Linear"), layer_type)
        layers.append(LayerSnr(name, layer_type, snr, **more))

    add("model.embed", "model.embed", (64, 8), 0.9, module="Embedding")
    for i in range(depth):
        score = [0.05 + abs(math.sin(seed * (i + 1) * (j + 2))) for j in range(12)]
        at = f"model.layers.{i}"
        edge = BulkEdge(3 + i, 5, 0.0125, 0.3 if i == 2 else 0.0625)
        add(f"{at}.attn.q", "attn.q", (8, 8), 0.5 if i in (4, 5) else score[0], edge=edge)
        add(f"{at}.mlp.down", "mlp.down", (8, 24), 0.0 if i == 1 else score[1], edge=edge)
        for expert in range(EXPERTS):
            add(f"{at}.moe.experts.{expert}.up", f"moe.experts.{expert}.up", (8, 4), score[2 + expert])
        stack = tuple(score[6 + expert] for expert in range(EXPERTS))
        add(f"{at}.mixer.experts_up", "mixer.experts_up", (EXPERTS, 8, 4), sum(sorted(stack)[1:3]) / 2, experts=stack)
        add(f"{at}.norm", "norm", (8,), 1.0, edge=BulkEdge(1, 0, 1.0, 0.0), module="RMSNorm")
    add("model.norm", "model.norm", (8,), 1.0, edge=BulkEdge(1, 0, 1.0, 0.0), module="RMSNorm")
    add("lm_head", "lm_head", (64, 8), 0.25)
    types = tuple(dict.fromkeys(layer.layer_type for layer in layers))
    info = ModelInfo("MixedForCausalLM", parameters, types, "lm_head.weight", "model.embed.weight")
    return ScanResult(model, tuple(layers), (), types, replace(PROVENANCE, info=info) if sized else None)


def write(folder: Path, drawn: ScanResult | Selection, **settings: Any) -> Path:
    """The page in a file. settings: of PageSettings."""
    path = folder / "page.html"
    path.write_text(page(drawn, PageSettings(COMMAND, **settings)), "utf-8")
    return path


def show(driver: Chrome, folder: Path, drawn: ScanResult | Selection, **settings: Any) -> None:
    """Open the page. settings: of PageSettings."""
    open_page(driver, write(folder, drawn, **settings))
    assert complaints(driver) == []


def drawn(driver: Chrome) -> None:
    """Wait until what follows from a change is on the page."""
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def choose(driver: Chrome, selector: str, value: str) -> None:
    """Set a slider or field as its user does, and wait for what follows."""
    script = """const control = document.querySelector(arguments[0]);
        control.value = arguments[1];
        control.dispatchEvent(new Event("input", { bubbles: true }));"""
    driver.execute_script(script, selector, value)
    drawn(driver)


def click(driver: Chrome, selector: str) -> None:
    """Click the first of these elements, and wait for what follows."""
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)
    drawn(driver)


def text(driver: Chrome, selector: str) -> str:
    """The text of the first of these elements as it is shown, with single spaces."""
    shown: str = driver.execute_script("return document.querySelector(arguments[0]).innerText", selector)
    return " ".join(shown.split())


def cells(driver: Chrome, place: int = 0) -> dict[tuple[str, str], dict[str, str]]:
    """What stands at each place of a heat map that is shown, by row and column: label, selected, classes, text.

    place: of the heat map on the page.
    """
    script = """const table = document.querySelectorAll(".heat-map")[arguments[0]];
        const heads = [...table.tHead.rows[0].cells].map((head) => head.getAttribute("aria-label") ?? head.textContent);
        return [...table.tBodies[0].rows].filter((row) => !row.hidden).flatMap((row) =>
          [...row.querySelectorAll("td.cell")].map((cell) => [
            [row.cells[0].getAttribute("aria-label"), heads[cell.cellIndex]],
            { label: cell.getAttribute("aria-label"), selected: cell.getAttribute("aria-selected"),
              classes: cell.className, text: cell.textContent, colour: cell.style.backgroundColor }]));"""
    return {(row, column): cell for (row, column), cell in driver.execute_script(script, place)}


def facts(driver: Chrome) -> dict[str, str]:
    """The details that are shown; empty if none are."""
    script = """const shown = document.querySelectorAll("#details .card:not([hidden]) dl > div");
        const words = (fact) => [...fact.querySelectorAll("dd")].map((dd) => dd.textContent).join("; ");
        return [...shown].map((fact) => [fact.querySelector("dt").textContent, words(fact)])"""
    return dict(driver.execute_script(script))


def state(driver: Chrome) -> dict[str, Any]:
    """The page's state."""
    values: dict[str, Any] = driver.execute_script("return { ...state, off: [...state.off] }")
    return values


def selected(driver: Chrome) -> list[str]:
    """The names of the layers that the page selects, in the order of the selection."""
    script = """const [scan] = page.scans;
        return selectLayers(scan, state, typesOn(scan, page, state)).layers.flat().map((i) => scan.layers.name[i])"""
    names: list[str] = driver.execute_script(script)
    return names


def names(selection: Selection) -> list[str]:
    """The names of the layers that a selection trains, in its order."""
    return [name for group in selection.layers().values() for name in group]
