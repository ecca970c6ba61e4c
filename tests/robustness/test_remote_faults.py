"""Scans of weights on a Hub that fails: they end as from disk, or in one line after which the same command resumes."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import spectrum
from spectrum.checkpoint.remote import connection, fetcher
from tests.helpers.command import Finished, assert_refused
from tests.helpers.hub_client import ask
from tests.helpers.hub_faults import (
    Close,
    Fault,
    FileRequest,
    Gzip,
    IgnoredRange,
    Long,
    Page,
    Short,
    Stall,
    Status,
    WrongRange,
    random_faults,
)
from tests.helpers.hub_server import HubServer, Repo, Revision, commit
from tests.helpers.hub_storage import Storage
from tests.helpers.paths import TINY_LLAMA
from tests.helpers.processes import BIN, quiet_environment, torchrun

GUARD = 100  # seconds, against hangs
NUM_MATRICES = 75
SCAN = ["--model-name", "org/model", "--yes", "--batch-size", "1", "--device", "cpu"]
SCORES = "model_snr_results/snr_results_org-model.json"

Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scores of the sample on disk."""
    directory = tmp_path_factory.mktemp("truth")
    spectrum.scan(TINY_LLAMA, results_dir=directory, batch_size=1, device="cpu", show_progress=False)
    (path,) = (path for path in directory.glob("*.json") if not path.name.endswith(".meta.json"))
    return scores(path)


def scores(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({"org/model": Repo(TINY_LLAMA, commit("a"))}, storage=Storage()) as running:
        ask(monkeypatch, running.endpoint, tmp_path / "hub")
        monkeypatch.setattr(connection, "_PAUSES", (0.01, 0.02))
        monkeypatch.setattr(connection, "_PATIENCE", 20.0)
        yield running


def ranges(requests: Sequence[FileRequest]) -> Counter[tuple[str, tuple[int, int] | None]]:
    """What the storage was asked for of weights, without headers."""
    spans = {
        file.name: 8 + int.from_bytes(file.read_bytes()[:8], "little") for file in TINY_LLAMA.glob("*.safetensors")
    }
    return Counter(
        (request.file, request.part)
        for request in requests
        if request.storage and request.part and request.part[0] >= spans[request.file]
    )


def from_then_on(number: int, fault: Fault, times: int | None = None) -> Callable[[FileRequest], Fault | None]:
    """A fault in so many answers (None for all) of the storage, after the first ones."""
    lock, seen = threading.Lock(), [0]

    def of(request: FileRequest) -> Fault | None:
        if not request.storage:
            return None
        with lock:
            seen[0] += 1
            return fault if number < seen[0] <= number + (times or 1_000_000) else None

    return of


@pytest.mark.parametrize("number", [1, 40])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Close(), id="closed"),
        pytest.param(Close(after=3), id="closed in the body"),
        pytest.param(Close(after=3, reset=True), id="reset in the body"),
        pytest.param(Status(500), id="500"),
        pytest.param(Status(429, retry_after=0), id="429"),
        pytest.param(Status(429, rate_limit=0), id="429 of the Hub"),
        pytest.param(Status(403), id="address expired"),
        pytest.param(Short(missing=1), id="short"),
        pytest.param(Long(), id="long"),
        pytest.param(IgnoredRange(), id="no ranges"),
        pytest.param(WrongRange(shift=4), id="another range"),
        pytest.param(WrongRange(total=1), id="another file"),
        pytest.param(Gzip(), id="gzip"),
        pytest.param(Page(), id="page"),
        pytest.param(Stall(after=3, seconds=1.0), id="stall"),
    ],
)
def test_a_fault_changes_no_score_and_is_said_once(
    hub: HubServer,
    run: Run,
    truth: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    number: int,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.faults = from_then_on(number, fault, times=2)
    done = run(*SCAN)
    assert done.status == 0, done.err
    assert len(hub.faulted) == 2
    said = len(done.said("warning: "))
    assert said == 1 or (fault == Status(403) and not said)  # an address that has been good for a while is renewed
    assert scores(Path(SCORES)) == truth


@pytest.mark.parametrize("seed", range(3))
def test_fifty_faults_at_random_change_no_score(
    hub: HubServer, run: Run, truth: dict[str, Any], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(fetcher, "_PART_BYTES", 8_000)
    hub.faults = random_faults(seed, 50, share=0.4)
    done = run(*SCAN)
    assert done.status == 0, done.err
    assert len(hub.faulted) == 50
    assert len(done.said("warning: ")) == 1
    assert scores(Path(SCORES)) == truth


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Close(), "", id="closed"),
        pytest.param(Status(503), "503 Service Unavailable", id="503"),
        pytest.param(Status(429, retry_after=3_000), "it asks to wait for 50 min 00 s", id="429"),
        pytest.param(Status(403), "403 Forbidden", id="address expired"),
        pytest.param(IgnoredRange(), "--download reads whole files", id="no ranges"),
        pytest.param(Page(), "a web page is sent", id="page"),
    ],
)
def test_what_fails_for_good_is_one_line_after_which_the_same_command_fetches_the_rest(
    hub: HubServer, run: Run, truth: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fault: Fault, reason: str
) -> None:
    monkeypatch.setattr(connection, "_PATIENCE", 0.3)
    monkeypatch.setattr(fetcher, "_AHEAD_BYTES", 1)
    hub.faults = from_then_on(45, fault)
    done = run(*SCAN)
    assert_refused(done, "cannot read org/model/model-0000", ".safetensors", "the same command resumes", reason)
    assert len(done.said("warning: ")) <= 1
    first = ranges([request for request in hub.file_requests if request not in [met for met, _ in hub.faulted]])

    hub.faults = None
    before = len(hub.file_requests)
    done = run(*SCAN)
    assert done.status == 0, done.err
    (said,) = done.said("resuming an interrupted scan: ")
    kept = int(said.split()[5])
    assert 20 < kept <= len(first)
    second = ranges(hub.file_requests[before:])
    # Three scores of the journal are computed again; what was fetched ahead and not scored is fetched again.
    assert NUM_MATRICES - kept <= second.total() <= NUM_MATRICES - kept + 3
    assert scores(Path(SCORES)) == truth


def test_headers_that_cannot_be_read_are_given_up_once(hub: HubServer, run: Run) -> None:
    hub.faults = from_then_on(0, IgnoredRange())
    done = run(*SCAN)
    assert_refused(done, "cannot read org/model/model-0000", "the whole file is sent in place of a part")
    assert len([request for request in hub.file_requests if request.storage]) <= 2 * 4  # four times each shard


def test_an_interrupt_while_the_network_hangs_ends_a_scan_in_python_and_all_of_its_fetches(
    hub: HubServer, tmp_path: Path
) -> None:
    released = threading.Event()
    hub.faults = hanging(released, lambda: len(hub.file_requests) > 30)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        spectrum.scan("org/model", results_dir=tmp_path, batch_size=1, device="cpu", show_progress=False)
    assert time.monotonic() - begun < 8  # sooner than the client's own limit of 10 s
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead") and alive(thread)]
    asked = len(hub.file_requests)
    released.set()
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join(GUARD)
            assert not thread.is_alive()
    assert len(hub.file_requests) == asked


def hanging(released: threading.Event, begins: Callable[[], bool]) -> Callable[[FileRequest], Fault | None]:
    """A storage that hangs from some request on until it is released, and Ctrl-C shortly after that request."""
    at, lock = threading.Event(), threading.Lock()

    def hang(request: FileRequest) -> Fault | None:
        if request.storage and begins():
            with lock:
                if not at.is_set():
                    at.set()
                    threading.Timer(0.2, interrupt).start()
            released.wait(GUARD)
        return None

    return hang


def interrupt() -> None:
    """As by Ctrl-C."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def alive(thread: threading.Thread) -> bool:
    """Whether a thread goes on, though it had a few seconds to end."""
    thread.join(5)
    return thread.is_alive()


def test_an_interrupt_while_headers_hang_ends_a_scan(hub: HubServer, tmp_path: Path) -> None:
    released = threading.Event()
    hub.faults = hanging(released, lambda: True)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            spectrum.scan("org/model", results_dir=tmp_path, device="cpu", show_progress=False)
        assert time.monotonic() - begun < 8  # sooner than the client's own limit of 10 s
    finally:
        released.set()


# In processes of their own.


def environment(hub: HubServer, home: Path) -> Mapping[str, str]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "HF_HUB_OFFLINE")
    quiet = {name: value for name, value in quiet_environment(home).items() if name not in names}
    return quiet | {"HF_ENDPOINT": hub.endpoint, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "moment", "hangs"),
    [
        pytest.param(signal.SIGINT, 130, 40, True, id="Ctrl-C, the network hangs"),
        pytest.param(signal.SIGTERM, 143, 30, False, id="SIGTERM"),
        pytest.param(signal.SIGKILL, -9, 60, False, id="SIGKILL"),
    ],
)
def test_a_scan_that_is_ended_through_a_slow_line_is_resumed_by_the_same_command(
    hub: HubServer,
    run: Run,
    truth: dict[str, Any],
    tmp_path: Path,
    number: signal.Signals,
    status: int,
    moment: int,
    hangs: bool,
) -> None:
    hub.line.bandwidth = None if hangs else 1_000_000
    if hangs:
        hub.faults = from_then_on(moment, Stall(after=0, seconds=5))
    with subprocess.Popen(
        [str(BIN / "spectrum"), *SCAN],
        env=environment(hub, tmp_path / "home"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while len([request for request in hub.file_requests if request.storage]) <= moment + (4 if hangs else 0):
            assert process.poll() is None
            time.sleep(0.01)
        if hangs:
            time.sleep(0.5)  # until all that had arrived is scored
        begun = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=GUARD)
    assert process.returncode == status, err
    assert time.monotonic() - begun < 4.5  # the line hangs for longer
    assert "Traceback" not in err
    if number != signal.SIGKILL:
        assert err.count("spectrum: interrupted") == 1
    hub.faults, hub.line.bandwidth = None, None
    done = run(*SCAN)
    assert done.status == 0, done.err
    assert done.said("resuming an interrupted scan: ")
    assert scores(Path(SCORES)) == truth


def launched(hub: HubServer, directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = torchrun(2, "--no-python", str(BIN / "spectrum"), *SCAN, *args)
    return subprocess.run(
        command,
        cwd=directory,
        env=environment(hub, directory / "home"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=GUARD,
    )


def lines(done: subprocess.CompletedProcess[str], kind: str) -> list[str]:
    return re.findall(rf"spectrum(?: \(process \d+\))?: {kind}[^\r\n]*", done.stderr)


@pytest.mark.slow
def test_each_process_fetches_its_share_of_the_commit_that_the_first_has_found(
    hub: HubServer, truth: dict[str, Any], tmp_path: Path
) -> None:
    pushed = tmp_path / "pushed"
    pushed.mkdir()
    for file in TINY_LLAMA.iterdir():
        if file.suffix == ".safetensors":
            save_file({k: v.flip(0) * 2 for k, v in load_file(file).items()}, pushed / file.name, {"format": "pt"})
        else:
            (pushed / file.name).write_bytes(file.read_bytes())

    def push(request: FileRequest) -> None:
        old = Revision(TINY_LLAMA, commit("a"))
        hub.repos = {"org/model": Repo(pushed, commit("b"), refs={"old": old})}

    hub.faults = push
    done = launched(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert scores(tmp_path / SCORES) == truth
    sidecar = json.loads((tmp_path / SCORES.replace(".json", ".meta.json")).read_text())
    assert (sidecar["revision"], sidecar["commit"]) == (None, commit("a"))
    asked = ranges(hub.file_requests)
    assert set(asked.values()) == {1}  # nothing twice, by whichever process
    size = sum(file.stat().st_size for file in TINY_LLAMA.glob("*.safetensors"))
    assert hub.sent.total() < 1.1 * size  # headers and the config come twice


@pytest.mark.slow
def test_a_process_that_cannot_go_on_says_why_in_one_line_and_scores_are_kept(
    hub: HubServer, truth: dict[str, Any], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(request: FileRequest) -> Fault | None:
        return Status(404) if len(hub.file_requests) > 60 else None

    hub.faults = vanish
    done = launched(hub, tmp_path)
    assert done.returncode == 1
    errors = lines(done, "error: ")
    assert 1 <= len(errors) <= 2  # the other process may come to the same end before it is told of this one's
    reasons = [error for error in errors if "lost each other" not in error]  # that another process has ended
    assert reasons
    assert all("cannot read org/model/model-0000" in error for error in reasons)
    assert all("(404 Not Found); every score so far is kept: the same command resumes" in error for error in reasons)
    assert "Traceback" not in done.stderr.partition("torch/distributed")[0]
    hub.faults = None
    monkeypatch.chdir(tmp_path)
    alone = run(*SCAN)
    assert alone.status == 0, alone.err
    assert alone.said("resuming an interrupted scan: ")
    assert scores(tmp_path / SCORES) == truth
