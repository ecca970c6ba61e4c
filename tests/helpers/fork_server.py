"""A process that has the imports of a scan behind it, and makes a copy of itself for each run: `tests.helpers.forks`.

Run as a script, with the number of a socket. A message on that is JSON: the code and arguments of a run, its directory,
its environment, the numbers of its streams and of those that are closed. With it come descriptors: one that the run's
number and exit status are written to, and one for each of the streams.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn, TextIO

STREAMS = ("stdin", "stdout", "stderr")


def serve(control: socket.socket) -> str | None:
    """Fork for each message. Returns in each copy, with the code that it is to run; and None at the end of messages."""
    running: dict[int, int] = {}
    while True:
        if select.select([control], [], [], 0.003 if running else None)[0]:
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
            if not message:
                return None
            report, *streams = descriptors
            child = os.fork()
            if child == 0:
                control.close()
                for descriptor in (report, *running.values()):
                    os.close(descriptor)
                return become(json.loads(message), streams)
            for descriptor in streams:
                os.close(descriptor)
            os.write(report, f"{child}\n".encode())
            running[child] = report
        for child in list(running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                os.write(running[child], f"{os.waitstatus_to_exitcode(status)}\n".encode())
                os.close(running.pop(child))


def become(run: dict[str, Any], descriptors: list[int]) -> str:
    """What a new process would be: with its own directory, environment, streams and arguments. Returns its code.

    All names are the bytes that the system has of them, each as a character.
    """
    os.chdir(named(run["directory"]))
    os.environ.clear()
    os.environ.update({named(name): named(value) for name, value in run["environment"].items()})
    for number, descriptor in zip(run["streams"], descriptors, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if 0 in run["streams"] and os.isatty(0):
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in run["streams"]:
        setattr(sys, STREAMS[number], reopened(number))
    for number in run["closed"]:
        os.close(number)
        setattr(sys, STREAMS[number], None)
    sys.argv = ["spectrum", *map(named, run["arguments"])]
    return str(run["code"])


def named(text: str) -> str:
    return os.fsdecode(text.encode("latin-1"))


def reopened(number: int) -> TextIO:
    """A stream as Python opens it at its start. What it was before may have been a file, or no terminal."""
    before: TextIO = getattr(sys, STREAMS[number])
    return open(
        number,
        "w" if number else "r",
        buffering=1 if number == 2 or os.isatty(number) else -1,
        encoding=os.environ.get("PYTHONIOENCODING", before.encoding),
        errors=before.errors,
        closefd=False,
    )


def single_threaded() -> None:
    """Import all that a scan does. A thread that this started would be lacking in the copies."""
    os.environ["OMP_NUM_THREADS"] = "1"  # which is looked at once, when torch is imported
    import torch

    torch.set_num_threads(1)
    import accelerate  # noqa: F401
    import transformers.masking_utils
    import transformers.models.llama.modeling_llama  # noqa: F401

    import spectrum.checkpoint.reader
    import spectrum.cli.entry
    import spectrum.compute.executor
    import spectrum.scanning.scan
    import spectrum.trainers.checking.check  # noqa: F401

    gc.collect()
    gc.freeze()  # else each copy would go through all of it, and have it copied for that
    threads = Path("/proc/self/task")
    assert not threads.exists() or len(list(threads.iterdir())) == 1


def end(code: str) -> NoReturn:
    """Run some code; end as Python does, but for taking apart every module, which takes longer than all the rest."""
    status: Any = 0
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except (OSError, ValueError):
            status = 120
    os._exit(status or 0)


if __name__ == "__main__":
    del sys.path[0]  # this directory, where no process of a user's would look
    number = int(sys.argv[1])
    single_threaded()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has all that it starts ignore it
    if (given := serve(socket.socket(fileno=number))) is not None:
        end(given)
