"""START HERE: one HTML file with all scores, on which a percentage is chosen and its list is copied.

The page needs no network and no other file. What it knows of the scan is JSON in the page itself; its scripts select,
and write the lists. Tests prove that they do so as the command does, for every cut of every model that they have.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from spectrum.errors import SelectionError, SpectrumError
from spectrum.files import selection_path, write_atomically
from spectrum.plots.page.scan_data import scan_data
from spectrum.plots.table import COLOURS
from spectrum.records import ScanResult
from spectrum.selection import comparison, margins, selection
from spectrum.selection.order import by_score, control, share
from spectrum.selection.selection import Selection
from spectrum.text import in_line
from spectrum.trainers import memory
from spectrum.trainers.formats import formats

_FILES = Path(__file__).parent
_STYLES = (
    *("panels/page.css", "panels/controls.css", "map/map.css", "map/cells.css", "map/details.css"),
    *("panels/list.css", "panels/layers.css"),
)
# What is selected and written, how the map is drawn, what stands around it. All scripts share one scope.
_SCRIPTS = (
    *("engine/numbers.js", "engine/selection.js", "engine/entries.js", "engine/adapters.js", "engine/formats.js"),
    *("engine/commands.js", "engine/memory.js", "engine/comparison.js"),
    *("panels/elements.js", "map/scores.js", "map/grid.js", "map/navigation.js", "map/heatmap.js", "map/details.js"),
    *("map/legend.js", "map/compared.js", "map/map.js"),
    *("panels/controls.js", "panels/copy.js", "panels/list.js", "panels/plan.js", "panels/finding.js"),
    *("panels/layers.js", "panels/page.js"),
)
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_SENTINEL = "\0"  # in place of a percentage


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What the page shows at first, and what its commands say.

    Args:
        command: the words of the command, without the options that the page chooses; None if no command can scan the
            model.
        top_params: the percentage of all parameters by which the selection was chosen; None if it was chosen otherwise.
        format: the format of the list.
        devices: the number of devices in the plan of training memory.
        other: the scan to compare with.
    """

    command: tuple[str, ...] | None
    top_params: str | None = None
    format: str = "axolotl"
    devices: int = memory.DEFAULT_DEVICES
    other: ScanResult | None = None


def write_page(drawn: ScanResult | Selection, settings: PageSettings, path: Path) -> None:
    """Write the page. Raises SpectrumError if there is no layer to show, and ResultsError if writing fails."""
    write_atomically(path, page(drawn, settings))


def page(drawn: ScanResult | Selection, settings: PageSettings) -> str:
    """The page's HTML. Raises SpectrumError if there is no layer to show.

    Args:
        drawn: a selection, which the page shows at first; or a scan, of which it shows the default percentage.
        settings: what else it shows at first.
    """
    chosen = drawn if isinstance(drawn, Selection) else selection.top_percent(drawn, selection.DEFAULT_PERCENT)
    if not chosen.result.layers:
        raise SpectrumError(f"there is no layer of {chosen.result.model} to draw")
    data = json.dumps(page_data(chosen, settings), separators=(",", ":"), allow_nan=False)
    styles, scripts = ([(_FILES / name).read_text("utf-8") for name in names] for names in (_STYLES, _SCRIPTS))
    filling = {
        "title": escape(in_line(chosen.result.model)),
        "policy": _policy(styles, scripts),
        "styles": "\n".join(f"<style>{text}</style>" for text in styles),
        "data": data.replace("<", "\\u003c"),  # so that no name can end the element
        "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
    }
    # In one pass, so that nothing that is filled in is taken for a place to fill.
    return _PLACE.sub(lambda found: filling[found[1]], (_FILES / "page.html").read_text("utf-8"))


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: only these styles and scripts, and nothing from elsewhere."""
    style, script = (" ".join(map(_digest, texts)) for texts in (styles, scripts))
    return f"default-src 'none'; style-src {style}; script-src {script}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def page_data(chosen: Selection, settings: PageSettings) -> dict[str, Any]:
    """All that the page's scripts know, as JSON values."""
    scan, other = chosen.result.whole, settings.other
    shown = {layer.layer_type for layer in chosen.result.layers}
    off = [name for name in scan.by_type() if name not in shown]
    before, after = share(_SENTINEL, chosen.order).split(_SENTINEL)
    return {
        "scans": [scan_data(each.whole, chosen.order, set(off)) for each in (scan, *([other] if other else []))],
        "correlations": _correlations(scan, other),
        "order": chosen.order,
        "byScore": by_score(chosen.order),
        "share": [before, after],
        "start": {
            "percent": chosen.percent,
            "topParams": settings.top_params,
            "embeddings": chosen.embeddings,
            "off": off,
            "format": settings.format,
            "devices": settings.devices,
        },
        "command": settings.command,
        "formats": [_format(name, form, scan, chosen.order) for name, form in formats.FORMATS.items()],
        "optimizers": [
            {"name": name, "weight": [each.weight for each in both]} for name, both in memory.OPTIMIZERS.items()
        ],
        "shardings": [_sharding(each) for each in (memory.UNSHARDED, *memory.SHARDINGS)],
        "colours": COLOURS,
        "crowded": margins.CROWDED_SENSITIVITY,
    }


def _correlations(scan: ScanResult, other: ScanResult | None) -> dict[str, float | None]:
    """The rank correlation of each layer type that both scans have; of none if they have no layer in common."""
    if other is None:
        return {}
    first, second = (selection.top_percent(each.whole, "100") for each in (scan, other))
    try:
        compared = comparison.compare(first, second)
    except SelectionError:  # the page says so, beside all that it shows of the scan
        return {}
    return {one.layer_type: one.correlation for one in compared.types}


def _format(name: str, form: formats.Format, scan: ScanResult, order: str) -> dict[str, Any]:
    path = selection_path(Path(), scan.model, form.name, _SENTINEL, form.ending, control=control(order))
    return {
        "name": name,
        "readers": form.readers,
        "use": form.use,
        "adapters": form.adapters,
        "file": [in_line(part) for part in path.name.split(_SENTINEL)],
        "refused": _refusal(form, scan),
    }


def _refusal(form: formats.Format, scan: ScanResult) -> str | None:
    """Why no selection of a scan by another tool can be written in a format; None if it can, or if the scan is ours."""
    if scan.info is not None:
        return None
    try:
        form.render(selection.top_percent(replace(scan, layers=scan.layers[:1]), "100"))  # one layer tells
    except SelectionError as error:
        return str(error)
    return None


def _sharding(sharding: memory.Sharding) -> dict[str, Any]:
    return {
        "name": sharding.name,
        "dividesWeights": sharding.divides_weights,
        "dividesTrainingState": sharding.divides_training_state,
        "isDeepspeed": sharding.is_deepspeed,
    }
