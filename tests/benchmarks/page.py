"""How large is the page of --plot scores.html, and how long does it take to make, to draw and to follow the slider?

    python -m tests.benchmarks.page [--runs 5] [--out DIR]

The models are real ones by their shapes, with random scores. The last one has each expert as a module of its own, as
other tools' scans have them. The browser is a real Chromium without a window and without a GPU. With --out, the pages
are kept in this directory.
"""

from __future__ import annotations

import argparse
import gzip
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from spectrum.checkpoint.matrices import describe
from spectrum.checkpoint.meta_model import named_parameters
from spectrum.plots.page.draw import draw
from spectrum.records import BulkEdge, LayerSnr, LayerWeight, Parameter, ScanResult
from spectrum.scanning.store import ScanStore
from tests.benchmarks.balance import MODELS
from tests.benchmarks.end_to_end import LLAMA_1B, measured
from tests.benchmarks.machine import description
from tests.helpers.browser import browser, open_page
from tests.helpers.records import PROVENANCE

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

NAMES = ("Llama-3.1-8B", "Llama-3.1-70B", "Llama-3.1-405B", "DeepSeek-V3, 671B")

# From the start of the navigation until everything is drawn for the first time.
DRAWN = """
const done = arguments[0];
function look() {
  const [painted] = performance.getEntriesByType('paint'), [{domComplete}] = performance.getEntriesByType('navigation');
  if (painted && domComplete) { done(Math.max(painted.startTime, domComplete)); } else { setTimeout(look, 10); }
}
look();
"""

# A position of the slider after another, each from the event until the frame after it is drawn.
MOVES = """
const done = arguments[arguments.length - 1], slider = document.querySelector('input[type=range]'), times = [];
function move(i) {
  if (i > 20) { done(times); return; }
  const began = performance.now();
  slider.value = Math.round(slider.max * i / 21);
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => { times.push(performance.now() - began); move(i + 1); }));
}
move(1);
"""


def scanned(name: str, config: Any) -> ScanResult:
    """A scan of a model of these shapes, with random scores."""
    auto: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config)
    parameters, random = dict(named_parameters(model)), np.random.default_rng(0)
    holders = {id(value): of for of, value in reversed(parameters.items())}  # tied ones have one holder
    specs = {of: Parameter(tuple(value.shape), "bfloat16") for of, value in parameters.items()}
    found = describe(model, {of: holders[id(value)] for of, value in parameters.items()}, specs)
    layers = tuple(_scored(weight, random) for weight in found.weights)
    types = tuple(dict.fromkeys(layer.layer_type for layer in layers))
    return ScanResult(name, layers, (), types, replace(PROVENANCE, info=found.info))


def _scored(weight: LayerWeight, random: np.random.Generator) -> LayerSnr:
    if 1 in weight.matrix_shape:
        return LayerSnr(weight.name, weight.layer_type, 1.0, None, BulkEdge(1, 0, 1.0, 0.0))
    scores = tuple(map(float, np.exp(random.normal(size=weight.num_matrices))))
    edge = BulkEdge(217, min(weight.matrix_shape) - 217, float(random.random()), float(random.random()))
    if weight.num_matrices == 1:
        return LayerSnr(weight.name, weight.layer_type, scores[0], None, edge)
    return LayerSnr(weight.name, weight.layer_type, statistics.median(scores), scores, edge)


def by_module(scan: ScanResult) -> ScanResult:
    """The same scan as another tool would make it: each expert of a stack is a layer of its own."""
    layers: list[LayerSnr] = []
    for layer in scan.layers:
        above, _, matrix = layer.layer_type.rpartition(".")
        for i, snr in enumerate(layer.experts or ()):
            layers.append(LayerSnr(layer.name.replace(matrix, f"{i}.{matrix}"), f"{above}.{i}.{matrix}", snr))
        layers += [] if layer.experts else [layer]
    types = tuple(dict.fromkeys(layer.layer_type for layer in layers))
    return replace(
        scan, model=f"{scan.model}, experts as modules", layers=tuple(layers), scanned=types, provenance=None
    )


def scans() -> Iterator[ScanResult]:
    """The scans, one after another."""
    yield scanned("Llama-3.2-1B", LLAMA_1B)
    for name in NAMES:
        last = scanned(name, MODELS[name][0])
        yield last
    yield by_module(last)


def drawing(driver: Chrome, path: Path, runs: int) -> tuple[float, float]:
    """Milliseconds until the page is drawn, and from a move of the slider until it is drawn again."""
    drawn, moves = [], []
    for _ in range(runs):
        open_page(driver, path)
        drawn.append(float(driver.execute_async_script(DRAWN)))
        moves += [float(each) for each in driver.execute_async_script(MOVES)]
    return statistics.median(drawn), statistics.median(moves)


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--out", type=Path, help="keep the pages in this directory")
    given = arguments.parse_args()
    print(f"{description()}; medians of {given.runs} runs\n")
    print("| model | layers | experts | page | gzip | list alone | list and page | make | draw | follow the slider |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as scratch, browser() as driver:
        for number, scan in enumerate(scans()):
            path = (given.out or Path(scratch)).resolve() / f"{number}.html"
            ScanStore(Path(scratch, "model_snr_results"), f"org/{number}").save(replace(scan, model=f"org/{number}"))
            command = ["-m", "spectrum", "--model-name", f"org/{number}", "--yes", "--quiet"]
            alone, both = [], []
            for _ in range(given.runs):
                alone.append(measured(command, scratch).seconds)
                both.append(measured([*command, "--plot", str(path)], scratch).seconds)
            making = []
            for _ in range(given.runs):
                began = time.perf_counter()
                draw(scan, path)
                making.append(time.perf_counter() - began)
            content = path.read_bytes()
            drawn, follow = drawing(driver, path, given.runs)
            experts = sum(len(layer.experts or ()) for layer in scan.layers)
            print(
                f"| {scan.model} | {len(scan.layers)} | {experts or ''} | {_megabytes(content)} | "
                f"{_megabytes(gzip.compress(content))} | {statistics.median(alone):.2f} s | "
                f"{statistics.median(both):.2f} s | {statistics.median(making):.3f} s | {drawn:.0f} ms | "
                f"{follow:.0f} ms |",
                flush=True,
            )


def _megabytes(content: bytes) -> str:
    return f"{math.ceil(len(content) / 10_000) / 100:.2f} MB"


if __name__ == "__main__":
    main()
