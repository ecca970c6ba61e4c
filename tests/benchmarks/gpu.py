"""All measurements of a GPU in one call: are the scores right, how long do they take, how much memory do they need.

    python -m tests.benchmarks.gpu --out DIR [--limit 285] [--only STEP ...] [--rehearse]

The steps (`gpu_steps`) run in order of value. A step that fails is noted, and the next one runs. A step that does not
fit into the rest of `--limit` seconds is left out. A step that takes twice the expected time is stopped. When the limit
is reached, the process ends. Each result is written to DIR/results.jsonl at once, and printed in a table at the end.

Weights have the same bits on every machine (`hashed_weights`), and scores are compared with those of a CPU. This needs
torch, transformers, accelerate, scipy and pytest, but no installed package of this repository and no network.

--rehearse runs every step on the CPU with sizes divided by 16, to find mistakes before a GPU is used.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

_SMALLER = 16  # the divisor of sizes in a rehearsal
_GRACE = 5.0  # seconds beyond the limit, when the process ends even within a library


class OutOfTimeError(Exception):
    """A step has taken much longer than expected."""


class Session:
    """The device to measure, the time that is left, and the results so far.

    Args:
        out: the directory for results.
        limit: seconds for all steps together.
        rehearse: whether to use the CPU and small sizes.
    """

    def __init__(self, out: Path, limit: float, *, rehearse: bool) -> None:
        self.out, self.limit, self.rehearse = out, limit, rehearse
        self.device = torch.device("cpu") if rehearse else torch.device("cuda", 0)
        self._started = time.perf_counter()
        self._table: list[str] = []
        out.mkdir(parents=True, exist_ok=True)

    def size(self, full: int) -> int:
        """A size as it is in this session."""
        return max(1, full // _SMALLER) if self.rehearse else full

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """A shape as it is in this session."""
        return self.size(rows), self.size(columns)

    def left(self) -> float:
        """Seconds that are left."""
        return self.limit - (time.perf_counter() - self._started)

    def note(self, step: str, **values: object) -> None:
        """Record a result: in the file, in a line on the terminal, and in the table at the end."""
        with (self.out / "results.jsonl").open("a") as results:
            results.write(json.dumps({"step": step} | values, default=str) + "\n")
        texts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        line = f"{step}: {' '.join(texts)}"
        self._table.append(line)
        print(f"[{time.perf_counter() - self._started:4.0f} s] {line}", flush=True)

    def seconds(self, work: Callable[[], object], runs: int = 1, warm_up: int = 0) -> float:
        """The best wall-clock time of several runs, until the GPU has done all that a run started."""
        best = math.inf
        for run in range(warm_up + runs):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            if run >= warm_up:
                best = min(best, time.perf_counter() - started)
        return best

    def wait(self) -> None:
        """Wait until the GPU is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Bytes of GPU memory that tensors take."""
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def start_peak(self) -> None:
        """Measure peaks of memory from here on."""
        if self.device.type == "cuda":
            self.wait()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> dict[str, float]:
        """Peaks of GPU memory, in GiB."""
        if self.device.type == "cpu":
            return {}
        stats = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        return dict(zip(("allocated_GiB", "reserved_GiB"), (value / 2**30 for value in stats), strict=True))

    def failed(self, step: str, error: BaseException) -> None:
        """Record a failure, and its traceback."""
        self.note(step, FAILED=f"{type(error).__name__}: {str(error)[:200]}")
        with (self.out / "failures.txt").open("a") as failures:  # one file for all steps
            failures.write(f"{step}\n{''.join(traceback.format_exception(error))}\n")

    def show_table(self) -> None:
        """Print all results again, for readers who have only the end of the output."""
        print("\n===== all results\n" + "\n".join(self._table), flush=True)


# Name, function, and the seconds that it is expected to take.
Step = tuple[str, Callable[[Session], None], float]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop work that takes longer, as soon as Python code runs. Raises OutOfTimeError then."""

    def end(*_: object) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(session: Session, steps: Sequence[Step]) -> int:
    """Run the steps that fit into the time; return how many failed."""
    failures = 0
    for name, work, expected in steps:
        if session.left() < expected:
            session.note(name, left_out=f"{session.left():.0f} s left, {expected:.0f} needed")
            continue
        started = time.perf_counter()
        try:
            with at_most(min(2 * expected, session.left())):
                work(session)
        except Exception as error:
            failures += 1
            session.failed(name, error)
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"--- {name}: {time.perf_counter() - started:.1f} s, expected {expected:.0f}", flush=True)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps; the exit status is 1 if one failed, and 3 if the limit ended the process."""
    from tests.benchmarks.gpu_steps import STEPS

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the directory for results")
    p.add_argument("--limit", type=float, default=285, metavar="SECONDS", help="for all steps together")
    names = [name for name, _, _ in STEPS]
    p.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help=f"of {', '.join(names)}")
    p.add_argument("--rehearse", action="store_true", help="on the CPU, with small sizes")
    options = p.parse_args(argv)
    if not (options.rehearse or torch.cuda.is_available()):
        p.error("torch finds no GPU; --rehearse needs none")
    session = Session(options.out, options.limit, rehearse=options.rehearse)

    def end() -> None:
        session.note("end", FAILED="a step was running when the limit was reached")
        session.show_table()
        os._exit(3)

    guard = threading.Timer(options.limit + _GRACE, end)
    guard.daemon = True
    guard.start()
    failures = run(session, [step for step in STEPS if step[0] in options.only])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    session.note("end", failures=failures, seconds=options.limit - session.left(), host_peak_GiB=peak)
    guard.cancel()
    session.show_table()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
