"""Several processes that scan one model, on one machine or many, as torchrun and accelerate launch start them.

The main process decides what is scanned; each takes its share and hands back what it found. What passes between them
is a few megabytes of Python objects, so it goes through main memory (gloo) on machines with GPUs too: the end of a
process is noticed at once there, while nccl would wait for its timeout.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

from spectrum.errors import ProcessError, UnmetError, first_line

# A process waits for the others as long as it takes: while the user is asked, while the busiest one finishes.
_PATIENCE = timedelta(days=30)

# It says so after as many seconds, in case that they will not come.
SILENCE = 30.0
_T = TypeVar("_T")
_single = ContextVar("alone", default=False)
_note: ContextVar[Callable[[str], None] | None] = ContextVar("note", default=None)


@contextmanager
def single_process() -> Iterator[None]:
    """Do as a process by itself: those of a training script, say, have groups of their own, and other work."""
    token = _single.set(True)
    try:
        yield
    finally:
        _single.reset(token)


@contextmanager
def telling(note: Callable[[str], None]) -> Iterator[None]:
    """Have long waits for other processes told of, which else are silent."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def count() -> int:
    """How many processes scan together, by what the launcher tells each of them."""
    return max(1, _environment("WORLD_SIZE", 1)) if "RANK" in os.environ and not _single.get() else 1


def rank() -> int:
    """This process's number; the main one's is 0."""
    return _environment("RANK", 0) if count() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return _environment("LOCAL_RANK", 0) if count() > 1 else 0


def join() -> None:
    """Meet the other processes, where there are any. Raises ProcessError where they cannot be reached."""
    if count() > 1:
        from accelerate import PartialState

        known = " and ".join(f"{name}={os.environ[name]}" for name in ("RANK", "WORLD_SIZE"))
        waiting = (
            f"waiting for the other processes: {known} say that there are {count()}; unset them if this one is alone"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # accelerate's advice on the number of threads is for training
            # Named, since accelerate prefers MPI where torch has it, under which each process would be by itself.
            try:
                _interruptibly(lambda: PartialState(cpu=True, backend="gloo", timeout=_PATIENCE), waiting)
            except ProcessError as error:
                raise UnmetError(f"{error} ({known}; unset them if this process is alone)") from error


def leave() -> None:
    """Part from the other processes; any that still waits for this one learns it. Without effect the second time."""
    if _together():
        import torch.distributed

        with suppress(Exception):
            torch.distributed.destroy_process_group()


def from_main(value: _T) -> _T:
    """The main process's value, in every process. Raises ProcessError where another one has ended."""
    if not _together():
        return value
    from accelerate.utils import broadcast_object_list

    received: list[_T] = _interruptibly(lambda: broadcast_object_list([value]))
    return received[0]


def gathered(values: list[_T]) -> list[_T]:
    """The values of all processes, in every process. Raises ProcessError where another one has ended."""
    if not _together():
        return values
    from accelerate.utils import gather_object

    waiting = (
        f"the main process has done its part and waits for the other {count() - 1}; one that hangs or is stopped is "
        "not noticed, so see that all are at work"
    )
    everyone: list[_T] = _interruptibly(lambda: gather_object(values), None if rank() else waiting)
    return everyone


def _together() -> bool:
    if count() == 1:
        return False
    import torch.distributed

    return torch.distributed.is_initialized()


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def _interruptibly(call: Callable[[], Any], waiting: str | None = None) -> Any:
    """What a call returns that waits for other processes. Signals reach Python only between two calls of the kind.

    waiting: what to say where that takes long.
    """
    done: Future[Any] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=work, daemon=True, name="wait for processes")
    thread.start()
    note, started = _note.get(), time.monotonic()
    while not done.done():
        wait([done], timeout=0.5)
        if waiting and note and time.monotonic() - started > SILENCE and not done.done():
            note(waiting)
            waiting = None
    thread.join()
    try:
        return done.result()
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessError(f"the processes of this run lost each other: {first_line(error)}") from error
