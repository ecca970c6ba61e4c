"""What the README shows is what the command does: its options, its output, its modules, its two commands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from spectrum.cli import main, parser
from tests.conftest import ROOT, TINY_LLAMA

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
    of_launchers |= {"--multi_gpu", "--num_processes"}
    of_our_tests = {"--moments", "--runs", "--examples"}
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
