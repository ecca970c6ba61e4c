"""One call that answers what is to be known of the GPU path: is it right, how fast is it, what does it take.

    python -m tests.benchmarks.gpu --out DIR [--limit 285] [--only STEP ...] [--rehearse]

Steps run in order of worth, each in a guard of its own: where one fails, that is noted, and the next one runs. A step
that no longer fits into what is left of `--limit` seconds is left out; one that takes twice as long as was foreseen is
broken off; the whole ends with the limit, come what may. What is measured goes to DIR/results.jsonl as soon as it is
known, and in a table to the terminal at the end.

Weights are the same bits on every machine (`hashed_weights`), and scores are compared with those of a CPU. torch,
transformers, accelerate, scipy and pytest are enough; no network is used.

--rehearse runs every step on the CPU, with sizes divided by 16, to see that nothing is misspelt.
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

_SMALLER = 16  # by which sizes are divided in a rehearsal
_GRACE = 5.0  # seconds beyond the limit, after which the process ends


class OutOfTimeError(Exception):
    """A step has taken much longer than was foreseen."""


class Session:
    """Where measurements are made, and where they go."""

    def __init__(self, out: Path, limit: float, *, rehearse: bool) -> None:
        self.out, self.limit, self.rehearse = out, limit, rehearse
        self.device = torch.device("cpu") if rehearse else torch.device("cuda", 0)
        self._started = time.perf_counter()
        self._table: list[str] = []
        out.mkdir(parents=True, exist_ok=True)

    def size(self, full: int) -> int:
        """A size to measure at."""
        return max(1, full // _SMALLER) if self.rehearse else full

    def shape(self, rows: int, columns: int) -> tuple[int, int]:
        """A shape to measure at."""
        return self.size(rows), self.size(columns)

    def left(self) -> float:
        """Seconds that are left."""
        return self.limit - (time.perf_counter() - self._started)

    def note(self, step: str, **values: object) -> None:
        """Keep a result: in the file at once, in a line on the terminal, in the table at the end."""
        with (self.out / "results.jsonl").open("a") as results:
            results.write(json.dumps({"step": step} | values, default=str) + "\n")
        texts = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
        line = f"{step}: {' '.join(texts)}"
        self._table.append(line)
        print(f"[{time.perf_counter() - self._started:4.0f} s] {line}", flush=True)

    def seconds(self, work: Callable[[], object], runs: int = 1, warm_up: int = 0) -> float:
        """The best wall-clock time of some runs of work, with all that it launched."""
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
        """Until the GPU is done."""
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
        """Note a failure, and keep its traceback."""
        self.note(step, FAILED=f"{type(error).__name__}: {str(error)[:200]}")
        with (self.out / "failures.txt").open("a") as failures:  # one for all: few files may be had back from a machine
            failures.write(f"{step}\n{''.join(traceback.format_exception(error))}\n")

    def show_table(self) -> None:
        """All results again, for those who see the end of the output only."""
        print("\n===== all results\n" + "\n".join(self._table), flush=True)


Step = tuple[str, Callable[[Session], None], float]


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Break off what takes longer, as soon as Python has its turn."""

    def end(*_: object) -> None:
        raise OutOfTimeError(f"broken off after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(session: Session, steps: Sequence[Step]) -> int:
    """Do the steps that fit; return how many failed."""
    failures = 0
    for name, work, foreseen in steps:
        if session.left() < foreseen:
            session.note(name, left_out=f"{session.left():.0f} s left, {foreseen:.0f} wanted")
            continue
        started = time.perf_counter()
        try:
            with at_most(min(2 * foreseen, session.left())):
                work(session)
        except Exception as error:
            failures += 1
            session.failed(name, error)
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
        print(f"--- {name}: {time.perf_counter() - started:.1f} s, foreseen {foreseen:.0f}", flush=True)
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Run the steps; the status is 1 where one failed."""
    from tests.benchmarks.gpu_steps import STEPS

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="where results go")
    p.add_argument("--limit", type=float, default=285, metavar="SECONDS", help="for all steps together")
    names = [name for name, _, _ in STEPS]
    p.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP", help=f"of {', '.join(names)}")
    p.add_argument("--rehearse", action="store_true", help="on the CPU, with small sizes")
    options = p.parse_args(argv)
    if not (options.rehearse or torch.cuda.is_available()):
        p.error("torch finds no GPU; --rehearse does without")
    session = Session(options.out, options.limit, rehearse=options.rehearse)

    def end() -> None:
        session.note("end", FAILED="the limit is reached in mid-step")
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
