"""The command in copies of this process that may have only so much memory and time: a line of stdin for each run.

    python -m tests.robustness.bounded

A line is JSON: the working directory, and the arguments. What a run says goes to the files `out` and `err` there.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from spectrum.cli.entry import main
from tests.helpers.fork_server import single_threaded

# Above what the imports take: enough for any sound model of a few layers, and too little for a blow-up.
ADDRESS_SPACE = 4 << 30
SECONDS = 12  # of the processor's time


def serve() -> None:
    """Run what each line of stdin says; answer with status and memory. Forks, and has no threads."""
    single_threaded()
    for line in sys.stdin:
        directory, args = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(_run_bounded(Path(directory), args))
        _, status, usage = os.wait4(child, 0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown = (usage.ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps([os.waitstatus_to_exitcode(status), grown]), flush=True)


def _run_bounded(directory: Path, args: list[str]) -> int:
    os.chdir(directory)
    if Path("/proc/self/statm").exists():
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # ends the process
    signal.alarm(10 * SECONDS)
    with open("out", "w") as out, open("err", "w") as err, redirect_stdout(out), redirect_stderr(err):
        return main(args)


if __name__ == "__main__":
    serve()
