"""Several processes that scan together, under the launchers that start them: what they write, what they say, how they
end when one of them does not go on."""

from __future__ import annotations

import io
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from spectrum.cli.entry import main
from spectrum.compute.batches import batch_cost, plan, share
from spectrum.records import LayerWeight
from spectrum.scanning import distributed
from tests.helpers import slow_spectrum
from tests.helpers.architectures import built
from tests.helpers.batches import BATCH_SIZES, BUDGET, UNTIMED, models
from tests.helpers.forks import Forks
from tests.helpers.paths import TINY_LLAMA, files_below
from tests.helpers.processes import BIN, torchrun
from tests.helpers.slow_spectrum import await_journals, scored
from tests.helpers.strangers import add_strangers

# Runs of two processes, of which a small machine has cores for two at a time.
_AT_ONCE = 2
_GUARD = 150  # seconds, against hangs; a quiet machine needs ten

SPECTRUM = ["--no-python", str(BIN / "spectrum")]
ACCELERATED = ["--no_python", str(BIN / "spectrum")]
MODULE = ["-m", "spectrum"]
SCRIPT = [slow_spectrum.__file__]

MODEL = ["--model-name", "model"]
# One matrix after another in every process: what several compute in one call is scored all at once, or not at all.
SINGLY = [*MODEL, "--batch-size", "1", "--layer-types", "all"]
JOURNALS = "model_snr_results"


# Runs.


@dataclass
class Run:
    """How a launch ended, and what it said. ends: exit statuses of those processes that ended by themselves."""

    directory: Path
    status: int
    out: str
    err: str
    ends: Mapping[int, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What the command, not the launcher or the bar, said on stderr.

        Another process than the main one does not know where the bar has left the cursor.
        """
        return re.findall(r"spectrum(?: \(process \d+\))?: [^\r\n]*", self.err)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Nothing of the user's Hugging Face settings, nor of a launcher that might run the tests."""
    unwanted = ("HF_", "SPECTRUM_", "TRANSFORMERS_", "ACCELERATE_", "MASTER_", "TORCHELASTIC_")
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "HOLD", "FAULT", "READS", "ENDS", "MPI")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(unwanted) and k not in names}
    return inherited | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(tmp_path_factory.mktemp("hf-home")),
        "OMP_NUM_THREADS": "1",
    }


def node(rank: int, port: int, *args: str) -> list[str]:
    """One of two machines with a process each."""
    place = ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
    return [str(BIN / "torchrun"), "--nproc-per-node=1", *place, *args]


def accelerate(number: int, *args: str) -> list[str]:
    options = ["--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    options += [f"--num_processes={number}", f"--main_process_port={free_port()}"]
    return [str(BIN / "accelerate"), "launch", *options, *args]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Launcher:
    """Starts launches in a working directory, and waits for them."""

    def __init__(self, directory: Path, model: Path, environment: Mapping[str, str]) -> None:
        self.directory, self._model, self._environment = directory, model, environment
        self._processes: list[tuple[Path, subprocess.Popen[str]]] = []

    def place(self, name: str = ".") -> Path:
        """A working directory with the model in it, and directories outside it for what the script records."""
        directory = self.directory / name
        shutil.copytree(self._model, directory / "model")
        return directory

    def start(self, command: Sequence[str], directory: Path, **environment: str) -> subprocess.Popen[str]:
        """Start a launcher in a process group of its own."""
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**self._environment, "ENDS": str(self.recorded("ends")), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append((directory, process))
        return process

    def recorded(self, what: str) -> Path:
        directory = self.directory.with_name(f"{self.directory.name}-{what}")
        directory.mkdir(exist_ok=True)
        return directory

    def wait(self) -> list[Run]:
        """How all that were started ended. Those that do not are ended, which fails the test."""
        runs = []
        try:
            for directory, process in self._processes:
                out, err = process.communicate(timeout=_GUARD)
                runs.append(Run(directory, process.returncode, out, err))
        finally:
            for _, process in self._processes:
                self._end(process)
        ends = {int(file.name): int(file.read_text()) for file in self.recorded("ends").iterdir()}
        for run in runs:
            run.ends = ends
        return runs

    def _end(self, process: subprocess.Popen[str]) -> None:
        """First in the way in which a launcher ends its processes, which have groups of their own, too."""
        for end in (process.terminate, process.kill):
            if process.poll() is None:
                end()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=60)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


def said_until(process: subprocess.Popen[str], words: str) -> str:
    """What comes on a process's stderr until it has these words, or has ended, or nothing more comes."""
    assert process.stderr is not None
    stream, said = process.stderr.fileno(), b""
    while words.encode() not in said and select.select([stream], [], [], _GUARD)[0]:
        if not (part := os.read(stream, 10_000)):
            break
        said += part
    return said.decode()


def whole(launcher: Launcher, command: list[str]) -> list[Run]:
    launcher.start(command, launcher.place())
    return launcher.wait()


def four(launcher: Launcher) -> list[Run]:
    return whole(launcher, torchrun(4, *SPECTRUM, *MODEL))


def accelerated(launcher: Launcher) -> list[Run]:
    """A mixture of experts, under a torch that has MPI, which accelerate would choose."""
    command = accelerate(2, *SCRIPT, *SINGLY[:-2])
    launcher.start(command, launcher.place(), READS=str(launcher.recorded("reads")), MPI="1")
    return launcher.wait()


def apart(launcher: Launcher) -> list[Run]:
    """Two machines that share no files."""
    port = free_port()
    for rank in range(2):
        launcher.start(node(rank, port, *SPECTRUM, *MODEL), launcher.place(f"node-{rank}"))
    return launcher.wait()


def at_odds(launcher: Launcher) -> list[Run]:
    """Two machines that have other weights under the same name."""
    port = free_port()
    for rank in range(2):
        directory = launcher.place(f"node-{rank}")
        if rank == 1:
            shard = directory / "model" / "model-00001-of-00002.safetensors"
            save_file({name: tensor * 2 for name, tensor in load_file(shard).items()}, shard, {"format": "pt"})
        launcher.start(node(rank, port, *SCRIPT, *MODEL), directory)
    return launcher.wait()


def damaged(launcher: Launcher) -> list[Run]:
    directory = launcher.place()
    shard = directory / "model" / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    launcher.start(torchrun(2, *SCRIPT, *MODEL), directory)
    return launcher.wait()


def with_fault(fault: str, launcher: Launcher) -> list[Run]:
    directory = launcher.place()
    launcher.start(torchrun(2, *SCRIPT, *SINGLY), directory, HOLD=str(directory / JOURNALS), FAULT=fault)
    return launcher.wait()


def killed(launcher: Launcher) -> list[Run]:
    return with_fault("1 killed", launcher)


def main_failed(launcher: Launcher) -> list[Run]:
    return with_fault("0 failed", launcher)


def other_failed(launcher: Launcher) -> list[Run]:
    return with_fault("1 failed", launcher)


def signalled(launcher: Launcher, send: Callable[[int], None]) -> list[Run]:
    directory = launcher.place()
    process = launcher.start(torchrun(2, *SCRIPT, *SINGLY), directory, HOLD=str(directory / JOURNALS))
    await_journals(directory / JOURNALS, 2, going=lambda: process.poll() is None)
    send(process.pid)
    return launcher.wait()


def interrupted(launcher: Launcher) -> list[Run]:
    """As by Ctrl-C on a terminal."""
    return signalled(launcher, lambda process: os.killpg(process, signal.SIGINT))


def terminated(launcher: Launcher) -> list[Run]:
    """As by a batch system."""
    return signalled(launcher, lambda process: os.kill(process, signal.SIGTERM))


# A scan in which process 1 is stopped at its first matrix, and the main process, at work by then, has little patience.
STOPPING = """
import os, signal
from spectrum.checkpoint import reader
from spectrum.cli import entry
from spectrum.scanning import distributed

read = reader.Checkpoint.read

def stopping(self, weight, index):
    distributed.SECONDS_BEFORE_NOTICE = 0.5
    if distributed.rank() == 1 and not os.path.exists("stopped"):
        with open("stopped.new", "w") as file:
            file.write(str(os.getpid()))
        os.rename("stopped.new", "stopped")
        os.kill(os.getpid(), signal.SIGSTOP)
    return read(self, weight, index)

reader.Checkpoint.read = stopping
entry.command()
"""
STOPPED = "stopped"


def stopped(launcher: Launcher) -> list[Run]:
    """A process that is stopped, and goes on once the main process says that it waits."""
    directory = launcher.place()
    (directory / "stopping.py").write_text(STOPPING)
    process = launcher.start(torchrun(2, "stopping.py", *MODEL), directory)
    said = said_until(process, "waits for the other")
    while process.poll() is None:
        with suppress(OSError):  # it is not stopped yet, or has ended
            os.kill(int((directory / STOPPED).read_text()), signal.SIGCONT)
        time.sleep(0.1)
    for name in (STOPPED, "stopping.py"):
        (directory / name).unlink()
    (run,) = launcher.wait()
    run.err = said + run.err
    return [run]


def among_strangers(launcher: Launcher, command: list[str]) -> list[Run]:
    """A scan in a directory of hostile modules, one of which has the command's own name."""
    directory = launcher.place()
    add_strangers(directory, "spectrum")
    launcher.start([*command, *MODEL, "--layer-types", "lm_head", "--top-percent", "100"], directory)
    return launcher.wait()


def torchrun_among_strangers(launcher: Launcher) -> list[Run]:
    return among_strangers(launcher, torchrun(2, *SPECTRUM))


def accelerate_among_strangers(launcher: Launcher) -> list[Run]:
    return among_strangers(launcher, accelerate(2, *ACCELERATED))


# The longest first, so that none is left for the end alone.
SCENARIOS: Sequence[Callable[[Launcher], list[Run]]] = [
    four,
    apart,
    at_odds,
    accelerated,
    killed,
    main_failed,
    other_failed,
    interrupted,
    terminated,
    stopped,
    torchrun_among_strangers,
    accelerate_among_strangers,
    damaged,
]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mixture of experts."""
    directory = tmp_path_factory.mktemp("mixture")
    built("qwen3-moe").save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def launches(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    environment: Mapping[str, str],
    mixture: Path,
) -> Iterator[Mapping[str, Future[list[Run]]]]:
    """The launches that the selected tests look at, at work while these do: they take most of the time to start."""
    wanted = {
        item.callspec.params.get("runs")
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.path == request.path and hasattr(item, "callspec")
    }
    pool = ThreadPoolExecutor(_AT_ONCE)
    futures = {}
    for scenario in SCENARIOS:
        if (name := scenario.__name__) in wanted:
            model = mixture if scenario is accelerated else TINY_LLAMA
            launcher = Launcher(tmp_path_factory.mktemp(name), model, environment)
            futures[name] = pool.submit(scenario, launcher)
    yield futures
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def runs(request: pytest.FixtureRequest, launches: Mapping[str, Future[list[Run]]]) -> list[Run]:
    """A launch that has ended; of two machines, one for each."""
    return launches[request.param].result()


def of(*scenarios: Callable[[Launcher], list[Run]]) -> pytest.MarkDecorator:
    names = [pytest.param(scenario.__name__, marks=pytest.mark.slow) for scenario in scenarios]
    return pytest.mark.parametrize("runs", names, indirect=True)


def single(directory: Path, *args: str) -> Run:
    """The command in this process alone."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(directory)
        status = main(args)
    return Run(directory, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def alone(launches: object, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A single process's scan of the sample checkpoint, made while the launches are under way."""
    directory = tmp_path_factory.mktemp("alone")
    shutil.copytree(TINY_LLAMA, directory / "model")
    run = single(directory, *MODEL)
    assert run.status == 0, run.err
    return run


@pytest.fixture(scope="module")
def mixture_alone(launches: object, tmp_path_factory: pytest.TempPathFactory, mixture: Path) -> Run:
    directory = tmp_path_factory.mktemp("mixture-alone")
    shutil.copytree(mixture, directory / "model")
    run = single(directory, *SINGLY[:-2])
    assert run.status == 0, run.err
    return run


def written(run: Run) -> dict[str, bytes]:
    """All files that a run left, except for the model's."""
    names = [name for name in files_below(run.directory) if not name.startswith("model/")]
    return {name: (run.directory / name).read_bytes() for name in names}


# Scans that come to their end.


def assert_as_alone(run: Run, number: int, alone: Run) -> None:
    """The same files, said once, in the same words but for where the scan was made."""
    assert run.status == 0, run.err
    assert len(written(alone)) == 4
    assert written(run) == written(alone)
    first, _, rest = run.out.partition("\n")
    assert re.sub(r" in \d.*", "", first) == re.sub(r" on cpu in .*", "", alone.out.partition("\n")[0])
    assert f" in {number} processes in " in first
    assert rest == alone.out.partition("\n")[2]
    assert run.lines() == alone.lines()
    assert len(alone.lines()) == 1
    assert run.err.count("100%|") == 1


@of(four)
def test_four_processes_do_as_one(runs: list[Run], alone: Run) -> None:
    assert_as_alone(runs[0], 4, alone)


@of(accelerated)
def test_a_mixture_of_experts_is_scored_as_by_one(runs: list[Run], mixture_alone: Run) -> None:
    assert_as_alone(runs[0], 2, mixture_alone)
    assert runs[0].ends == {0: 0, 1: 0}


@of(accelerated)
def test_experts_of_one_stack_are_split_and_each_is_read_once(runs: list[Run]) -> None:
    reads = runs[0].directory.with_name(f"{runs[0].directory.name}-reads")
    read = {process: (reads / str(process)).read_text().splitlines() for process in range(2)}
    everything = read[0] + read[1]
    assert len(everything) == len(set(everything))
    experts = {f"model.layers.{i}.mlp.experts.{name}" for i in range(2) for name in ("gate_up_proj", "down_proj")}
    assert {f"{stack} {i}" for stack in experts for i in range(4)} <= set(everything)
    by_process = [{line.split()[0] for line in read[process]} & experts for process in range(2)]
    assert by_process == [experts, experts]


@of(apart)
def test_without_shared_files_the_results_arrive_on_the_main_machine(runs: list[Run], alone: Run) -> None:
    main_machine, other = runs
    assert_as_alone(main_machine, 2, alone)
    assert other.status == 0, other.err
    assert written(other) == {}
    assert (other.out, other.lines()) == ("", [])


@pytest.fixture
def cached(alone: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(alone.directory, tmp_path / "work"))


@pytest.mark.slow
def test_a_cached_scan_serves_all(cached: Path, environment: Mapping[str, str]) -> None:
    run = subprocess.run(
        torchrun(2, *MODULE, *MODEL, "--top-percent", "25"),
        cwd=cached,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_GUARD,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == single(cached, *MODEL, "--top-percent", "25").out
    assert run.stdout.startswith("75 layers of model (LlamaForCausalLM), from the cached scan.")
    assert "spectrum" not in run.stderr


@of(torchrun_among_strangers, accelerate_among_strangers)
def test_no_module_of_the_working_directory_is_run(runs: list[Run]) -> None:
    assert runs[0].status == 0, runs[0].err
    assert runs[0].out.startswith("Scanned 1 layer of model (LlamaForCausalLM) in 2 processes in ")
    assert not (runs[0].directory / "owned").exists()


# Waits.


@of(stopped)
def test_a_wait_for_a_process_that_is_stopped_is_said_once(runs: list[Run], alone: Run) -> None:
    assert runs[0].status == 0, runs[0].err
    note = (
        "spectrum: the main process has done its part and waits for the other 1; it does not notice one that hangs or "
        "is stopped, so see that all are at work"
    )
    assert list(dict.fromkeys(runs[0].lines())) == [*alone.lines(), note]  # on a busy machine it may wait again
    assert written(runs[0]) == written(alone)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_main_process_says_that_it_waits_for_scores(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def received(call: object, waiting: str | None = None) -> list[None]:
        told.append(waiting is not None)
        return [None]

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "_has_joined", lambda: True)
    monkeypatch.setattr(distributed, "_run_interruptibly", received)
    distributed.gather([None])
    distributed.broadcast(None)  # the user may be being asked
    assert told == [rank == "0", False]


IMPATIENT = """
from spectrum.cli import entry
from spectrum.scanning import distributed

distributed.SECONDS_BEFORE_NOTICE = 0.5
entry.command()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "who"), [("0", "spectrum"), ("1", "spectrum (process 1)")])
def test_variables_that_a_launcher_left_are_named(rank: str, who: str, forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(TINY_LLAMA)
    left = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with forks.of(IMPATIENT).piped(*MODEL, "--yes", cwd=tmp_path, **left) as process:
        heard = process.said_until("waiting for")
        time.sleep(1.5)  # in which it would say so again
        process.send_signal(signal.SIGINT)
        said = (heard + process.stderr.read()).decode()
        assert process.stdout.read() == b""
        status = process.wait()
    lines = [line for line in said.splitlines() if line.startswith("spectrum")]
    assert lines[0] == (
        f"{who}: waiting for the other processes: RANK={rank} and WORLD_SIZE=2 say that there are 2; unset them if "
        "this one is alone"
    )
    assert lines[1:] == (["spectrum: interrupted"] if rank == "0" else [])
    assert status == 130


# Scans that do not.


def assert_one_error(run: Run, beginning: str, *words: str) -> None:
    """One line that says so; tracebacks, if any, are the launcher's."""
    assert run.status != 0
    errors = [line for line in run.lines() if "error: " in line]
    assert len(errors) == 1, run.err
    assert errors[0].startswith(beginning)
    for word in words:
        assert word in errors[0]
    assert not re.search(r'File "[^"]*/spectrum/\w+\.py"', run.err)
    assert run.out == ""


@of(damaged)
def test_a_damaged_checkpoint_is_said_once(runs: list[Run]) -> None:
    assert_one_error(runs[0], "spectrum: error: ", "model-00001-of-00002.safetensors")
    assert runs[0].ends.keys() == {0, 1}
    assert written(runs[0]) == {}


@of(at_odds)
def test_other_weights_on_another_machine_are_an_error_that_says_so(runs: list[Run]) -> None:
    main_machine, other = runs
    assert_one_error(other, "spectrum (process 1): error: ", "model holds other weights here than for the main process")
    assert_one_error(main_machine, "spectrum: error: the processes of this run lost each other")
    assert main_machine.ends == {0: 1, 1: 1}
    assert written(main_machine) == {}
    assert written(other) == {}


@of(main_failed)
def test_a_failure_of_the_main_process_ends_all(runs: list[Run]) -> None:
    assert_one_error(runs[0], f"spectrum: error: {slow_spectrum.FAULT}")
    assert runs[0].ends == {0: 1, 1: 143}


@of(other_failed)
def test_a_failure_of_another_process_ends_all(runs: list[Run]) -> None:
    assert_one_error(runs[0], f"spectrum (process 1): error: {slow_spectrum.FAULT}")
    assert runs[0].ends == {0: 143, 1: 1}


@of(killed)
def test_the_end_of_a_process_ends_all(runs: list[Run]) -> None:
    assert runs[0].status != 0
    # The other one heeded the launcher, which would have killed it a while later.
    assert runs[0].ends == {0: 143}
    assert not re.search(r'File "[^"]*/spectrum/\w+\.py"', runs[0].err)


@of(interrupted, terminated)
def test_an_interrupt_ends_all(runs: list[Run], request: pytest.FixtureRequest) -> None:
    status = 130 if request.node.callspec.params["runs"] == "interrupted" else 143
    assert runs[0].status != 0
    assert runs[0].ends == {0: status, 1: status}
    assert runs[0].out == ""
    (line,) = runs[0].lines()
    assert line.startswith("spectrum: interrupted; ")
    assert not re.search(r'File "[^"]*/spectrum/\w+\.py"', runs[0].err)


@of(killed, main_failed, other_failed, interrupted, terminated)
def test_a_rerun_by_one_process_goes_on_from_the_journals_of_all(runs: list[Run], alone: Run, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(runs[0].directory, tmp_path / "work"))
    of_each = scored(directory / JOURNALS)
    assert len(of_each) == 2
    assert all(of_each)
    rerun = single(directory, *SINGLY)
    assert rerun.status == 0, rerun.err
    assert rerun.lines() == [
        f"spectrum: resuming an interrupted scan: {sum(of_each)} of 75 matrices are scored",
    ]
    assert written(rerun) == written(alone)


# What the launcher tells.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (1, 0, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, (1, 0, 0)),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, (4, 0, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, (4, 3, 1)),
        # Parts of it, as left in a shell or set by something that starts no processes.
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "2"}, (1, 0, 0)),
        ({"RANK": "2", "LOCAL_RANK": "2"}, (1, 0, 0)),
        ({"RANK": "2", "WORLD_SIZE": "0"}, (1, 0, 0)),
        ({"RANK": "2", "WORLD_SIZE": "many"}, (1, 0, 0)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (2, 1, 0)),
    ],
)
def test_the_environment_says_who_scans_together(
    environment: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (distributed.count(), distributed.rank(), distributed.local_rank()) == expected


def test_one_process_meets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    distributed.join()
    value = object()
    assert distributed.broadcast(value) is value
    assert distributed.gather([value]) == [value]
    distributed.leave()


# Shares.


@UNTIMED
@given(models(), BATCH_SIZES, st.integers(1, 9))
def test_each_batch_is_in_one_share_the_costliest_first(
    weights: list[LayerWeight], batch_size: int | None, number: int
) -> None:
    batches = plan(weights, batch_size, BUDGET)
    shares = share(batches, number)
    assert len(shares) == number
    dealt = [batch for each in shares for batch in each]
    assert len(dealt) == len(batches)
    assert set(dealt) == set(batches)
    for each in shares:
        assert each == sorted(each, key=batch_cost, reverse=True)


@UNTIMED
@given(models(), BATCH_SIZES, st.integers(1, 9))
def test_shares_differ_by_no_more_than_a_batch(weights: list[LayerWeight], batch_size: int | None, number: int) -> None:
    batches = plan(weights, batch_size, BUDGET)
    loads = [sum(map(batch_cost, each)) for each in share(batches, number)]
    assert max(loads) <= sum(loads) / number + max(map(batch_cost, batches), default=0)
    # Who has the most would have had no more than the others before the last, and cheapest, that it took.
    assert all(sum(map(batch_cost, each[:-1])) <= min(loads) for each in share(batches, number) if each)
