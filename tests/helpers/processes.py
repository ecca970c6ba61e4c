"""The command in processes of its own: how it is started, and how it failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import command

# As the README recommends.
BIN = Path(sys.executable).parent

Spectrum = Callable[..., "subprocess.CompletedProcess[str]"]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

# huggingface_hub takes its endpoint, cache and offline mode from the environment once, when it is imported: a process
# for each combination, which runs commands as they come on stdin, so that torch is imported once and not every time.
COMMANDS = """
import contextlib, io, json, os, signal, sys
from spectrum.cli.entry import main
answers = sys.stdout
for line in sys.stdin:
    argv, directory, environment = json.loads(line)
    os.chdir(directory)
    signal.alarm(120)
    before = dict(os.environ)
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(argv)
    os.environ.clear()
    os.environ.update(before)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)
"""


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """The command, in a process of its own, failed as `command.assert_refused` says."""
    command.assert_refused(command.Finished(done.returncode, done.stdout, done.stderr), *words, status=status)


def quiet_environment(home: Path) -> dict[str, str]:
    """That of the tests, with nothing of the user's Hugging Face settings, and without a network."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_", "TRANSFORMERS_"))}
    return inherited | {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(home)}


@contextmanager
def commands(home: Path, **settings: str) -> Iterator[Command]:
    """`run(*args, cwd=..., **environment)` in a process that has these settings, and no others of Hugging Face's."""
    environment = quiet_environment(home)
    del environment["HF_HUB_OFFLINE"]
    environment |= settings
    with subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def run(*args: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
            stdin.write(json.dumps([[*map(str, args)], str(cwd), environment]) + "\n")
            stdin.flush()
            status, out, err = json.loads(stdout.readline())
            return subprocess.CompletedProcess(args, status, out, err)

        yield run


def torchrun(number: int, *args: str) -> list[str]:
    return [str(BIN / "torchrun"), "--standalone", f"--nproc-per-node={number}", *args]
