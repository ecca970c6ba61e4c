"""Many cached runs at a time, while the scan that they read is made again and again.

python -m tests.robustness.crowd [--runs 1000]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.paths import TINY_LLAMA, files_below

PERCENTS = ("12.5", "25", "50", "75")


@dataclass(frozen=True, slots=True)
class Crowd:
    """How many cached runs there were, how many scans meanwhile, in how many seconds, and what was wrong."""

    runs: int
    rescans: int
    seconds: float
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Expected:
    """What a single run with the cache to itself says and writes."""

    out: str
    files: dict[Path, bytes]


def crowd(directory: Path, runs: int, at_once: int, write: Callable[[], str] | None = None) -> Crowd:
    """Run the command in a directory with `model` and a scan of it, which is made anew again and again meanwhile.

    Each run has to end well, silently, from the cache, and with the same lines and files as one that is alone. write:
    does what a scan does to the cache, and says what was wrong; by default the command does, with --rescan.
    """
    before = files_below(directory)
    expected = {percent: _alone(directory, percent) for percent in PERCENTS}
    cache = {path: path.read_bytes() for path in (directory / "model_snr_results").glob("*.json")}
    over = threading.Event()

    def reader(number: int) -> list[str]:
        percent = PERCENTS[number % len(PERCENTS)]
        done = _spectrum(directory, percent)
        faults = []
        if (done.returncode, done.stdout, done.stderr) != (0, expected[percent].out, ""):
            faults.append(f"run {number} ended with {done.returncode}: {done.stdout[:200]!r} {done.stderr[-500:]!r}")
        return faults + _changed(expected[percent].files)

    def writer() -> tuple[int, list[str]]:
        faults, rescans = [], 0
        while not rescans or not over.is_set():
            faults.append(write() if write else _scan_anew(directory, PERCENTS[rescans % len(PERCENTS)]))
            rescans += 1
        return rescans, [fault for fault in faults if fault]

    started = time.monotonic()
    with ThreadPoolExecutor(at_once) as readers, ThreadPoolExecutor(1) as writers:
        scanning = writers.submit(writer)
        try:
            found = [fault for faults in readers.map(reader, range(runs)) for fault in faults]
        finally:
            over.set()
        rescans, faults = scanning.result()
    seconds = time.monotonic() - started
    found += faults + _changed(cache)
    for one in expected.values():
        found += _changed(one.files)
    added = {str(path.relative_to(directory)) for one in expected.values() for path in one.files}
    found += [f"left behind: {name}" for name in files_below(directory) if name not in {*before, *added}]
    return Crowd(runs, rescans, seconds, tuple(found))


def _alone(directory: Path, percent: str) -> _Expected:
    done = _spectrum(directory, percent)
    if done.returncode != 0 or "from the cached scan" not in done.stdout:
        raise RuntimeError(f"{directory} has no scan to begin with: {done.stdout}{done.stderr}")
    labels = ("scores  ", "sorted scores  ", "list  ")
    written = [directory / line.split()[-1] for line in done.stdout.splitlines() if line.startswith(labels)]
    if len(written) != len(labels):
        raise RuntimeError(f"the command does not say what it wrote: {done.stdout}")
    return _Expected(done.stdout, {path: path.read_bytes() for path in written})


def _scan_anew(directory: Path, percent: str) -> str:
    done = _spectrum(directory, percent, "--rescan", "--quiet")
    return f"a scan ended with {done.returncode}: {done.stderr[-500:]!r}" if done.returncode else ""


def _changed(files: dict[Path, bytes]) -> list[str]:
    """Files that are not what they were, at this moment."""
    faults = []
    for path, content in files.items():
        found = path.read_bytes() if path.exists() else b""
        if found != content:
            faults.append(f"{path.name} has {len(found)} bytes, not the {len(content)} of a single run")
    return faults


def _spectrum(directory: Path, percent: str, *args: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_", "TRANSFORMERS_"))}
    command = [sys.executable, "-m", "spectrum", "--model-name", "model", "--yes", "--top-percent", percent, *args]
    return subprocess.run(
        command,
        cwd=directory,
        env=clean | {"HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.crowd", description=__doc__)
    parser.add_argument("--runs", type=int, default=1000, help="cached runs (default: 1000)")
    parser.add_argument("--at-once", type=int, default=32, help="of these, how many at a time (default: 32)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(TINY_LLAMA, directory / "model")
        first = _spectrum(directory, "50")
        if first.returncode != 0:
            print(first.stderr, file=sys.stderr)
            return 1
        result = crowd(directory, args.runs, args.at_once)
    print(
        f"{result.runs} cached runs, {args.at_once} at a time, and {result.rescans} scans of the same model meanwhile, "
        f"in {result.seconds:.0f} s: {len(result.faults)} faults"
    )
    for fault in result.faults[:20]:
        print(f"  {fault}")
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
