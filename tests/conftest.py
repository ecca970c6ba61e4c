"""What many tests share: the sample checkpoint, the command in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, partial
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
from hypothesis import settings

from tests.helpers import command
from tests.helpers.forks import Forks
from tests.helpers.processes import Spectrum, quiet_environment

if TYPE_CHECKING:
    import torch

# A busy machine makes no example fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


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


@pytest.fixture(scope="session")
def forks_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Mapping[str, str]], Forks]]:
    """A process to fork the command from, for each set of what Python and its libraries settle at their start."""
    clean = quiet_environment(tmp_path_factory.mktemp("hf-home"))
    with ExitStack() as stack:

        @cache
        def of(settings: frozenset[tuple[str, str]]) -> Forks:
            return stack.enter_context(Forks(clean | dict(settings)))

        yield lambda settings: of(frozenset(settings.items()))


@pytest.fixture(scope="session")
def forks(forks_in: Callable[[Mapping[str, str]], Forks]) -> Forks:
    """A process to fork the command from, with nothing of the user's Hugging Face settings."""
    return forks_in({})


@pytest.fixture
def run_spectrum(tmp_path: Path, forks_in: Callable[[Mapping[str, str]], Forks]) -> Spectrum:
    """Run the command in a process of its own, in an empty working directory."""

    def run(*args: str | Path, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess[str]:
        settled = {name: value for name, value in environment.items() if name in ("PYTHONUTF8", "LC_ALL")}
        return forks_in(settled).run(*args, cwd=cwd, environment=environment)

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


@pytest.fixture
def unshared() -> Iterator[None]:
    """What trainers leave in this process, beyond their own objects, does not reach other tests."""
    import accelerate.state
    import torch

    environment, states = dict(os.environ), torch.get_rng_state()
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_rng_state(states)
