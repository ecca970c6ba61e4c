"""What many tests share: the sample checkpoint, the command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports torch: threads that wait for each other over tiny matrices take far longer than one alone,
# and most of all where other processes want the same cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell script makes its background jobs ignore SIGINT. Every child inherits that, and Python then sets no handler of
# its own: no process that a test starts could be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest

from tests.helpers import command
from tests.helpers.processes import Spectrum

if TYPE_CHECKING:
    import torch


@pytest.fixture
def gpu() -> torch.device:
    """A GPU, for tests that need one."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return torch.device("cuda", 0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The devices that the kernel runs on, as far as there are any."""
    if request.param == "cuda":
        request.getfixturevalue("gpu")
    return str(request.param)


@pytest.fixture
def run_spectrum(tmp_path: Path) -> Spectrum:
    """Run the command in an empty working directory, with nothing of the user's Hugging Face settings."""

    def run(*args: str | Path, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_", "TRANSFORMERS_"))}
        clean = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(tmp_path / "hf-home")}
        return subprocess.run(
            [sys.executable, "-m", "spectrum", *map(str, args)],
            cwd=cwd,
            env=inherited | clean | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(name="run")
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., command.Finished]:
    """Run the command in this process, in the working directory, which is an empty one."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return partial(command.run, Path())


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
