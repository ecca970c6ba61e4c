"""The command as a real process, without the seconds that its imports take: copies of one that has them behind it.

What Python settles at its start, such as the encoding of its streams, is settled for all copies of a process.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

from tests.helpers import fork_server

if TYPE_CHECKING:
    from pexpect import fdpexpect

Done = subprocess.CompletedProcess[str]

_GUARD = 300.0  # seconds, against hangs


def _named(name: str | Path) -> str:
    """The bytes that the system has of a name, each as a character: copies may decode them otherwise."""
    return os.fsencode(name).decode("latin-1")


class Forked:
    """A run of the command. Its streams are what it was given."""

    def __init__(self, report: int) -> None:
        self._report, self._said = report, b""
        self.returncode: int | None = None
        self.pid = int(self._line(_GUARD))

    def wait(self, timeout: float = _GUARD) -> int:
        """Its exit status; it is ended where it takes longer."""
        if self.returncode is None:
            try:
                self.returncode = int(self._line(timeout))
            except TimeoutError:
                self.send_signal(signal.SIGKILL)
                self._line(_GUARD)
                raise
            os.close(self._report)
        return self.returncode

    def poll(self) -> int | None:
        with suppress(TimeoutError):
            return self.wait(0) if self._is_over() else None
        return None

    def send_signal(self, number: int) -> None:
        if not self._is_over():
            os.kill(self.pid, number)

    def _is_over(self) -> bool:
        return self.returncode is not None or bool(select.select([self._report], [], [], 0)[0])

    def _line(self, timeout: float) -> bytes:
        until = time.monotonic() + timeout
        while not self._said.endswith(b"\n"):
            if not select.select([self._report], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            byte = os.read(self._report, 1)  # a line's end may be followed by the next line
            assert byte, "the process that forks is gone"
            self._said += byte
        line, self._said = self._said, b""
        return line


class Piped(Forked):
    """A run of the command whose stdout and stderr are pipes, which are closed with it."""

    def __init__(self, report: int, out: int, err: int) -> None:
        super().__init__(report)
        self.stdout, self.stderr = os.fdopen(out, "rb"), os.fdopen(err, "rb", buffering=0)

    def __enter__(self) -> Piped:
        return self

    def __exit__(self, *error: object) -> None:
        self.send_signal(signal.SIGKILL)  # where it has not ended
        self.wait()
        self.stdout.close()
        self.stderr.close()

    def said_until(self, words: str) -> bytes:
        """What comes on stderr until it has these words."""
        said = b""
        while words.encode() not in said:
            part = os.read(self.stderr.fileno(), 1000)
            assert part, said
            said += part
        return said


class OnTerminal(Forked):
    """A run of the command. terminal: the descriptor that its streams are."""

    def __init__(self, report: int, terminal: int) -> None:
        super().__init__(report)
        self.terminal = terminal


class Forks:
    """Forks a process for each run of the command.

    environment: of the process that forks, and of the copies but for what a run changes.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment, self._code = dict(environment), "from spectrum.cli import entry; entry.command()"
        self._control, theirs = socket.socketpair()
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, fork_server.__file__, str(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *error: object) -> None:
        self._control.close()
        self._server.wait(_GUARD)

    def of(self, code: str) -> Forks:
        """The same, for copies that run something else than the command: this, as `python -c` does."""
        other = copy(self)
        other._code = code
        return other

    def start(
        self,
        *args: str | Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        streams: Mapping[int, int | None] | None = None,
    ) -> Forked:
        """Start the command.

        environment: what is different for this run. streams: descriptors for stdin, stdout and stderr, by the numbers
        of these; None for one that is closed.
        """
        return Forked(self._start(args, cwd, environment or {}, streams or {}))

    def piped(self, *args: str | Path, cwd: Path, **environment: str) -> Piped:
        """Start the command with nothing on its stdin, and pipes for its stdout and stderr."""
        out, its_out = os.pipe()
        err, its_err = os.pipe()
        report = self._start(args, cwd, environment, {1: its_out, 2: its_err})
        os.close(its_out)
        os.close(its_err)
        return Piped(report, out, err)

    def _start(
        self, args: Sequence[str | Path], cwd: Path, environment: Mapping[str, str], streams: Mapping[int, int | None]
    ) -> int:
        changed = {**self._environment, **environment}
        run = {
            "arguments": [*map(_named, args)],
            "code": self._code,
            "directory": _named(cwd),
            "environment": {_named(name): _named(value) for name, value in changed.items()},
            "streams": [number for number, descriptor in streams.items() if descriptor is not None],
            "closed": [number for number, descriptor in streams.items() if descriptor is None],
        }
        report, theirs = os.pipe()
        descriptors = [theirs, *(descriptor for descriptor in streams.values() if descriptor is not None)]
        socket.send_fds(self._control, [json.dumps(run).encode()], descriptors)
        os.close(theirs)
        return report

    def run(
        self,
        *args: str | Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        streams: Mapping[int, int | None] | None = None,
    ) -> Done:
        """Run the command to its end, with nothing on its stdin. streams: what is not to be caught."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            given = {1: out.fileno(), 2: err.fileno(), **(streams or {})}
            status = self.start(*args, cwd=cwd, environment=environment, streams=given).wait()
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(io.StringIO(file.read().decode(), newline=None).read())
        return subprocess.CompletedProcess(args, status, *said)

    @contextmanager
    def on_terminal(
        self,
        *args: str | Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
        size: tuple[int, int] = (40, 120),
    ) -> Iterator[tuple[OnTerminal, fdpexpect.fdspawn[str]]]:
        """Start the command on a terminal of its own, of so many rows and columns."""
        from pexpect import fdpexpect  # only here, so that tests of the kernel run where it is not installed

        ours, its = os.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        try:
            process = OnTerminal(self._start(args, cwd, environment or {}, dict.fromkeys(range(3), its)), its)
            try:
                yield process, fdpexpect.fdspawn(ours, encoding="utf-8", timeout=60)
            finally:
                process.send_signal(signal.SIGKILL)  # where it has not ended
                process.wait()
        finally:
            os.close(its)
            os.close(ours)
