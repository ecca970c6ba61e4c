"""What a user of Python sees when an error of ours is raised: their own line, at most one of ours, and the message."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import spectrum
from spectrum.checkpoint import hub
from spectrum.errors import CheckpointError, HubError, short_traceback
from tests.helpers.hub_server import HubServer
from tests.helpers.paths import TINY_LLAMA
from tests.helpers.processes import quiet_environment

_GUARD = 150  # seconds, against hangs; a quiet machine needs five

MISTAKES = {
    "a repository that does not exist": ("spectrum.scan('acme/nothing')", "HubError: there is no directory"),
    "an id that is none": ("spectrum.scan('acme tiny')", "HubError: 'acme tiny' is neither"),
    "a directory that does not exist": ("spectrum.scan('./nothing')", "CheckpointError: there is no directory"),
    "a damaged config": ("spectrum.scan('broken')", "CheckpointError: broken/config.json is not valid JSON"),
    "a layer type": ("spectrum.scan('model', 'mlp')", "LayerTypeError: no layer type matches 'mlp'; did you mean"),
    "a device": ("spectrum.scan('model', device='gpu')", "DeviceError: 'gpu' is not a device; did you mean cuda?"),
    "a list that does not exist": (
        "import torch; spectrum.unfreeze(torch.nn.Linear(1, 1), 'no.yaml')",
        "SelectionError: cannot read no.yaml",
    ),
    "a path that cannot be written": (
        "spectrum.select(spectrum.scan('model', 'mlp.*', device='cpu', show_progress=False)).to_yaml('model')",
        "ResultsError: cannot write model",
    ),
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("work")
    shutil.copytree(TINY_LLAMA, directory / "model")
    (directory / "broken").mkdir()
    (directory / "broken" / "config.json").write_text("{")
    return directory


def script(directory: Path, line: str, **environment: str) -> list[str]:
    """The lines on stderr of a script that does this in a function."""
    (directory / "script.py").write_text(f"import spectrum\n\ndef train():\n    {line}\n\ntrain()\n")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=directory,
        env=quiet_environment(directory) | environment,
        capture_output=True,
        text=True,
        timeout=_GUARD,
    )
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.splitlines()


def frames(lines: list[str]) -> list[str]:
    return re.findall(r'^  File ".*?([^/]+)", line', "\n".join(lines), re.MULTILINE)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_script_shows_its_own_lines_and_one_of_ours(mistake: str, directory: Path) -> None:
    line, message = MISTAKES[mistake]
    lines = script(directory, line)
    assert lines[0] == "Traceback (most recent call last):"
    assert frames(lines) == ["script.py", "script.py", "errors.py"]
    assert lines[-1].startswith(f"spectrum.errors.{message}")
    assert len(lines) <= 10
    assert sum("Traceback" in text for text in lines) == 1


def test_a_repository_that_a_server_denies_is_one_line_too(directory: Path) -> None:
    with HubServer({}) as server:
        lines = script(directory, "spectrum.scan('acme/nothing')", HF_ENDPOINT=server.endpoint, HF_HUB_OFFLINE="0")
    assert len(lines) <= 10
    assert "no such repository on the Hub" in lines[-1]


def test_debugging_shows_how_the_error_came_about(directory: Path) -> None:
    lines = script(directory, "spectrum.scan('broken')", SPECTRUM_DEBUG="1")
    assert "The above exception was the direct cause of the following exception:" in lines
    assert {"local.py", "api.py", "request.py"} <= set(frames(lines))


def test_the_cause_is_kept_for_debugging_only(monkeypatch: pytest.MonkeyPatch) -> None:
    @short_traceback
    def fail() -> None:
        try:
            raise OSError("disk")
        except OSError as error:
            raise CheckpointError("cannot read it") from error

    with pytest.raises(CheckpointError) as short:
        fail()
    assert (short.value.__cause__, short.value.__suppress_context__) == (None, True)
    monkeypatch.setenv("SPECTRUM_DEBUG", "1")
    with pytest.raises(CheckpointError) as full:
        fail()
    assert isinstance(full.value.__cause__, OSError)


def test_an_interrupt_that_says_what_is_kept_is_as_short() -> None:
    @short_traceback
    def scan(*words: str) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise KeyboardInterrupt(*words) from interrupt

    with pytest.raises(KeyboardInterrupt) as short:
        scan("16 of 75 matrices are scored and kept")
    assert (short.value.__cause__, [entry.name for entry in short.traceback][-1]) == (None, "call")
    with pytest.raises(KeyboardInterrupt) as full:
        scan()
    assert [entry.name for entry in full.traceback][-1] == "scan"


def test_an_error_that_is_not_ours_keeps_its_traceback() -> None:
    @short_traceback
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        fail()
    assert [entry.name for entry in raised.traceback][-2:] == ["call", "fail"]


@pytest.mark.slow
def test_a_notebook_shows_its_own_line_and_the_message(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat: Any = pytest.importorskip("nbformat")
    nbclient: Any = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name in ("SPECTRUM_DEBUG", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    mistakes = ("a repository that does not exist", "a damaged config")
    cells = [f"import spectrum\n{MISTAKES[mistake][0]}" for mistake in mistakes]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=_GUARD, allow_errors=True, resources={"metadata": {"path": str(directory)}}
    )
    manager = client.create_kernel_manager()
    manager.kernel_spec.argv[0] = sys.executable
    client.execute()
    for cell, words in zip(notebook.cells, ("acme/nothing", "not valid JSON"), strict=True):
        (error,) = (output for output in cell.outputs if output.output_type == "error")
        shown = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
        assert len(shown) <= 14, "\n".join(shown)
        assert "----> 2 spectrum.scan" in "\n".join(shown)
        assert sum(line.startswith("File ") for line in shown) == 1
        assert words in shown[-1]


# Names, as the command takes them.


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and working directory with a model, and no network."""
    shutil.copytree(TINY_LLAMA, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def scanned(model: str | Path, *args: Any, **settings: Any) -> spectrum.ScanResult:
    return spectrum.scan(model, *args, show_progress=False, device="cpu", **settings)


@pytest.mark.parametrize("name", ["model", "model/", "~/model", "path"])
def test_a_model_is_named_as_for_the_command(name: str, work: Path) -> None:
    model = Path("model") if name == "path" else name
    result = scanned(model, "mlp.up_proj,mlp.down_proj", results_dir="~/scans")
    assert result.scanned == ("mlp.down_proj", "mlp.up_proj")
    slug = "~-model" if name == "~/model" else "model"
    assert (work / "scans" / f"snr_results_{slug}.json").is_file()


def test_lists_may_be_in_the_home_directory(work: Path) -> None:
    import transformers

    selection = spectrum.select(scanned("model", "mlp.*"), "25%")
    assert selection.percent == "25"
    assert selection.to_yaml("~/list.yaml") == work / "list.yaml"
    model = transformers.AutoModelForCausalLM.from_pretrained("model")
    assert "model.layers.0.self_attn.q_proj.weight" not in spectrum.unfreeze(model, "~/list.yaml").names


@pytest.mark.parametrize(
    ("settings", "revision"), [({}, "v2"), ({"revision": "v3"}, "v3")], ids=["address", "argument"]
)
@pytest.mark.usefixtures("work")
def test_an_address_names_a_repository_and_a_revision(
    settings: dict[str, str], revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = SimpleNamespace()

    def resolve(model: str, revision: str | None, **_: object) -> None:
        asked.model, asked.revision = model, revision
        raise HubError("no network here")

    monkeypatch.setattr(hub, "resolve", resolve)
    with pytest.raises(HubError, match="no network"):
        scanned("https://huggingface.co/acme/tiny/tree/v2", **settings)
    assert (asked.model, asked.revision) == ("acme/tiny", revision)


@pytest.mark.parametrize("name", ["", "https://models.example/acme/tiny"])
def test_what_names_no_model_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"empty|not the address"):
        scanned(name)
