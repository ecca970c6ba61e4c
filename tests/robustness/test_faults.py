"""A disk that refuses: every opening, write and rename of a scan fails in turn; what was there stays whole."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spectrum import files
from spectrum.compute import snr
from spectrum.scanning import journal, scan, store
from tests.helpers import command
from tests.helpers.changes import train_one_layer
from tests.helpers.command import Finished
from tests.helpers.paths import TINY_LLAMA

pytestmark = pytest.mark.slow

TYPES = ["lm_head", "mlp.down_proj"]  # two batches, so two lines in a journal, of nine matrices
ARGS = ["--model-name", "model", "--top-percent", "50", "--device", "cpu", "--layer-types", *TYPES]

# In the order in which they are written.
WRITTEN = {
    "sidecar": "cache/snr_results_model.meta.json",
    "scan": "cache/snr_results_model.json",
    "sorted": "lists/snr_results_model_sorted.json",
    "yaml": "lists/snr_results_model_unfrozenparameters_50percent.yaml",
}
JOURNAL = "cache/snr_results_model.journal-0.jsonl"
LOCK = "cache/.snr_results_model.lock"

REASONS = [errno.ENOSPC, errno.EACCES, errno.EIO]

Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of temporary files, in which a scan is saved that cannot be saved in its place."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def run(directory: Path, *args: str) -> Finished:
    return command.run(directory, *ARGS, "--results-dir", "cache", "--output-dir", "lists", *args)


def written(directory: Path) -> Files:
    """All that runs have left, short of the lock."""
    files = (path for name in ("cache", "lists") for path in (directory / name).rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files if path.suffix != ".lock"}


@dataclass(frozen=True)
class Models:
    """Two models that differ in a weight, and what scans of them leave."""

    older: Path
    newer: Path
    before: Files
    clean: Files

    def scanned_before(self, directory: Path) -> Path:
        """A working directory with the results of the older model, where the newer one now is."""
        directory.mkdir()
        (directory / "model").symlink_to(self.newer)
        for name, content in self.before.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)
        return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made: list[Path] = []
    left: list[Files] = []
    for name in ("older", "newer"):
        directory = tmp_path_factory.mktemp(name)
        model = Path(shutil.copytree(TINY_LLAMA, directory / "weights"))
        if made:
            retrained(model)
        (directory / "model").symlink_to(model)
        assert run(directory).status == 0
        made.append(model)
        left.append(written(directory))
    assert set(left[0]) == set(left[1]) == set(WRITTEN.values())
    assert all(left[0][name] != left[1][name] for name in WRITTEN.values())
    return Models(made[0], made[1], left[0], left[1])


def retrained(model: Path) -> None:
    """Other weights, some of them in the types that are scanned, of which other layers are then selected."""
    train_one_layer(model)
    swapped = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(8)]
    for shard in model.glob("*.safetensors"):
        state = load_file(shard)
        here = [name for name in swapped if name in state]
        values = [state[name] for name in reversed(here)]
        save_file(state | dict(zip(here, values, strict=True)), shard, {"format": "pt"})


# Faults.


@dataclass
class Fault:
    """Fails one call of an operation, or all from that one on, and counts the calls."""

    operation: str
    number: int
    reason: int
    stays: bool = False
    calls: int = 0
    fired: bool = field(default=False, init=False)

    def strike(self, operation: str) -> bool:
        """Whether the call that is being made fails."""
        if operation != self.operation:
            return False
        self.calls += 1
        strikes = self.calls == self.number or (self.stays and self.calls > self.number)
        self.fired |= strikes
        return strikes

    def check(self, operation: str) -> None:
        if self.strike(operation):
            raise self.error()

    def error(self) -> OSError:
        return OSError(self.reason, os.strerror(self.reason))


class File:
    """An open file, some of whose calls fail. A write that does has written the half."""

    def __init__(self, file: Any, fault: Fault) -> None:
        self._file, self._fault = file, fault

    def __enter__(self) -> File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: Any) -> int:
        if self._fault.strike("write"):
            self._file.write(data[: len(data) // 2])
            raise self._fault.error()
        return int(self._file.write(data))

    def flush(self) -> None:
        self._fault.check("flush")
        self._file.flush()


@contextmanager
def faulty(fault: Fault) -> Iterator[None]:
    """Have the fault in everything that a scan does to files."""
    create, fdopen, replace, mkdir, fsync = files.create, os.fdopen, Path.replace, Path.mkdir, os.fsync

    def created(path: Path) -> int:
        fault.check("open")
        return create(path)

    def opened(descriptor: int, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = fdopen(descriptor, mode, *args, **kwargs)
        return File(file, fault) if mode == "wb" else file

    def replaced(path: Path, target: Any) -> Path:
        fault.check("replace")
        return replace(path, target)

    def made(path: Path, *args: Any, **kwargs: Any) -> None:
        fault.check("mkdir")
        mkdir(path, *args, **kwargs)

    def synced(descriptor: int) -> None:
        fault.check("fsync")
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "create", created)
        patch.setattr(os, "fdopen", opened)
        patch.setattr(journal, "FileIO", lambda *args: File(FileIO(*args), fault))
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "mkdir", made)
        patch.setattr(os, "fsync", synced)
        patch.setattr(journal, "_SYNC_EVERY", -1.0)  # at every line, for there to be something that can fail
        yield


def outcome(done: Finished, fault: Fault) -> str:
    """Which file the run says it could not write: one clear line with the system's reason, or nothing at all."""
    errors, warnings = done.said("error: "), done.said("warning: ")
    assert "Traceback" not in done.err
    assert "unexpected" not in done.err
    assert (done.status, len(errors)) in ((0, 0), (1, 1)), done.err
    assert (done.out == "") is (done.status == 1)
    assert len(warnings) <= 1, done.err
    if errors:
        named = {path: name for name, path in {**WRITTEN, "lock": LOCK}.items()}
        match = re.fullmatch(r"spectrum: error: cannot (?:write|lock) ([^ ]*): (.*)", errors[0])
        assert match, errors[0]
        assert os.strerror(fault.reason) in match[2]
        return named[match[1]]
    if warnings:
        reason = os.strerror(fault.reason)
        if warnings[0].startswith(f"spectrum: warning: cannot lock {LOCK}, "):
            assert reason in warnings[0]
            return "no lock"
        assert warnings[0].startswith(f"spectrum: warning: cannot write {JOURNAL}: {reason};")
        return "journal"
    return "nothing"


def assert_nothing_is_torn_or_lost(directory: Path, models: Models) -> None:
    left = written(directory)
    assert set(left) - {JOURNAL} == set(models.before)  # no temporary file either
    for name, content in models.before.items():
        assert left[name] in (content, models.clean[name]), name


def assert_goes_on(directory: Path, models: Models, *, said: str) -> None:
    """The same command without a fault says this, and ends as if there had never been one."""
    done = run(directory)
    assert done.status == 0
    assert said in done.err + done.out
    assert written(directory) == models.clean


# What each call of an operation belongs to, in the order in which a scan makes them. What the journal loses is its own;
# the last time that it is flushed to disk is when all is scored.
EXPECTED = {
    "open": ["journal", *WRITTEN],
    "write": ["journal", "journal", "journal", "journal", *WRITTEN],
    "flush": [*WRITTEN],
    "fsync": ["journal", "journal", "nothing", *WRITTEN],
    "replace": ["journal", *WRITTEN],
    "mkdir": ["lock", "journal", *WRITTEN],
}


@pytest.mark.parametrize("reason", REASONS, ids=errno.errorcode.get)
@pytest.mark.parametrize("operation", EXPECTED)
def test_a_call_that_fails_costs_one_line_and_no_file(
    operation: str, reason: int, models: Models, tmp_path: Path
) -> None:
    outcomes = []
    for number in range(1, 100):
        directory = models.scanned_before(tmp_path / str(number))
        fault = Fault(operation, number, reason)
        with faulty(fault):
            done = run(directory)
        if not fault.fired:
            assert done.status == 0
            break
        outcomes.append(outcome(done, fault))
        assert_nothing_is_torn_or_lost(directory, models)
        kept = JOURNAL in written(directory)
        assert kept is (outcomes[-1] in ("sidecar", "scan"))
        if outcomes[-1] == "lock":
            expected = "Scanned 9 layers"
        else:
            expected = "resuming an interrupted scan: 9 of 9 matrices" if kept else "9 layers of model (Llama"
        if outcomes[-1] in ("journal", "nothing", "no lock"):
            assert written(directory) == models.clean
        assert_goes_on(directory, models, said=expected)
    while "no lock" in outcomes:  # whose library makes sure of the directory, too
        outcomes.remove("no lock")
    assert outcomes == EXPECTED[operation]


@pytest.mark.parametrize("operation", [name for name in EXPECTED if name != "mkdir"])
def test_a_disk_that_stays_full_costs_the_run_and_no_file(
    operation: str, models: Models, tmp_path: Path, temporary: Path
) -> None:
    # From a fault in the journal on, the results cannot be written either, and half a line may be in the journal.
    gone_on_with = []
    for number, file in enumerate(EXPECTED[operation], 1):
        directory = models.scanned_before(tmp_path / str(number))
        fault = Fault(operation, number, errno.ENOSPC, stays=True)
        with faulty(fault):
            done = run(directory)
        assert (done.status, done.out) == (1, "")
        failed = "sidecar" if file in ("journal", "nothing") else file
        (error,) = done.said("error: ")
        message, _, kept = error.partition("; ")
        assert message == f"spectrum: error: cannot write {WRITTEN[failed]}: No space left on device"
        assert len(done.said(f"warning: cannot write {JOURNAL}: No space left on device;")) == (file == "journal")
        assert_nothing_is_torn_or_lost(directory, models)
        again = run(directory)
        assert again.status == 0
        assert written(directory) == models.clean
        match = re.search(r"interrupted scan: (\d) of 9 matrices", again.err)
        gone_on_with.append(int(match[1]) if match else 0)
        if failed in ("sidecar", "scan"):
            every = "every score is in the journal: once that is mended, the same command saves the scan"
            some = f"the scores of {gone_on_with[-1]} of 9 matrices are kept; the same command resumes from there"
            assert kept == (every if gone_on_with[-1] == 9 else some)
        assert list(temporary.iterdir()) == []  # there is no more room there
    if operation == "write":
        # The journal's head, what it precedes, its first line or its second is torn; which of the two batches was first
        # is by chance.
        assert gone_on_with[:3] == [0, 0, 0]
        assert gone_on_with[3] in (1, 8)
        assert gone_on_with[4:] == [9, 9, 0, 0]
    else:
        assert gone_on_with[-4:] == [9, 9, 0, 0]


@pytest.mark.parametrize("lost", [True, False])
def test_scores_that_the_results_directory_takes_no_more_are_saved_elsewhere(
    lost: bool, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    # The disk of the results is full, another has room. What the journal has is not saved a second time.
    directory = models.scanned_before(tmp_path / "work")
    create = files.create

    def created(path: Path) -> int:
        if path.parent.name == "cache" and ("journal" not in path.name or lost):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return create(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "create", created)
        done = run(directory)
    (error,) = done.said("error: ")
    assert (done.status, done.out) == (1, "")
    assert written(directory).keys() - {JOURNAL} == models.before.keys()
    if not lost:
        assert "every score is in the journal" in error
        assert list(temporary.iterdir()) == []
        assert_goes_on(directory, models, said="resuming an interrupted scan: 9 of 9 matrices")
        return
    (copy,) = temporary.iterdir()
    assert f"; the scan is in {copy}: once that is mended, move its files into cache" in error
    monkeypatch.setattr(snr, "score", never)
    for file in copy.iterdir():
        file.replace(directory / "cache" / file.name)
    assert_goes_on(directory, models, said="from the cached scan")


@pytest.mark.parametrize("number", [1, 4])  # the first write of the journal, and that of its second batch
def test_the_first_score_that_is_not_kept_is_told_with_what_it_means(
    number: int, models: Models, tmp_path: Path
) -> None:
    directory = models.scanned_before(tmp_path / "work")
    with faulty(Fault("write", number, errno.ENOSPC)):
        done = run(directory)
    (warning,) = done.said("warning: ")
    start, _, kept = warning.rpartition(", ")
    assert start == (
        f"spectrum: warning: cannot write {JOURNAL}: No space left on device; the scan goes on and is saved at its "
        "end; free some space until then; if it is interrupted before"
    )
    assert kept in (
        ["no score will be kept"] if number == 1 else ["only 1 score will be kept", "only 8 scores will be kept"]
    )
    assert done.status == 0


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EIO], ids=errno.errorcode.get)
def test_space_is_asked_for_only_where_it_lacks(reason: int, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    with faulty(Fault("write", 1, reason)):
        done = run(directory)
    (warning,) = done.said("warning: ")
    assert "is saved at its end; if it is interrupted before" in warning


@pytest.mark.parametrize("reason", REASONS, ids=errno.errorcode.get)
def test_a_journal_that_cannot_be_removed_is_in_nobodys_way(reason: int, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == Path(JOURNAL).name:
            raise OSError(reason, os.strerror(reason))
        unlink(path, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        assert run(directory).status == 0
    left = written(directory)
    assert left.pop(JOURNAL)
    assert left == models.clean
    done = run(directory, "--rescan")  # for which what is known is not news
    assert (done.status, "resuming" in done.err) == (0, False)
    assert written(directory) == models.clean


# Places that take no file are found out before the scan.


@pytest.mark.parametrize("reason", REASONS, ids=errno.errorcode.get)
@pytest.mark.parametrize("place", ["cache", "lists"])
def test_a_directory_that_takes_no_file_is_found_before_the_scan(
    place: str, reason: int, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = models.scanned_before(tmp_path / "work")
    made = tempfile.TemporaryFile

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if Path(kwargs["dir"]).name == place:
            raise OSError(reason, os.strerror(reason))
        return made(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", refuse)
        patch.setattr(snr, "score", never)
        done = run(directory)
    assert (done.status, done.out) == (1, "")
    assert done.said("error: ") == [f"spectrum: error: cannot write to {place}: {os.strerror(reason)}"]
    assert written(directory) == models.before
    assert_goes_on(directory, models, said="Scanned 9 layers")


def never(*_: object) -> snr.Scores:
    raise AssertionError("a matrix was scored, or the weights were opened")


@dataclass(frozen=True)
class Usage:
    """What `shutil.disk_usage` tells of a disk."""

    total: int
    free: int


def usage_of(place: str, free: int) -> Any:
    """`shutil.disk_usage`, with so much free on the disk of one directory."""
    return lambda path: Usage(1 << 40, free if Path(path).resolve().name == place else 1 << 39)


@pytest.mark.parametrize("free", [0, 150_000])
@pytest.mark.parametrize("missing", [True, False])
def test_a_full_disk_is_found_before_the_scan(
    free: int, missing: bool, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether the directory is there or still to be created. Before the weights are known, 150 kB might do.
    directory = models.scanned_before(tmp_path / "work")
    if missing:
        shutil.rmtree(directory / "cache")
        shutil.rmtree(directory / "lists")
    before = written(directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage_of("work" if missing else "cache", free))
        patch.setattr(snr, "score", never)
        if free == 0:  # nothing is even downloaded
            patch.setattr(scan, "open_checkpoint_of", never)
        done = run(directory)
    (error,) = done.said("error: ")
    assert (done.status, done.out) == (1, "")
    left = "0 B" if free == 0 else "150 kB"
    assert re.fullmatch(
        rf"spectrum: error: the disk of cache has {left} free, and this scan may write [\d.]+ kB there; free some, "
        r"or take other directories \(--results-dir, --output-dir\)",
        error,
    )
    assert written(directory) == before
    assert run(directory).status == 0


@pytest.mark.parametrize("told", [OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)), Usage(0, 0)])
def test_a_disk_that_does_not_tell_its_space_is_written_to(
    told: Any, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Any) -> Usage:
        if isinstance(told, OSError):
            raise told
        return Usage(told.total, told.free)

    directory = models.scanned_before(tmp_path / "work")
    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert run(directory).status == 0
    assert written(directory) == models.clean


def test_a_cached_scan_needs_no_space_for_a_scan(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = models.scanned_before(tmp_path / "work")
    assert run(directory).status == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0))
    done = run(directory)
    assert (done.status, done.err) == (0, "")


def test_no_scan_writes_more_than_is_asked_for(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[Path, int]] = []
    monkeypatch.setattr(store, "_BYTES_FOR_FILE", 0)  # the room for what does not grow with the model
    monkeypatch.setattr(store, "check_space", lambda needed: asked.append(dict(needed)))
    directory = models.scanned_before(tmp_path / "work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok=False: None)  # the journal stays
        assert run(directory, "--layer-types", "all").status == 0
    sizes = {name: (directory / name).stat().st_size for name in [JOURNAL, *WRITTEN.values()]}
    for name in ("cache", "lists"):
        total = sum(size for path, size in sizes.items() if path.startswith(name))
        assert total < asked[-1][Path(name)] < total + 4 * (total + (64 << 10))


@pytest.mark.parametrize("reason", REASONS, ids=errno.errorcode.get)
def test_a_lock_that_cannot_be_had_is_warned_of(
    reason: int, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another user's lock in a directory that is shared, or a file system without locks: no reason not to scan.
    directory = models.scanned_before(tmp_path / "work")
    opened = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(reason, os.strerror(reason), path)
        return opened(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refuse)
        done = run(directory)
    assert done.status == 0
    (warning,) = [line for line in done.err.splitlines() if "warning" in line]
    assert warning.startswith("spectrum: warning: cannot lock ")
    assert os.strerror(reason) in warning
    assert "Scanned 9 layers" in done.out


@pytest.mark.parametrize("option", ["--results-dir", "--output-dir"])
def test_a_file_in_the_place_of_a_directory(option: str, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    (directory / "in the way").write_text("mine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snr, "score", never)
        done = run(directory, option, "in the way", "--rescan")
    assert (done.status, done.out) == (1, "")
    assert done.said("") == ["spectrum: error: cannot write to in the way: Not a directory"]
    assert (directory / "in the way").read_text() == "mine"
    assert written(directory) == models.before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
@pytest.mark.parametrize("place", ["cache", "lists"])
def test_a_directory_that_may_not_be_written(place: str, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    (directory / place).chmod(0o555)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(snr, "score", never)
            done = run(directory)
    finally:
        (directory / place).chmod(0o755)
    assert (done.status, done.out) == (1, "")
    assert done.said("error: ") == [f"spectrum: error: cannot write to {place}: Permission denied"]
    assert written(directory) == models.before


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_cache_that_may_only_be_read_serves(models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    assert run(directory).status == 0
    shutil.rmtree(directory / "lists")
    (directory / "cache").chmod(0o555)
    try:
        done = run(directory)
    finally:
        (directory / "cache").chmod(0o755)
    assert (done.status, done.err) == (0, "")
    assert written(directory) == models.clean


def test_directories_that_are_not_there_are_made(models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    done = run(directory, "--results-dir", "a/b/cache", "--output-dir", "c/d/lists")
    assert done.status == 0
    assert written(directory) == models.before
    moved = {directory / "a/b/cache": "cache", directory / "c/d/lists": "lists"}
    left = {f"{name}/{path.name}": path for place, name in moved.items() for path in place.iterdir()}
    assert {name: path.read_bytes() for name, path in left.items() if path.suffix != ".lock"} == models.clean


# What changes under a scan.


@pytest.mark.parametrize("call", [1, 2])  # before the journal is opened, and after
@pytest.mark.parametrize("place", ["cache", "lists"])
def test_a_directory_that_goes_in_mid_scan_is_made_again(
    place: str, call: int, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = models.scanned_before(tmp_path / "work")
    at_call(monkeypatch, call, lambda: (directory / place).rename(tmp_path / "gone"))
    done = run(directory, "--batch-size", "1")
    assert (done.status, done.said("warning: ")) == (0, [])
    assert (tmp_path / "gone").exists()
    assert {name: content for name, content in written(directory).items() if name != JOURNAL} == models.clean
    monkeypatch.undo()
    assert_goes_on(directory, models, said="from the cached scan")


@pytest.mark.parametrize(("place", "failed"), [("cache", "sidecar"), ("lists", "sorted")])
def test_a_file_that_takes_a_directorys_place_in_mid_scan(
    place: str, failed: str, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    directory = models.scanned_before(tmp_path / "work")

    def swap() -> None:
        (directory / place).rename(tmp_path / "gone")
        (directory / place).write_text("mine")

    at_call(monkeypatch, 4, swap)
    done = run(directory, "--batch-size", "1")
    assert (done.status, done.out) == (1, "")
    (error,) = done.said("error: ")
    assert re.fullmatch(
        rf"spectrum: error: cannot write {re.escape(WRITTEN[failed])}: (File exists|Not a directory)(; .*)?", error
    )
    assert (directory / place).read_text() == "mine"
    (directory / place).unlink()
    (tmp_path / "gone").rename(directory / place)
    assert_nothing_is_torn_or_lost(directory, models)
    monkeypatch.undo()
    # The open journal was moved aside, and has come back with all scores.
    said = "interrupted scan: 9 of 9 matrices" if place == "cache" else "from the cached scan"
    assert_goes_on(directory, models, said=said)


def at_call(patch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Do something when a matrix is to be scored the n-th time."""
    score, calls = snr.score, iter(range(1, 100))

    def acting(weights: torch.Tensor) -> snr.Scores:
        if next(calls) == number:
            act()
        return score(weights)

    patch.setattr(snr, "score", acting)


# A journal that is none.


def directory_of_that_name(path: Path) -> None:
    path.mkdir()


def fifo_of_that_name(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", [directory_of_that_name, fifo_of_that_name])
def test_a_journal_that_cannot_be_written_is_warned_of_and_stops_no_scan(
    make: Any, models: Models, tmp_path: Path
) -> None:
    directory = models.scanned_before(tmp_path / "work")
    make(directory / JOURNAL)
    done = run(directory)
    assert done.status == 0
    assert len(done.said(f"warning: cannot write {JOURNAL}: ")) == 1, done.err
    left = {name: (directory / name).read_bytes() for name in WRITTEN.values()}
    assert left == models.clean


def test_a_warning_in_mid_scan_begins_a_line(models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    with faulty(Fault("open", 1, errno.ENOSPC)):
        done = run(directory)
    before, found, _ = done.err.partition("spectrum: warning: ")
    assert found
    assert "0/9 weights" in before
    assert before[-1] in "\r\n"


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_journal_that_is_a_link_leaves_what_it_leads_to(link: Any, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    own = tmp_path / "thesis.tex"
    own.write_text("the only copy\n" * 1000)
    link(directory / JOURNAL, own)
    done = run(directory)
    assert (done.status, done.said("warning: ")) == (0, [])
    assert own.read_text() == "the only copy\n" * 1000
    assert written(directory) == models.clean


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_lock_that_is_a_link_leaves_what_it_leads_to(link: Any, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    own = tmp_path / "thesis.tex"
    own.write_text("the only copy\n" * 1000)
    (directory / LOCK).unlink(missing_ok=True)
    link(directory / LOCK, own)
    done = run(directory)
    assert done.status == 0
    assert len(done.said(f"warning: cannot lock {LOCK}, ")) == (link is Path.symlink_to)
    assert own.read_text() == "the only copy\n" * 1000
    assert {name: (directory / name).read_bytes() for name in WRITTEN.values()} == models.clean


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_lock_has_the_permissions_that_the_umask_leaves(umask: int, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    (directory / LOCK).unlink(missing_ok=True)
    before = os.umask(umask)
    try:
        assert run(directory).status == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / LOCK).stat().st_mode) == 0o666 & ~umask


def test_a_file_system_without_flock_is_said_once(models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(fcntl, "flock", refuse)
        done = run(directory)
    assert done.status == 0
    assert len(done.said(f"warning: cannot lock {LOCK}, so nothing keeps two scans of one model apart: ")) == 1
    assert len(done.said("warning: ")) == 1
    assert {name: (directory / name).read_bytes() for name in WRITTEN.values()} == models.clean


@pytest.mark.parametrize("content", [b"", b"\n", b"\0" * 100, b"[]\n[]\n", b'{"weights"', b"\xff\xfe" * 1000])
def test_a_journal_of_something_else_is_written_anew(content: bytes, models: Models, tmp_path: Path) -> None:
    directory = models.scanned_before(tmp_path / "work")
    (directory / JOURNAL).write_bytes(content)
    done = run(directory)
    assert (done.status, done.said("warning: "), done.said("resuming")) == (0, [], [])
    assert written(directory) == models.clean
