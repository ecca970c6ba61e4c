"""How the command starts: it runs no file of the working directory, and an interrupt ends it in one line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import spectrum
from tests.helpers.paths import ROOT, TINY_LLAMA
from tests.helpers.strangers import add_strangers

pytestmark = pytest.mark.slow


def run(directory: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited: Mapping[str, str] = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, "-m", "spectrum", *args],
        cwd=directory,
        env={**inherited, "HF_HUB_OFFLINE": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def search_path(*first: Path) -> str:
    """A PYTHONPATH of these directories, and then those of the tests."""
    return os.pathsep.join([*map(str, first), *filter(None, [os.environ.get("PYTHONPATH")])])


SCAN = ["--model-name", "model", "--yes", "--layer-types", "lm_head", "--top-percent", "100", "--quiet"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "model").symlink_to(TINY_LLAMA)
    return tmp_path / "work"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["", "PYTHONPATH"])
@pytest.mark.parametrize(
    ("args", "printed"),
    [
        (["--version"], f"spectrum {spectrum.__version__}\n"),
        (SCAN, "snr_results_model_unfrozenparameters_100percent.yaml\n"),
    ],
    ids=["version", "scan"],
)
def test_no_module_of_the_working_directory_is_run(
    args: list[str], printed: str, elsewhere: bool, directory: Path
) -> None:
    marker = add_strangers(directory)
    environment = {"PYTHONPATH": search_path(directory.parent / "lib")} if elsewhere else {}
    done = run(directory, *args, **environment)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr
    assert not marker.exists()


@pytest.mark.parametrize("safe", ["", "1"], ids=["", "PYTHONSAFEPATH"])
def test_directories_that_the_user_names_stay(safe: str, directory: Path) -> None:
    if safe and sys.version_info < (3, 11):
        pytest.skip("Python has no such setting yet")
    # The user names the working directory itself. With the setting it is the first entry, else the second.
    marker = directory / "chosen"
    (directory / "tqdm.py").write_text(f"open({str(marker)!r}, 'w').close()\ndef tqdm(*args): ...\n")
    done = run(directory, "--version", PYTHONPATH=search_path(directory), PYTHONSAFEPATH=safe)
    assert done.returncode == 0, done.stderr
    assert marker.exists()


def test_a_clone_that_is_not_installed_runs_itself(directory: Path) -> None:
    shutil.copytree(ROOT / "spectrum", directory / "spectrum", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "spectrum" / "version.py").write_text('__version__ = "of the clone"\n')
    assert run(directory, "--version").stdout == "spectrum of the clone\n"
    done = run(directory, *SCAN)
    assert done.returncode == 0, done.stderr
    assert '"of the clone"' in (directory / "model_snr_results" / "snr_results_model.meta.json").read_text()


def run_where_it_is_gone(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a directory that is removed before it starts."""
    gone = directory / "gone"
    gone.mkdir()
    command = [sys.executable, "-m", "spectrum", *args]
    return subprocess.run(
        ["sh", "-c", 'rmdir "$PWD" && exec "$0" "$@"', *command], cwd=gone, capture_output=True, text=True, timeout=60
    )


def assert_refused(done: subprocess.CompletedProcess[str], start: str) -> str:
    """Check that the command failed with one line with this start; return the line."""
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(start)
    return line


def test_a_working_directory_that_is_gone_is_no_obstacle_to_what_needs_none(directory: Path) -> None:
    done = run_where_it_is_gone(directory, "--version")
    assert (done.returncode, done.stdout) == (0, f"spectrum {spectrum.__version__}\n"), done.stderr


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path) -> None:
    places = [f"--{name}={path}" for name, path in (("results-dir", tmp_path), ("output-dir", tmp_path))]
    done = run_where_it_is_gone(tmp_path, "--model-name", str(TINY_LLAMA), *places)
    assert_refused(done, "spectrum: error: the working directory is gone: ")


def test_a_process_that_meets_no_others_says_so_whatever_it_was_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.yaml").write_text("unfrozen_parameters:\n- model.nothing_of_the_kind\n")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    check = ["--model-name", str(TINY_LLAMA), "--check", "list.yaml"]
    line = assert_refused(run(tmp_path, *check, RANK="1", WORLD_SIZE="2"), "spectrum (process 1): error: ")
    assert "RANK=1 and WORLD_SIZE=2; unset them if this process is alone" in line


# Interrupts while the command starts.

CONSOLE_SCRIPT = "import sys; from spectrum.__main__ import command; sys.exit(command())"
STARTS = {"-m": ["-m", "spectrum"], "console script": ["-c", CONSOLE_SCRIPT]}


def test_the_console_script_starts_as_the_module_does() -> None:
    assert 'spectrum = "spectrum.__main__:command"' in (ROOT / "pyproject.toml").read_text()


def await_handlers(process: subprocess.Popen[str]) -> None:
    """Wait until a process handles SIGTERM, as the command does and Python itself does not."""
    for _ in range(3000):
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)
    raise AssertionError("the process does not handle SIGTERM")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell what a process handles")
@pytest.mark.parametrize("delay", [0, 0.01, 0.02, 0.05, 0.1], ids="{} s".format)
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("start", STARTS)
def test_an_interrupt_while_modules_are_imported_ends_the_command_in_one_line(
    start: str, number: signal.Signals, status: int, delay: float, directory: Path
) -> None:
    command = [sys.executable, *STARTS[start], *SCAN]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        await_handlers(process)
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "", "spectrum: interrupted\n")
    assert not (directory / "model_snr_results").exists()


SWALLOWED = """
import contextlib, os, sys
from spectrum.cli import entry
from spectrum.errors import CheckpointError

def run(options):
    with contextlib.suppress(BaseException):
        os.kill(os.getpid(), int(sys.argv[1]))
    raise {error}("could not import a module")

entry._run = run
entry.parse = lambda argv: None
entry.command()
"""


@pytest.mark.parametrize("error", ["CheckpointError", "RuntimeError"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_that_a_library_makes_an_error_of_is_told_as_one(
    number: signal.Signals, status: int, error: str
) -> None:
    program = SWALLOWED.replace("{error}", error)
    done = subprocess.run(
        [sys.executable, "-c", program, str(number.value)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "spectrum: interrupted\n")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell what a process handles")
def test_a_command_that_is_started_with_sigint_ignored_goes_on_ignoring_it(directory: Path) -> None:
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", ignoring, sys.executable, "-m", "spectrum", "--version"]
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        await_handlers(process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, f"spectrum {spectrum.__version__}\n", "")
