"""The benchmark of a GPU: a rehearsal on the CPU, and steps that fail, take too long, or do not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu import Session, run
from tests.benchmarks.gpu_steps import STEPS
from tests.benchmarks.hashed_weights import expected, weight
from tests.helpers.oracle import oracle_edge, oracle_snr
from tests.helpers.paths import ROOT

GPU = [sys.executable, "-m", "tests.benchmarks.gpu"]


def results(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_step_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    command = [*GPU, "--out", str(tmp_path), "--rehearse", "--limit", "400"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=450)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, _, _ in STEPS:
        assert f"--- {name}: " in done.stdout
    found = results(tmp_path)
    assert not [row for row in found if "FAILED" in row or "left_out" in row]
    assert found[-1].items() >= {"step": "end", "failures": 0}.items()
    scans = [row for row in found if "compared" in row]
    assert {row["step"] for row in scans} == {"scan", "8 GiB", "little memory", "experts", "large"}
    assert all(row["compared"] > 0 and row["error"] < 1e-9 for row in scans)
    # The table at the end repeats all results.
    table = done.stdout.partition("===== all results")[2]
    assert len(table.strip().splitlines()) == len(found)


@pytest.mark.parametrize("shape", [(48, 128), (128, 48), (576, 192), (512, 512), (768, 2048)], ids=str)
def test_what_is_expected_of_a_gpu_is_as_by_a_float64_svd(shape: tuple[int, int]) -> None:
    matrix = weight(*shape).double().numpy()
    found = expected(*shape)
    assert found is not None
    assert found[0] == pytest.approx(oracle_snr(matrix), rel=1e-10)
    assert tuple(found[1:3]) == oracle_edge(matrix)[:2]


@pytest.mark.slow
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [*GPU, "--out", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "torch finds no GPU; --rehearse needs none" in done.stderr
    assert not (tmp_path / "none").exists()


def failing(session: Session) -> None:
    raise RuntimeError("no such routine")


def endless(session: Session) -> None:
    while True:
        time.sleep(0.01)


def noting(session: Session) -> None:
    session.note("noted", value=1.0)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path, 60, rehearse=True)


def test_a_step_that_fails_does_not_end_the_others(session: Session) -> None:
    assert run(session, [("first", failing, 1), ("second", noting, 1)]) == 1
    assert results(session.out) == [
        {"step": "first", "FAILED": "RuntimeError: no such routine"},
        {"step": "noted", "value": 1.0},
    ]
    assert "no such routine" in (session.out / "failures.txt").read_text()


def test_a_step_that_takes_too_long_is_broken_off(session: Session) -> None:
    assert run(session, [("endless", endless, 0.05), ("second", noting, 1)]) == 1
    first, second = results(session.out)
    assert first == {"step": "endless", "FAILED": "OutOfTimeError: stopped after 0 s"}
    assert second["step"] == "noted"


def test_a_step_that_no_longer_fits_is_left_out(session: Session) -> None:
    assert run(session, [("long", failing, 3600), ("second", noting, 1)]) == 0
    first, second = results(session.out)
    assert first["step"] == "long"
    assert "3600 needed" in first["left_out"]
    assert second["step"] == "noted"


@pytest.mark.slow
def test_the_limit_ends_a_call_that_hangs(tmp_path: Path) -> None:
    script = f"""
import sys, time
from tests.benchmarks import gpu, gpu_steps
gpu_steps.STEPS = [("hangs", lambda session: time.sleep(60), 0.1)]
gpu._GRACE = 0.2
gpu.signal.setitimer = lambda *arguments: None  # a library that hangs ignores the alarm too
gpu.main(["--out", {str(tmp_path)!r}, "--rehearse", "--limit", "0.5"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert results(tmp_path) == [{"step": "end", "FAILED": "a step was running when the limit was reached"}]
    assert "===== all results" in done.stdout
