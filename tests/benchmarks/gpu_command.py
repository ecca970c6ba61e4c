"""Steps of `tests.benchmarks.gpu` that run processes: the tests, and the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from spectrum.files import slug
from tests.benchmarks import checkpoints
from tests.benchmarks.gpu import Session
from tests.benchmarks.hashed_weights import weight

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "data" / "tiny-llama"


def run_tests(session: Session) -> None:
    """The tests that use the card. Warnings do not fail them: versions of packages may differ here."""
    files = [f"tests/compute/test_{name}.py" for name in ("snr", "executor", "devices")]
    which = "cuda" if session.device.type == "cuda" else "test_a_matrix_of_zeros"
    options = [
        "-q",
        "-o",
        "addopts=--strict-markers",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",
        "--tb=short",
        "-k",
        which,
    ]
    report = session.out / "pytest.txt"
    try:
        with report.open("w") as file:
            done = _run(session, [sys.executable, "-m", "pytest", *options, *files], ROOT, stdout=file)
    finally:
        lines = report.read_text().strip().splitlines() or ["nothing"]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        session.note("tests", last=lines[-1][:200], failed=failed[:20])
    if done.returncode:
        raise RuntimeError(f"{len(failed)} tests failed")


def run_command(session: Session) -> None:
    """The command on the sample, on GPU and CPU; and on a model of Phi-3.5-mini's shapes and four layers from disk."""
    import transformers

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        on_cpu = _spectrum(session, SAMPLE, scratch / "cpu", "cpu")
        on_device = _spectrum(session, SAMPLE, scratch / "device", session.device.type)
        assert on_cpu.keys() == on_device.keys()
        session.note("sample", layers=len(on_cpu), error=max(abs(on_device[k] / v - 1) for k, v in on_cpu.items()))
        config = transformers.LlamaConfig(
            hidden_size=session.size(3072),
            intermediate_size=session.size(8192),
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=session.size(32064),
            tie_word_embeddings=False,
            dtype="bfloat16",
        )
        size = checkpoints.write(
            scratch / "phi", config, lambda rows, columns, _: weight(rows, columns, session.device).cpu()
        )
        session.note("checkpoint", GB=size / 1e9)
        _spectrum(session, scratch / "phi", scratch / "of-phi", session.device.type)


def run_two_processes(session: Session) -> None:
    """Two processes that share the card."""
    with tempfile.TemporaryDirectory() as name:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        _spectrum(session, SAMPLE, Path(name), "cpu" if session.rehearse else "auto", launcher)


def _spectrum(session: Session, model: Path, cwd: Path, device: str, launcher: Sequence[str] = ()) -> dict[str, float]:
    """Run the command, note its time and its first line, and return the scores by layer."""
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, "-m", "spectrum", "--model-name", str(model), "--yes", "--device", device]
    started = time.perf_counter()
    done = _run(session, command, cwd)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    session.note("command", model=model.name, device=device, seconds=seconds, said=done.stdout.splitlines()[0])
    scores = json.loads((cwd / "model_snr_results" / f"snr_results_{slug(str(model))}.json").read_text())
    return {layer: entry["snr"] for layer, entry in scores.items()}


def _run(
    session: Session, command: Sequence[str], cwd: Path, stdout: IO[str] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a process that finds this package, and uses no network."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    errors = subprocess.PIPE if stdout == subprocess.PIPE else subprocess.STDOUT
    limit = max(1.0, session.left())
    return subprocess.run(command, cwd=cwd, env=environment, stdout=stdout, stderr=errors, text=True, timeout=limit)
