"""What the README shows is what the command does: its options, its output, its modules, its two commands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from spectrum.cli.entry import main
from spectrum.cli.options import parser
from tests.helpers.paths import ROOT, TINY_LLAMA

README = (ROOT / "README.md").read_text()


def fenced(language: str) -> str:
    """The first code block of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_every_option_is_listed_with_its_default() -> None:
    listed = set(re.findall(r"^\| .*?`(--[a-z-]+)", README, re.MULTILINE)) | {"--help"}
    actual = {name for action in parser()._actions for name in action.option_strings if name.startswith("--")}
    assert listed == actual


def test_every_long_option_in_the_text_exists() -> None:
    ours = {name for action in parser()._actions for name in action.option_strings}
    underscored = {"--top_percent"}  # the spelling with an underscore, said to work
    of_launchers = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--ntasks-per-node"}
    of_launchers |= {"--multi_gpu", "--num_processes", "--no-python", "--no_python"}
    of_our_tests = {"--moments", "--runs", "--examples", "--out", "--rehearse"}
    of_ms_swift = {"--model", "--tuner_type"}
    foreign = underscored | of_launchers | of_ms_swift | of_our_tests
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", README)) - foreign <= ours


def test_the_output_shown_is_what_the_first_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (command,) = re.findall(r"^    python3 -m venv .*/bin/spectrum (.*)$", README, re.MULTILINE)
    shutil.copytree(TINY_LLAMA, tmp_path / "tests" / "data" / "tiny-llama")
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert re.sub(r"in [\d.]+ s\.", "", printed) == re.sub(r"in [\d.]+ s\.", "", fenced("text"))
    (written,) = tmp_path.glob("*.yaml")
    assert written.name in README
    shown = fenced("yaml").removesuffix("...\n")
    assert written.read_text().startswith(shown)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the models that the examples name."""
    for name in ("org/model", "org/model-instruct", "path/to/model"):
        shutil.copytree(TINY_LLAMA, tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("models")
def test_every_command_shown_works(tmp_path: Path) -> None:
    config = re.search(r"^```yaml\n(base_model: .*?)\.\.\.\n```$", README, re.DOTALL | re.MULTILINE)
    assert config
    (tmp_path / "config.yaml").write_text(config[1])
    commands = re.findall(r"^    spectrum (.*)$", README, re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        assert main([*command.split(), "--device", "cpu"]) == 0, command
    assert {path.name for path in tmp_path.glob("*.png")} == {"scores.png", "spectrum.png"}


# peft asks transformers for what it calls by another name now.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.usefixtures("models")
def test_the_python_shown_works() -> None:
    for form in ("axolotl", "peft"):
        assert main(["--model-name", "org/model", "--top-percent", "25", "--yes", "--format", form, "-q"]) == 0
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for block in blocks:
        exec(block, names)
    # What has been shown: adapters on the selected layers, then these layers themselves.
    trained = {name for name, value in names["model"].named_parameters() if value.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any(name.endswith("layers.1.mlp.down_proj.base_layer.weight") for name in trained)
    assert "with" in repr(names["report"])
    assert Path("axolotl.yaml").read_text().startswith("unfrozen_parameters:")


def test_the_layout_names_every_module() -> None:
    layout = README[README.index("    spectrum/\n") : README.index("Imports go from")]
    modules = {path.stem for path in (ROOT / "spectrum").glob("*.py")} - {"__init__", "__main__"}
    assert modules <= set(re.findall(r"[a-z]+", layout))


def test_the_files_that_it_names_exist() -> None:
    names = set(re.findall(r"\btests/[\w./-]+\.py\b", README))
    names |= {module.replace(".", "/") + ".py" for module in re.findall(r"-m (tests\.[\w.]+)", README)}
    assert names
    assert all((ROOT / name).is_file() for name in names)


def test_the_test_command_is_the_one_that_must_pass() -> None:
    assert re.search(r"^    python3 -m venv \.venv .*pytest$", README, re.MULTILINE)
