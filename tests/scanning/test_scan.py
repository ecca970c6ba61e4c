"""Scans that wait for each other, and scans that go on from what an earlier one has left."""

from __future__ import annotations

import gc
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.compute import devices, lanes, snr
from spectrum.compute.batches import WeightBatch
from spectrum.errors import ResultsError
from spectrum.records import LayerWeight
from spectrum.scanning import distributed
from spectrum.scanning.journal import Journal
from spectrum.scanning.request import ProgressBar
from spectrum.scanning.store import ScanStore
from tests.helpers import command
from tests.helpers.changes import train_one_layer
from tests.helpers.command import Finished
from tests.helpers.forks import Forks
from tests.helpers.paths import TINY_LLAMA, files_below
from tests.robustness.crowd import crowd

CACHE = Path("model_snr_results")
SCAN = CACHE / "snr_results_model.json"
SIDECAR = CACHE / "snr_results_model.meta.json"
SORTED = Path("snr_results_model_sorted.json")
YAML = Path("snr_results_model_unfrozenparameters_50percent.yaml")
WRITTEN = [SCAN, SIDECAR, SORTED, YAML]
MATRICES = 75  # of the sample checkpoint
CHECKED = 3  # scores of a journal that are computed once more

HANG = 240.0  # seconds that nothing here takes, short of a test that would never end


def run(directory: Path, *args: str, model: str = "model", err: io.StringIO | None = None) -> Finished:
    always = ("--model-name", model, "--yes", "--device", "cpu", "--batch-size", "1")
    return command.run(directory, *always, *args, err=err)


@dataclass(frozen=True)
class Scanned:
    """A finished scan of the sample checkpoint: the files that it left."""

    directory: Path
    files: dict[Path, bytes]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    directory = tmp_path_factory.mktemp("scanned")
    shutil.copytree(TINY_LLAMA, directory / "model")
    assert run(directory).status == 0
    return Scanned(directory, written(directory))


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A working directory with the model and nothing else."""
    shutil.copytree(TINY_LLAMA, tmp_path / "work" / "model")
    return tmp_path / "work"


def written(directory: Path) -> dict[Path, bytes]:
    return {path: (directory / path).read_bytes() for path in WRITTEN}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each parameter is read from now on."""
    counted: Counter[str] = Counter()
    read = Checkpoint.read

    def counting(self: Checkpoint, weight: LayerWeight, index: int) -> torch.Tensor:
        counted[weight.parameter] += 1
        return read(self, weight, index)

    monkeypatch.setattr(Checkpoint, "read", counting)
    return counted


def journal(directory: Path, process: int = 0) -> Path:
    return directory / ScanStore(CACHE, "model").journal_path(process)


def cut_short(directory: Path, after: int, *args: str) -> Finished:
    """A scan that is interrupted when so many matrices more are scored."""
    advance, batches = ProgressBar.advance, 0

    def interrupting(self: ProgressBar, batch: WeightBatch) -> None:
        nonlocal batches
        advance(self, batch)
        batches += 1
        if batches == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressBar, "advance", interrupting)
        done = run(directory, *args)
    gc.collect()  # the exception holds the scan, whose threads the end of a process would have ended
    for thread in threading.enumerate():
        if thread.name.startswith(("score ", "read ahead")):
            thread.join(HANG)
    assert done.status == 130
    return done


def finished_but_for_the_results(directory: Path, *args: str) -> None:
    """A scan that scored all, and could not write what came of it: its journal is complete."""

    def refuse(*args: object) -> None:
        raise ResultsError("cannot write it")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScanStore, "save", refuse)
        assert run(directory, *args).status == 1
    assert journal(directory).exists()


# Waiting.


class Listening(io.StringIO):
    """A stream that sets an event when a run says that it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited = threading.Event()

    def write(self, text: str) -> int:
        if "another run is scanning" in text:
            self.waited.set()
        return super().write(text)


@contextmanager
def another_run(directory: Path, meanwhile: Callable[[], object] = lambda: None, model: str = "model") -> Iterator[Any]:
    """Another run that has the lock, until someone waits for it and it has done this.

    Gives the stream that whoever is to wait must say so on. At the end the lock is given up in any case.
    """
    path, listening = directory / ScanStore(CACHE, model).lock_path, Listening()
    path.parent.mkdir(exist_ok=True)
    locked, over, problems = threading.Event(), threading.Event(), []

    def hold() -> None:
        with FileLock(path):
            locked.set()
            while not over.is_set():
                if listening.waited.wait(0.01):
                    try:
                        meanwhile()
                    except Exception as error:
                        problems.append(error)
                    return

    thread = threading.Thread(target=hold)
    thread.start()
    assert locked.wait(HANG)
    try:
        yield listening
    finally:
        over.set()
        thread.join(HANG)
    assert problems == []


WAITING = "spectrum: another run is scanning model into model_snr_results; waiting for it\n"


def test_a_second_run_waits_for_the_first_and_uses_its_scan(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    def save() -> None:
        for path in (SCAN, SIDECAR):
            (fresh / path).write_bytes(scanned.files[path])

    with another_run(fresh, save) as err:
        done = run(fresh, err=err)
    assert done.status == 0
    assert done.err.count(WAITING) == 1
    assert done.out.startswith("75 layers of model (LlamaForCausalLM), from the cached scan.")
    assert not reads
    assert written(fresh) == scanned.files


def test_a_second_run_goes_on_from_where_the_first_was_cut_short(
    scanned: Scanned, fresh: Path, tmp_path: Path, reads: Counter[str]
) -> None:
    shutil.copytree(fresh, tmp_path / "first")
    cut_short(tmp_path / "first", 20)
    left = journal(tmp_path / "first").read_bytes()
    reads.clear()
    with another_run(fresh, lambda: journal(fresh).write_bytes(left)) as err:
        done = run(fresh, err=err)
    assert done.status == 0
    assert done.err.index(WAITING) < done.err.index("resuming an interrupted scan: 20 of 75 matrices are scored")
    assert sum(reads.values()) == MATRICES - 20 + CHECKED
    assert written(fresh) == scanned.files


def test_rescan_waits_too_and_then_scans(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    def save() -> None:
        for path in (SCAN, SIDECAR):
            (fresh / path).write_bytes(scanned.files[path])

    with another_run(fresh, save) as err:
        done = run(fresh, "--rescan", err=err)
    assert WAITING in done.err
    assert done.out.startswith("Scanned 75 layers")
    assert sum(reads.values()) == MATRICES


@pytest.mark.parametrize(
    ("before", "meanwhile"), [(None, "mlp.*"), ("mlp.*", "*norm")], ids=["nothing before", "types before"]
)
def test_whoever_waits_while_other_types_are_scanned_keeps_them_and_adds_its_own(
    before: str | None, meanwhile: str, fresh: Path, tmp_path: Path
) -> None:
    # As it would, had it begun a moment later.
    if before is not None:
        assert run(fresh, "--layer-types", before).status == 0
    shutil.copytree(fresh, tmp_path / "first")
    assert run(tmp_path / "first", "--layer-types", meanwhile).status == 0

    def save() -> None:
        for path in (SCAN, SIDECAR):
            shutil.copy(tmp_path / "first" / path, fresh / path)

    with another_run(fresh, save) as err:
        assert run(fresh, "--layer-types", "self_attn.*", err=err).status == 0
    assert run(tmp_path / "first", "--layer-types", "self_attn.*").status == 0
    assert WAITING in err.getvalue()
    assert written(fresh) == written(tmp_path / "first")


def test_types_that_a_replaced_scan_had_are_scanned_again(fresh: Path, tmp_path: Path) -> None:
    assert run(fresh, "--layer-types", "mlp.*").status == 0
    shutil.copytree(fresh, tmp_path / "first")
    # While this run, which lacks only the second pattern's types, is on its way, another one puts other names there.
    other = ["--layer-types", "mlp.*", "--rescan", "--model-class", "LlamaModel"]
    assert run(tmp_path / "first", *other).status == 0

    def save() -> None:
        for path in (SCAN, SIDECAR):
            shutil.copy(tmp_path / "first" / path, fresh / path)

    with another_run(fresh, save) as err:
        assert run(fresh, "--layer-types", "mlp.*", "self_attn.*", err=err).status == 0
    assert WAITING in err.getvalue()
    layers = json.loads((fresh / SCAN).read_text())
    assert len(layers) == 56
    assert all(name.startswith("model.layers.") for name in layers)


def test_a_run_that_said_it_would_scan_all_types_does_so_after_waiting(
    scanned: Scanned, fresh: Path, tmp_path: Path
) -> None:
    # It has said so, or its user has, before it met the other one.
    shutil.copytree(fresh, tmp_path / "first")
    assert run(tmp_path / "first", "--layer-types", "mlp.*").status == 0

    def save() -> None:
        for path in (SCAN, SIDECAR):
            shutil.copy(tmp_path / "first" / path, fresh / path)

    with another_run(fresh, save) as err:
        done = run(fresh, err=err)
    assert done.status == 0
    assert "--yes: layer types all" in done.err
    assert written(fresh) == scanned.files


@pytest.mark.slow
def test_an_interrupt_ends_the_waiting(fresh: Path) -> None:
    before = files_below(fresh)
    ended = threading.Event()

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.wait(HANG)  # with the lock

    with another_run(fresh, interrupt) as err:
        done = run(fresh, err=err)
        ended.set()
    assert (done.status, done.out) == (130, "")
    assert done.err.endswith(f"{WAITING}spectrum: interrupted\n")
    assert files_below(fresh) == before


@pytest.mark.slow
def test_a_lock_left_by_a_process_that_died_is_no_obstacle(scanned: Scanned, fresh: Path) -> None:
    path = fresh / ScanStore(CACHE, "model").lock_path
    path.parent.mkdir()
    die = f"import filelock, os; filelock.FileLock({str(path)!r}).acquire(); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", die], timeout=HANG).returncode == -9
    assert path.exists()
    listening = Listening()
    done = run(fresh, err=listening)
    assert (done.status, listening.waited.is_set()) == (0, False)
    assert written(fresh) == scanned.files


def test_two_models_in_one_directory_do_not_wait_for_each_other(scanned: Scanned, fresh: Path) -> None:
    with another_run(fresh, model="other") as err:
        done = run(fresh, err=err)
        assert (done.status, err.waited.is_set()) == (0, False)
    assert written(fresh) == scanned.files


def test_a_cached_scan_is_read_without_waiting(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    with another_run(fresh) as err:
        done = run(fresh, err=err)
        assert (done.status, done.err) == (0, "")
    assert not reads


# A command that notes what it reads, and reads nothing before it may.
SLOW = """
import os, time
from spectrum.checkpoint import reader
from spectrum.cli import entry

read = reader.Checkpoint.read

def slow(self, weight, index):
    while not os.path.exists("go"):
        time.sleep(0.01)
    with open("reads", "a") as file:
        file.write(weight.parameter + chr(10))
    return read(self, weight, index)

reader.Checkpoint.read = slow
entry.command()
"""


@pytest.mark.slow
def test_two_runs_that_start_together_compute_each_matrix_once(forks: Forks, scanned: Scanned, fresh: Path) -> None:
    outputs = [fresh / "first", fresh / "second"]
    errors = [fresh / "first.err", fresh / "second.err"]
    processes = []
    for output, error in zip(outputs, errors, strict=True):
        args = ["--model-name", "model", "--yes", "--device", "cpu", "--output-dir", output.name]
        with error.open("wb") as stderr, (fresh / f"{output.name}.out").open("wb") as stdout:
            streams = {1: stdout.fileno(), 2: stderr.fileno()}
            processes.append(forks.of(SLOW).start(*args, cwd=fresh, streams=streams))
    try:
        deadline = time.monotonic() + HANG
        while not any(WAITING in error.read_text() for error in errors):
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (fresh / "go").touch()
        assert [process.wait(HANG) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert sorted(WAITING in error.read_text() for error in errors) == [False, True]
    counted = Counter((fresh / "reads").read_text().split())
    assert len(counted) == MATRICES
    assert set(counted.values()) == {1}
    firsts = sorted((fresh / f"{output.name}.out").read_text().split()[0] for output in outputs)
    assert firsts == ["75", "Scanned"]
    for output in outputs:
        assert {name: (output / name).read_bytes() for name in (SORTED, YAML)} == {
            name: scanned.files[name] for name in (SORTED, YAML)
        }
    assert [path.name for path in (fresh / CACHE).glob("*journal*")] == []


# Going on.


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 40, 74])
@pytest.mark.parametrize("again", [(), ("--rescan",)])
def test_a_scan_cut_short_is_gone_on_with(
    after: int, again: tuple[str, ...], scanned: Scanned, fresh: Path, reads: Counter[str]
) -> None:
    assert f"; {after} of 75 matrices are scored and kept; the same command " in cut_short(fresh, after, *again).err
    assert not (fresh / SCAN).exists()
    assert len(journal(fresh).read_bytes().splitlines()) == 1 + after
    reads.clear()
    done = run(fresh, *again)
    assert done.status == 0
    assert f"spectrum: resuming an interrupted scan: {after} of 75 matrices are scored\n" in done.err
    assert (len(reads), set(reads.values())) == (MATRICES - after + min(after, CHECKED), {1})
    assert written(fresh) == scanned.files
    assert not journal(fresh).exists()


@pytest.mark.slow
def test_a_scan_cut_short_twice_is_gone_on_with_twice(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    cut_short(fresh, 10)
    with journal(fresh).open("ab") as file:
        file.write(b'[["model.layers.0.mlp')  # what a process was writing when it was killed
    assert "; 20 of 75 matrices are scored and kept; " in cut_short(fresh, 10).err
    reads.clear()
    assert "interrupted scan: 20 of 75" in run(fresh).err
    assert sum(reads.values()) == MATRICES - 20 + CHECKED
    assert written(fresh) == scanned.files


def test_a_complete_journal_is_all_that_a_scan_needs(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    finished_but_for_the_results(fresh)
    reads.clear()
    done = run(fresh)
    assert "resuming an interrupted scan: 75 of 75" in done.err
    assert sum(reads.values()) == CHECKED
    assert written(fresh) == scanned.files
    assert not journal(fresh).exists()


def test_rescan_starts_afresh_where_the_journal_is_complete(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    finished_but_for_the_results(fresh)
    lines = journal(fresh).read_bytes().splitlines(keepends=True)
    doctored = [line.replace(b",0,", b",0,9") for line in lines[1:]]
    assert lines[1:] != doctored
    journal(fresh).write_bytes(b"".join([lines[0], *doctored]))  # which is seen where it is used
    reads.clear()
    done = run(fresh, "--rescan")
    assert (done.status, "resuming" in done.err) == (0, False)
    assert sum(reads.values()) == MATRICES
    assert written(fresh) == scanned.files
    assert not journal(fresh).exists()


def test_an_interrupt_of_the_wait_for_other_processes_says_what_is_kept(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(values: list[Any]) -> list[Any]:
        if len(values) == MATRICES:  # all scores, when they are sent
            raise KeyboardInterrupt
        return values

    monkeypatch.setattr(distributed, "gather", interrupted)
    done = run(fresh)
    assert done.status == 130
    assert "; 75 of 75 matrices are scored and kept; " in done.err


def test_a_rescan_that_is_cut_short_says_what_it_has_scored_itself(scanned: Scanned, fresh: Path) -> None:
    finished_but_for_the_results(fresh)
    assert "; 10 of 75 matrices are scored and kept; " in cut_short(fresh, 10, "--rescan").err
    assert "resuming an interrupted scan: 10 of 75" in run(fresh, "--rescan").err
    assert written(fresh) == scanned.files


def test_a_journal_of_some_types_serves_a_scan_of_all(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    cut_short(fresh, 20, "--layer-types", "mlp.*")
    done_before = set(reads)
    reads.clear()
    done = run(fresh)
    assert "resuming an interrupted scan: 20 of 75 matrices" in done.err
    assert sum(reads.values()) == MATRICES - 20 + CHECKED
    # Read ahead, though not scored, was one more or two.
    assert len(done_before & set(reads)) <= len(done_before) - 20 + CHECKED
    assert written(fresh) == scanned.files


def test_a_journal_of_all_types_serves_a_scan_of_some(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    finished_but_for_the_results(fresh)
    reads.clear()
    done = run(fresh, "--layer-types", "mlp.*")
    assert "resuming an interrupted scan: 24 of 24 matrices" in done.err
    assert sum(reads.values()) == CHECKED
    scores, every = json.loads((fresh / SCAN).read_text()), json.loads(scanned.files[SCAN])
    assert scores == {name: entry for name, entry in every.items() if entry["type"].startswith("mlp.")}


def other_version(fresh: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("spectrum.checkpoint.reader.__version__", "0.0.0")


def other_score(fresh: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(snr, "SCORE_VERSION", 0)


def other_weights(fresh: Path, patch: pytest.MonkeyPatch) -> None:
    train_one_layer(fresh / "model")


@pytest.mark.slow
@pytest.mark.parametrize("change", [other_version, other_score, other_weights])
def test_a_journal_of_something_else_is_not_used(
    change: Callable[[Path, pytest.MonkeyPatch], None], fresh: Path, tmp_path: Path, reads: Counter[str]
) -> None:
    clean = Path(shutil.copytree(fresh, tmp_path / "clean"))
    with pytest.MonkeyPatch.context() as patch:
        cut_short(fresh, 40)
        change(fresh, patch)
        reads.clear()
        done = run(fresh)
        assert (done.status, "resuming" in done.err) == (0, False)
        assert sum(reads.values()) == MATRICES
        if change is other_weights:
            change(clean, patch)
        assert run(clean).status == 0
    assert written(fresh) == written(clean)
    assert not journal(fresh).exists()


def test_a_journal_under_the_names_of_another_class_is_not_used(fresh: Path, reads: Counter[str]) -> None:
    cut_short(fresh, 40)
    reads.clear()
    done = run(fresh, "--model-class", "LlamaModel")
    assert (done.status, "resuming" in done.err) == (0, False)
    assert sum(reads.values()) == MATRICES - 1  # it has no head
    assert not journal(fresh).exists()


def test_journals_of_several_processes_are_used_and_removed(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    finished_but_for_the_results(fresh)
    head, *lines = journal(fresh).read_bytes().splitlines(keepends=True)
    assert len(lines) == MATRICES
    journal(fresh, 0).write_bytes(b"".join([head, *lines[:10]]))
    journal(fresh, 3).write_bytes(b"".join([head, *lines[8:30]]))
    journal(fresh, 12).write_bytes(b"".join([head, *lines[40:50], lines[50][:-2]]))
    journal(fresh, 7).write_bytes(b"".join([head.replace(b"spectrum", b"Spectrum"), *lines[60:]]))
    reads.clear()
    done = run(fresh)
    assert "resuming an interrupted scan: 40 of 75 matrices" in done.err
    assert sum(reads.values()) == MATRICES - 40 + CHECKED
    assert written(fresh) == scanned.files
    assert list((fresh / CACHE).glob("*journal*")) == []


def test_the_journal_of_another_model_is_left_alone(scanned: Scanned, fresh: Path) -> None:
    shutil.copytree(fresh / "model", fresh / "model-2")
    cut_short(fresh, 5)
    assert run(fresh, model="model-2").status == 0
    assert journal(fresh).exists()
    assert "interrupted scan: 5 of 75" in run(fresh).err
    assert written(fresh) == scanned.files


# The journal of a rescan, and of a scan that ended between writing its results and removing it.


def head_of(identity: object = None) -> bytes:
    return json.dumps(identity or {"weights": "0f3a"}).encode() + b"\n"


def precedes(content: bytes) -> bytes:
    return json.dumps({"precedes": hashlib.sha256(content).hexdigest()}).encode() + b"\n"


@pytest.mark.parametrize("later", [-3600, 0, 3600 * 24 * 365])  # the time of the scan's file, against the journal's
def test_a_cached_run_leaves_the_journal_of_an_interrupted_rescan(scanned: Scanned, fresh: Path, later: int) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    content = head_of() + precedes(scanned.files[SCAN])
    journal(fresh).write_bytes(content)
    now = time.time()
    os.utime(fresh / SCAN, (now, now + later))
    assert run(fresh).status == 0
    assert journal(fresh).read_bytes() == content


@pytest.mark.parametrize("second", [b"", precedes(b"other results")])
def test_a_cached_run_removes_the_journal_that_its_results_are_made_of(
    scanned: Scanned, fresh: Path, second: bytes
) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    journal(fresh).write_bytes(head_of() + second)
    assert run(fresh).status == 0
    assert not journal(fresh).exists()


def test_a_cached_run_removes_no_journal_while_a_scan_is_under_way(scanned: Scanned, fresh: Path) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    journal(fresh).write_bytes(head_of())
    with FileLock(fresh / ScanStore(CACHE, "model").lock_path):
        assert run(fresh).status == 0
        assert journal(fresh).exists()
    assert run(fresh).status == 0
    assert not journal(fresh).exists()


def test_a_rescan_that_is_cut_short_says_what_it_precedes(scanned: Scanned, fresh: Path) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    cut_short(fresh, 10, "--rescan")
    assert journal(fresh).read_bytes().splitlines(keepends=True)[1] == precedes(scanned.files[SCAN]).replace(b" ", b"")
    os.utime(fresh / SCAN, (0, time.time() + 3600))
    assert run(fresh).status == 0
    done = run(fresh, "--rescan")
    assert "resuming an interrupted scan: 10 of 75" in done.err
    assert not journal(fresh).exists()


def test_what_is_no_journal_is_left_alone_by_a_cached_run(scanned: Scanned, fresh: Path) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    journal(fresh).write_text("not a journal")
    assert run(fresh).status == 0
    assert journal(fresh).read_text() == "not a journal"


# A layer type without any score.


def test_a_type_without_a_score_is_added_to_a_cached_scan_and_refused_by_itself(tmp_path: Path) -> None:
    file = command.tiny_llama(tmp_path / "model") / "model.safetensors"
    state = safetensors.torch.load_file(file)
    state["lm_head.weight"] *= math.nan
    safetensors.torch.save_file(state, file, {"format": "pt"})
    assert run(tmp_path, "--layer-types", "mlp.*").status == 0
    for _ in range(2):  # scanned and added, then from the cache
        assert "lm_head" in run(tmp_path, "--layer-types", "mlp.*", "lm_head").said("warning: left out")[0]
        command.assert_refused(run(tmp_path, "--layer-types", "lm_head"), "every weight scanned holds NaN", "lm_head")


def test_the_scan_of_a_directory_that_is_gone_is_none_of_a_revision(scanned: Scanned, fresh: Path) -> None:
    shutil.copytree(scanned.directory / CACHE, fresh / CACHE)
    shutil.rmtree(fresh / "model")
    assert run(fresh).status == 0
    done = run(fresh, "--revision", "v2")
    assert done.status == 1
    assert "it is of a directory, not of a repository" in done.err


# A journal that was made up.


def doctored(line: bytes, snr: float) -> bytes:
    return json.dumps([[name, index, snr, edge] for name, index, _, edge in json.loads(line)]).encode() + b"\n"


@pytest.mark.parametrize("again", [(), ("--rescan",)])
def test_scores_that_are_not_the_weights_are_not_believed(
    scanned: Scanned, fresh: Path, again: tuple[str, ...]
) -> None:
    finished_but_for_the_results(fresh)
    head, *lines = journal(fresh).read_bytes().splitlines(keepends=True)
    journal(fresh).write_bytes(b"".join([head, *(doctored(line, 1e6) for line in lines[:-1])]))
    journal(fresh, 5).write_bytes(b"".join([head, *(doctored(line, 1e6) for line in lines[1:])]))
    done = run(fresh, *again)
    assert done.status == 0
    if not again:
        assert len(done.said("warning: the journal of an interrupted scan has a score of ")) == 1
    assert written(fresh) == scanned.files
    assert list((fresh / CACHE).glob("*journal*")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone gives files away")
def test_the_journal_of_another_user_is_not_used(scanned: Scanned, fresh: Path, reads: Counter[str]) -> None:
    finished_but_for_the_results(fresh)
    os.chown(journal(fresh), 12345, -1)
    reads.clear()
    done = run(fresh)
    assert (done.status, "resuming" in done.err) == (0, False)
    assert "another user; starting over" in done.err
    assert sum(reads.values()) == MATRICES
    assert written(fresh) == scanned.files


# A crowd.


@pytest.mark.slow
def test_many_cached_runs_at_a_time_meet_whole_files(scanned: Scanned, fresh: Path) -> None:
    for path in (SCAN, SIDECAR):
        (fresh / path).parent.mkdir(exist_ok=True)
        (fresh / path).write_bytes(scanned.files[path])
    store = ScanStore(fresh / CACHE, "model")
    cached = store.load()
    assert cached is not None

    def save() -> str:
        store.save(cached.result)
        return ""

    found = crowd(fresh, runs=12, at_once=3, write=save)
    assert (found.runs, found.faults) == (12, ())
    assert found.rescans > 12
    assert {path: (fresh / path).read_bytes() for path in (SCAN, SIDECAR)} == {
        path: scanned.files[path] for path in (SCAN, SIDECAR)
    }


def test_an_interrupt_between_two_batches_does_not_wait_for_the_next(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, waited = threading.Event(), threading.Event()
    score, calls = snr.score, itertools.count()

    def endless(batch: torch.Tensor) -> snr.Scores:
        if next(calls) and not ended.wait(HANG):
            waited.set()
        return score(batch)

    def interrupt(journal: Journal, scores: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(snr, "score", endless)
    monkeypatch.setattr(Journal, "append", interrupt)
    assert run(fresh).status == 130
    ended.set()
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("score ")]:
        thread.join()
    assert not waited.is_set()


def test_processes_on_one_device_know_of_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "unique_name", lambda device: f"GPU-{device.index}")
    monkeypatch.setattr(devices, "warm_up", lambda devices: None)
    assert distributed.num_sharing(torch.device("cuda", 0)) == 1  # a process by itself asks nobody
    monkeypatch.setattr(distributed, "count", lambda: 5)
    monkeypatch.setattr(distributed, "gather", lambda values: ["GPU-0", *values, "GPU-1", "GPU-1", "GPU-1"])
    assert [distributed.num_sharing(torch.device("cuda", i)) for i in range(3)] == [2, 4, 1]


@pytest.mark.parametrize("sharing", [1, 3])
def test_the_memory_of_a_device_is_divided_among_its_processes(
    sharing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets: list[int] = []

    def budget(device: torch.device, processes: int = 1) -> int:
        budgets.append(processes)
        return 1 << 30

    monkeypatch.setattr(lanes, "memory_budget", budget)
    monkeypatch.setattr(distributed, "num_sharing", lambda device: sharing)
    assert command.run(tmp_path, "--model-name", TINY_LLAMA, "--yes", "--device", "cpu").status == 0
    assert budgets == [sharing]


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("job", [[], ["--plot-spectrum", "lm_head", "spectrum.png"]], ids=["scan", "spectrum"])
def test_a_gpu_that_cannot_be_used_is_said_in_a_line(
    job: list[str], device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if torch.cuda.is_available():
        pytest.skip("the GPU can be used")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    pytest.importorskip("matplotlib")
    options = job or ["--yes"]
    done = command.run(tmp_path, "--model-name", TINY_LLAMA, "--device", device, *options)
    command.assert_refused(done, "cuda:0 cannot be used: ", "; use --device cpu to scan without it")
    assert files_below(tmp_path) == []
