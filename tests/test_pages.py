"""The pages are correct: their commands and Python run, the output is the one shown, their links and names exist."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from spectrum.cli.console.grammar import parser
from spectrum.cli.entry import main
from tests.helpers.pages import PAGES, Block, Command, anchors, blocks, commands, prose, read, shown_within, timeless
from tests.helpers.paths import ROOT, TINY_LLAMA

# The models that the examples name.
MODELS = ("tests/data/tiny-llama", "org/model", "org/model-instruct", "path/to/model")

# Trained models that the examples name, by what moved: the selection of 25 percent, and something else.
SELECTED = (
    *("lm_head", "embed_tokens", "layers.[01].input_layernorm", "layers.[01].post_attention_layernorm"),
    *("layers.[12].mlp.down_proj", "layers.[12].mlp.gate_proj", "layers.[12].mlp.up_proj"),
    *("layers.[02].self_attn.q_proj", "layers.[01].self_attn.[kv]_proj", "layers.[06].self_attn.o_proj"),
)
TRAINED = {
    "path/to/trained": SELECTED,
    "runs/epoch-3": ("lm_head", "layers.1.mlp.down_proj", "layers.3.self_attn.q_proj"),
}

LAUNCHERS = ("torchrun", "accelerate")

# The commands that no test runs, by how they begin, and why.
NOT_RUN = {
    "python3 -m venv": "creates an environment and installs torch; .ci/run runs the README's test command",
    "source .venv/bin/activate": "changes a shell",
    "pip install": "needs a network",
    "pre-commit install": "pre-commit is not a dependency of the tests",
    "srun": "needs a cluster of several machines",
    "swift": "ms-swift is not a dependency of the tests",
    "trl": "trains; tests/trainers/formats/test_readers.py gives TRL these arguments",
    "ruff": "run by .ci/run",
    "mypy": "run by .ci/run",
    ".ci/run": "runs these tests",
    ".ci/with-transformers": "installs another version of transformers, and runs tests",
}

# Options of other tools that the pages name.
FOREIGN = {
    *("--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--no-python"),  # torchrun
    *("--multi_gpu", "--num_processes", "--no_python"),  # accelerate
    "--ntasks-per-node",  # Slurm
    *("--model", "--tuner_type"),  # ms-swift
    *("--model_name_or_path", "--lora_r", "--lora_dropout"),  # TRL
}


COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if command.words()[0] == "spectrum"]
LAUNCHED = [command for command in COMMANDS if command.words()[0] in LAUNCHERS]
MODULES = [command for command in COMMANDS if re.match(r"(\.venv/bin/)?python -m ", command.text)]
PYTHON = [block for page in PAGES for block in blocks(page) if block.language == "python"]
NAMED = re.compile(r"(?<![\w./-])(?:spectrum|tests)/[\w./-]*\w/?")  # a file or folder
PATHS = dict.fromkeys((page, path) for page in PAGES for path in NAMED.findall(read(page)))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the models that the examples name."""
    for name in MODELS:
        shutil.copytree(TINY_LLAMA, tmp_path / name)
    for name, moved in TRAINED.items():
        shutil.copytree(TINY_LLAMA, tmp_path / name)
        for shard in (tmp_path / name).glob("*.safetensors"):
            state = {
                key: tensor * (1.5 if re.search("|".join(moved), key) else 1)
                for key, tensor in load_file(shard).items()
            }
            save_file(state, shard, metadata={"format": "pt"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What runs.


@pytest.mark.parametrize("command", OURS, ids=str)
def test_the_command_does_what_the_page_shows(command: Command, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.yaml").write_text(command.config)
    arguments = command.words()[1:]
    has_problem = any(line.startswith("problem:") for line in command.shown)
    assert main(arguments) == int(has_problem), capsys.readouterr().err
    printed = capsys.readouterr().out.splitlines()
    assert not command.shown or shown_within(timeless(command.shown), timeless(printed)), "\n".join(printed)
    for picture in (word for word in arguments if word.endswith(".png")):
        assert (here / picture).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", LAUNCHED, ids=str)
def test_the_launcher_starts_processes_that_scan_together(command: Command, here: Path) -> None:
    # With two processes, and a port of their own because other tests may run at the same time.
    launcher, *arguments = re.sub(r"(--nproc-per-node|--num_processes) \d+", r"\1 2", command.text).split()
    if launcher == "torchrun":
        arguments.insert(0, "--standalone")
    else:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            arguments.insert(1, f"--main_process_port={listener.getsockname()[1]}")
    bin_directory = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_", "ACCELERATE_"))}
    environment |= {"HF_HOME": str(here / "hf-home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [bin_directory / launcher, *arguments], cwd=here, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Scanned 75 layers of org/model")
    several = " 2" in "".join(re.findall(r"--(?:nproc-per-node|num_processes)( 2)", " ".join(arguments)))
    assert ("in 2 processes" in done.stdout) == several


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what the Python on the pages reads: a model, its scan and its lists."""
    directory = tmp_path_factory.mktemp("lists")
    shutil.copytree(TINY_LLAMA, directory / "org/model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for form in ("axolotl", "peft"):
            assert main(["--model-name", "org/model", "--top-percent", "25", "--yes", "--format", form, "-q"]) == 0
    return directory


# peft uses an old name from transformers.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: f"{block.page}: line {block.line}")
def test_the_python_runs_and_trains_what_was_selected(
    block: Block, lists: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    shutil.copytree(lists, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": AutoModelForCausalLM.from_pretrained("org/model")}
    exec(block.text, names)
    trained = {name for name, value in names["model"].named_parameters() if value.requires_grad}
    layers = {i for i in range(8) if any(f".layers.{i}.mlp.down_proj." in name for name in trained)}
    assert layers == {1, 2}
    for file in re.findall(r'to_yaml\("(.*)"\)', block.text):
        assert Path(file).read_text().startswith("unfrozen_parameters:\n")


def test_each_list_shown_is_the_one_that_is_written(lists: Path) -> None:
    written = (lists / "snr_results_org-model_unfrozenparameters_25percent.yaml").read_text().splitlines()
    shown = [block for page in PAGES for block in blocks(page) if block.language == "yaml" and "..." in block.text]
    assert len(shown) > 1
    for block in shown:
        lines = block.text.removeprefix("base_model: org/model\n").splitlines()
        assert shown_within(lines, written), f"{block.page}: line {block.line}"


def test_every_command_is_run_or_listed_with_a_reason() -> None:
    rest = [command for command in COMMANDS if command not in (*OURS, *LAUNCHED, *MODULES)]
    used = {start for start in NOT_RUN for command in rest if command.text.startswith(start)}
    unknown = [str(command) for command in rest if not command.text.startswith(tuple(NOT_RUN))]
    assert not unknown
    assert used == NOT_RUN.keys()


@pytest.mark.parametrize("command", MODULES, ids=str)
def test_the_module_that_a_command_runs_has_these_options(command: Command) -> None:
    words = command.words()
    name, arguments = words[2], words[3:]
    if name == "pytest":
        if "-m" in arguments:
            marker = arguments.pop(arguments.index("-m") + 1).removeprefix("not ")
            arguments.remove("-m")
            assert f'markers = ["{marker}: ' in (ROOT / "pyproject.toml").read_text()
        for option in {"-n", "-k"} & {*arguments}:  # of pytest-xdist and of pytest
            at = arguments.index(option)
            del arguments[at : at + 2]
        assert [argument for argument in arguments if not (ROOT / argument).exists()] == []
        return
    source = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text()
    assert '__name__ == "__main__"' in source
    assert [word for word in arguments if word.startswith("--") and f'"{word}"' not in source] == []


# The README.


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len(read("README.md").split()) <= 1300


def test_the_readme_has_the_commands_that_install_and_try() -> None:
    page = read("README.md")
    assert re.search(r"^    python3 -m venv \.venv .*pytest$", page, re.MULTILINE)  # what .ci/run runs
    (arguments,) = re.findall(r"^    python3 -m venv .*/bin/spectrum (.*)$", page, re.MULTILINE)
    assert f"\n$ spectrum {arguments}\n" in page  # and its output


def test_the_readme_lists_every_option_with_its_default() -> None:
    rows = [row.split("|") for row in read("README.md").splitlines() if row.startswith("| `-")]
    defaults = {name: row[3].replace("`", "").strip() for row in rows for name in re.findall(r"`(-[\w-]+)", row[1])}
    shown = [action for action in parser()._actions if action.help != argparse.SUPPRESS]
    assert defaults.keys() == {name for action in shown for name in action.option_strings}
    for action in shown:
        listed = defaults[action.option_strings[0]]
        in_help = re.search(r"default: (.*?)\)", action.help or "")
        if in_help:
            assert listed in (in_help[1], f"asks on a terminal, else {in_help[1]}"), action.option_strings
        else:
            assert listed in ("off", "required", ""), action.option_strings


def test_the_readme_names_every_folder() -> None:
    folders = {f"spectrum/{path.parent.name}/" for path in (ROOT / "spectrum").glob("*/__init__.py")}
    assert folders == set(re.findall(r"`(spectrum/\w+/)`", read("README.md")))


# Every page.


@pytest.mark.parametrize("page", PAGES)
def test_every_long_option_exists(page: str) -> None:
    ours = {name for action in parser()._actions for name in action.option_strings}
    of_modules = {word for command in MODULES for word in command.words() if word.startswith("--")}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]+", read(page)))
    assert named - FOREIGN - of_modules - {"--top_percent"} <= ours  # --top_percent: an underscore works too


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        name = target.resolve().relative_to(ROOT.resolve()).as_posix()
        assert not anchor or anchor in anchors(name), link


@pytest.mark.parametrize(("page", "path"), PATHS)
def test_every_file_that_is_named_exists(page: str, path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("page", [page for page in PAGES if re.fullmatch(r"spectrum/\w+/README.md", page)])
def test_the_page_of_a_folder_names_each_of_its_modules(page: str) -> None:
    folder = (ROOT / page).parent
    modules = {path.name for path in folder.rglob("*.py")} - {"__init__.py"}
    assert modules
    assert modules <= set(re.findall(r"\b\w+\.py\b", read(page)))


def test_every_test_that_is_named_exists() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tests").rglob("test_*.py")]
    tests = {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    named = set(re.findall(r"`(test_\w+)`", read("tests/README.md")))
    assert named
    assert named <= tests


def test_the_message_of_a_resumed_scan_is_the_one_that_is_quoted() -> None:
    quoted = re.search(r"`([^`]*): 120 of 291 matrices are scored`", read("spectrum/scanning/README.md"))
    assert quoted
    assert f'"{quoted[1]}: {{' in (ROOT / "spectrum/scanning/job.py").read_text()
