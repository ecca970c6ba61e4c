"""Scans that are killed, terminated or interrupted: nothing is half written, the same command goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectrum.cli.entry import main
from tests.helpers.paths import ROOT, TINY_LLAMA
from tests.robustness.kills import COMMAND, JOURNAL, MODEL, files, journaled, started

pytestmark = pytest.mark.slow

# The first score, the middle of a line, results that are half there, all of them there but for the journal's removal.
MOMENTS = [
    "journal: opened 1",
    "journal: half a line 40",
    "sidecar: after replace 1",
    "scan: half a text 1",
    "scan: after replace 1",
    "yaml: before replace 1",
]


def test_a_scan_that_is_killed_is_gone_on_with_to_the_same_end() -> None:
    # In a process of its own, since it forks, which pytest's process with its threads should not.
    counts = ["--moments", "5", "--timed", "1", "--within", "4", "--successions", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.kills", *counts, "--at", *MOMENTS],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nOK\n")
    assert "\n15 kills, " in done.stdout


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(TINY_LLAMA, directory / MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        assert main(COMMAND) == 0
    return files(directory)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_scan_that_is_stopped_says_what_is_kept_and_is_gone_on_with(
    number: signal.Signals,
    status: int,
    uninterrupted: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "work"
    shutil.copytree(TINY_LLAMA, directory / MODEL)
    journal = directory / JOURNAL
    with started(directory, COMMAND, slow=0.02) as process:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
            assert process.poll() is None, (tmp_path / "said.txt").read_text()
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == status
    said = (tmp_path / "said.txt").read_text()
    pattern = (
        r"spectrum: interrupted; (\d+) of 75 matrices are scored and kept; the same command resumes from there\n\Z"
    )
    match = re.search(f"^{pattern}", said, re.M)
    assert match, said
    assert said.count("interrupted") == 1
    assert "Traceback" not in said
    kept = int(match[1])
    assert 9 <= kept < 75
    assert len(journaled(journal.read_bytes())) == kept
    assert list(files(directory)) == [JOURNAL]

    monkeypatch.chdir(directory)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other_size = ["7" if argument == "1" else argument for argument in COMMAND]
    assert other_size != COMMAND
    capfd.readouterr()
    assert main(other_size) == 0
    err = capfd.readouterr().err
    assert f"spectrum: resuming an interrupted scan: {kept} of 75 matrices are scored\n" in err
    assert f"{75 - kept}/{75 - kept} weights" in err
    assert files(directory) == uninterrupted
