"""The notebook that users copy, run from its first cell to its last, with the notebook's progress bar and without."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.helpers.paths import ROOT, TINY_LLAMA

pytestmark = pytest.mark.slow

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

NOTEBOOK = ROOT / "tests" / "fine_tune.ipynb"

_GUARD = 150  # seconds for a cell, against hangs; a quiet machine needs five

WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Executed:
    """The notebook after its run, and the directory that it ran in."""

    directory: Path
    cells: list[Any]

    def outputs(self, source: str) -> list[Any]:
        """Of the one cell that has this in its source."""
        (cell,) = (cell for cell in self.cells if source in cell.source)
        outputs: list[Any] = cell.outputs
        return outputs

    def shown(self, source: str, kind: str) -> str:
        """What the value of a cell is shown as."""
        (result,) = (output for output in self.outputs(source) if output.output_type == "execute_result")
        data: str = result.data[kind]
        return data

    def printed(self, source: str, name: str) -> str:
        return "".join(one.text for one in self.outputs(source) if one.output_type == "stream" and one.name == name)


def execute(directory: Path, before: Path | None = None) -> Executed:
    """Run the notebook where the model is, by this interpreter, without settings of the user's.

    before: a directory whose modules are found before the installed ones.
    """
    shutil.copytree(TINY_LLAMA, directory / "data" / "tiny-llama")
    settings = directory.with_name(f"{directory.name}-settings")
    kernel = settings / "kernels" / "this"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    environment = {
        "JUPYTER_PATH": settings,
        "JUPYTER_CONFIG_DIR": settings / "config",
        "JUPYTER_RUNTIME_DIR": settings / "runtime",
        "IPYTHONDIR": settings / "ipython",
        "PYTHONPATH": f"{before}:{ROOT}" if before else ROOT,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, str(value))
        client = nbclient.NotebookClient(
            notebook, timeout=_GUARD, kernel_name="this", resources={"metadata": {"path": str(directory)}}
        )
        client.execute()
    return Executed(directory, notebook.cells)


def without_widgets(directory: Path) -> Path:
    """A directory that hides ipywidgets, as where it is not installed."""
    hidden = directory / "hidden"
    hidden.mkdir()
    (hidden / "ipywidgets.py").write_text("raise ModuleNotFoundError(\"No module named 'ipywidgets'\")\n")
    return hidden


@pytest.fixture(scope="module", params=["widgets", "text"])
def bar(request: pytest.FixtureRequest) -> str:
    """How progress is shown."""
    kind: str = request.param
    if kind == "widgets":
        pytest.importorskip("ipywidgets")
    return kind


@pytest.fixture(scope="module")
def executed(bar: str, tmp_path_factory: pytest.TempPathFactory) -> Executed:
    directory = tmp_path_factory.mktemp(bar)
    return execute(directory, without_widgets(tmp_path_factory.mktemp("modules")) if bar == "text" else None)


def test_the_notebook_is_stored_without_results() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"


def test_every_cell_runs_and_none_complains(executed: Executed) -> None:
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        said = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        assert not re.search(r"warn|error|traceback|not found", said, re.IGNORECASE), said


def rows(html: str) -> dict[str, list[str]]:
    """Cells of a table, by the first of each row."""
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]
    return {row[0]: row[1:] for row in found}


def test_the_scan_and_the_selection_are_tables(executed: Executed) -> None:
    scan = executed.shown("spectrum.scan", "text/html")
    assert scan.startswith("<p>Scan of data/tiny-llama (LlamaForCausalLM): 75 layers</p>\n<table>")
    assert rows(scan)["mlp.down_proj"] == ["8", "0.8164", "1.375", "2.364"]
    selection = executed.shown("spectrum.select", "text/html")
    assert rows(selection)["mlp.down_proj"][0] == "2 of 8"
    assert rows(selection)["total"][0] == "18 of 75"
    # Where there is no HTML, text says the same.
    assert "75 layers" in executed.shown("spectrum.scan", "text/plain")


def test_the_bar_is_the_notebooks_or_text(executed: Executed, bar: str) -> None:
    outputs = executed.outputs("spectrum.scan")
    widgets = [output.data for output in outputs if output.output_type == "display_data" and WIDGET in output.data]
    text = executed.printed("spectrum.scan", "stderr")
    assert executed.printed("spectrum.scan", "stdout") == ""
    if bar == "widgets":
        assert len(widgets) == 1
        assert text == ""
    else:
        assert widgets == []
        assert "75/75 weights" in text


def test_the_picture_is_shown(executed: Executed) -> None:
    png = base64.b64decode(executed.shown("selection.plot()", "image/png"))
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 400
    assert height > 200
    (output,) = executed.outputs("selection.plot()")  # once: pyplot does not show it again
    assert 400 < output.metadata["image/png"]["width"] < width
    # Where there are no pictures, text says what to do.
    assert executed.shown("selection.plot()", "text/plain").startswith("Heat map of data/tiny-llama: ")


def test_a_quarter_of_the_layers_is_unfrozen(executed: Executed) -> None:
    shown = executed.shown("spectrum.unfreeze", "text/plain")
    assert shown == "252,288 of 861,792 parameters train, 29.3 percent, in 20 tensors"


def test_the_loss_falls(executed: Executed) -> None:
    printed = executed.printed("optimizer.step()", "stdout")
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)$", printed, re.MULTILINE)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.7 * losses[0]


def test_what_was_trained_is_what_the_list_says(executed: Executed) -> None:
    entries = yaml.safe_load((executed.directory / "unfrozen.yaml").read_text())["unfrozen_parameters"]
    assert len(entries) == 2 + 18
    before, after = stored(TINY_LLAMA), stored(executed.directory / "trained")
    assert before.keys() == after.keys()
    moved = {name for name, value in before.items() if not value.float().equal(after[name].float())}
    assert moved == {name for name in before if any(re.match(entry, name) for entry in entries)}


def stored(directory: Path) -> dict[str, Any]:
    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}
