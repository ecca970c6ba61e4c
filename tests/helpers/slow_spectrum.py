"""The command with a reader that stops in mid-scan, or fails there, and a record of what was read and how it ended.

Run by a launcher as a script, told what to do by the environment:

READS  a directory, for the matrices that each process reads
ENDS   a directory, for the exit status of each process that ends by itself
HOLD   the directory of journals; each process waits for good after a few matrices, for a signal or its own fault
FAULT  the number of the process that fails, once every journal has a score, and how: `1 killed`, `0 failed`
MPI    torch says that it has MPI, as the builds of some clusters do
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.cli import entry
from spectrum.errors import CheckpointError
from spectrum.scanning import distributed

if TYPE_CHECKING:
    from spectrum.records import LayerWeight

FAULT = "cannot read shard 7: Input/output error"

# Enough for a score. What is under way meanwhile, at most one matrix a lane, is scored too.
_READ_BEFORE = 3
_FOR_A_SCORE = 120.0  # seconds, which only a run that went wrong takes
_FOR_GOOD = 600.0


def scored(journals: Path) -> list[int]:
    """How many matrices each of the journals in a directory has."""
    lines = [path.read_bytes().splitlines(keepends=True) for path in sorted(journals.glob("*.journal-*.jsonl"))]
    return [sum(line.endswith(b"\n") for line in of_one[1:]) for of_one in lines]


def await_journals(journals: Path, number: int, going: Callable[[], bool] = lambda: True) -> None:
    """Wait until so many journals have a score each, or whoever writes them is not going any more."""
    for _ in range(int(_FOR_A_SCORE / 0.02)):
        if sum(map(bool, scored(journals))) == number or not going():
            return
        time.sleep(0.02)


def _record(directory: str | None, text: str) -> None:
    if directory:
        with Path(directory, str(distributed.rank())).open("a") as file:
            file.write(f"{text}\n")


def _misbehave() -> None:
    if not (journals := os.environ.get("HOLD")):
        return
    faulty, _, how = os.environ.get("FAULT", "").partition(" ")
    if faulty == str(distributed.rank()):
        await_journals(Path(journals), distributed.count())
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise CheckpointError(FAULT)
    time.sleep(_FOR_GOOD)


def _run() -> NoReturn:
    read, leave, numbers = Checkpoint.read, os._exit, count()

    def recorded(self: Checkpoint, weight: LayerWeight, index: int) -> torch.Tensor:
        if next(numbers) >= _READ_BEFORE:
            _misbehave()
        _record(os.environ.get("READS"), f"{weight.parameter} {index}")
        return read(self, weight, index)

    def ended(status: int) -> NoReturn:
        _record(os.environ.get("ENDS"), str(status))
        leave(status)

    if os.environ.get("MPI"):
        torch.distributed.is_mpi_available = lambda: True
    Checkpoint.read = recorded  # type: ignore[method-assign]
    os._exit = ended
    try:
        entry.command()
    except SystemExit as stop:
        _record(os.environ.get("ENDS"), str(stop.code))
        raise


if __name__ == "__main__":
    _run()
