"""Several processes that scan one model, on one machine or many, as torchrun and accelerate launch start them.

The main process decides what is scanned. Each process scores its share and sends the scores to the other processes. All
scores together take a few megabytes, so gloo sends them through main memory, on machines with GPUs too. gloo notices at
once when a process ends; nccl would wait for its timeout.
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
from typing import TYPE_CHECKING, Any, TypeVar

from spectrum.errors import ProcessError, UnmetError, first_line

if TYPE_CHECKING:
    import torch

# A process waits for the others as long as needed: while the user is asked, while the slowest one finishes.
_TIMEOUT = timedelta(days=30)

# A process that has waited this long says so, since the other processes may never come.
SECONDS_BEFORE_NOTICE = 30.0

_T = TypeVar("_T")

_is_single = ContextVar("is_single", default=False)
_info: ContextVar[Callable[[str], None] | None] = ContextVar("info", default=None)


@contextmanager
def single_process() -> Iterator[None]:
    """Work as if there were no other processes.

    The processes of a training script have a launcher's variables and groups of their own, but they train together and
    do not scan together.
    """
    token = _is_single.set(True)
    try:
        yield
    finally:
        _is_single.reset(token)


@contextmanager
def report_long_waits(info: Callable[[str], None]) -> Iterator[None]:
    """Within the context, call `info` with a line when a wait for other processes takes long."""
    token = _info.set(info)
    try:
        yield
    finally:
        _info.reset(token)


def count() -> int:
    """How many processes scan together, by the launcher's environment variables."""
    return max(1, _environment("WORLD_SIZE", 1)) if "RANK" in os.environ and not _is_single.get() else 1


def rank() -> int:
    """The number of this process. The main process is 0."""
    return _environment("RANK", 0) if count() > 1 else 0


def local_rank() -> int:
    """The number of this process on its machine."""
    return _environment("LOCAL_RANK", 0) if count() > 1 else 0


def join() -> None:
    """Connect to the other processes, if there are any. Raises UnmetError if they cannot be reached."""
    if count() == 1:
        return
    from accelerate import PartialState

    variables = " and ".join(f"{name}={os.environ[name]}" for name in ("RANK", "WORLD_SIZE"))
    waiting = (
        f"waiting for the other processes: {variables} say that there are {count()}; unset them if this one is alone"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerate's advice about the number of threads is for training
        # The backend is named because accelerate prefers MPI if torch has it. Under MPI each process would be alone.
        try:
            _run_interruptibly(lambda: PartialState(cpu=True, backend="gloo", timeout=_TIMEOUT), waiting)
        except ProcessError as error:
            raise UnmetError(f"{error} ({variables}; unset them if this process is alone)") from error


def leave() -> None:
    """Leave the other processes. One that waits for this process gets an error. A second call does nothing."""
    if _has_joined():
        import torch.distributed

        with suppress(Exception):
            torch.distributed.destroy_process_group()


def broadcast(value: _T) -> _T:
    """The main process's value, in every process. Raises ProcessError if another process has ended."""
    if not _has_joined():
        return value
    from accelerate.utils import broadcast_object_list

    received: list[_T] = _run_interruptibly(lambda: broadcast_object_list([value]))
    return received[0]


def gather(values: list[_T]) -> list[_T]:
    """The values of all processes, in every process. Raises ProcessError if another process has ended."""
    if not _has_joined():
        return values
    from accelerate.utils import gather_object

    waiting = (
        f"the main process has done its part and waits for the other {count() - 1}; it does not notice one that hangs "
        "or is stopped, so see that all are at work"
    )
    gathered: list[_T] = _run_interruptibly(lambda: gather_object(values), None if rank() else waiting)
    return gathered


def num_sharing(device: torch.device) -> int:
    """How many processes of this run use the device that this process uses."""
    if count() == 1:
        return 1
    from spectrum.compute.devices import unique_name, warm_up

    warm_up([device])  # a device that cannot be used cannot be identified
    own = unique_name(device)
    return gather([own]).count(own)


def _has_joined() -> bool:
    if count() == 1:
        return False
    import torch.distributed

    return torch.distributed.is_initialized()


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def _run_interruptibly(call: Callable[[], Any], waiting: str | None = None) -> Any:
    """Run a blocking collective in a thread, so that Ctrl-C works meanwhile; return its result.

    Raises ProcessError if another process has ended.

    Args:
        call: the collective.
        waiting: the line to tell the user if it takes long; None for no line.
    """
    result: Future[Any] = Future()

    def work() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=work, daemon=True, name="wait for processes")
    thread.start()
    info, started = _info.get(), time.monotonic()
    while not result.done():
        wait([result], timeout=0.5)
        if waiting and info and time.monotonic() - started > SECONDS_BEFORE_NOTICE and not result.done():
            info(waiting)
            waiting = None
    thread.join()
    try:
        return result.result()
    except (RuntimeError, ValueError, OSError) as error:
        raise ProcessError(f"the processes of this run lost each other: {first_line(error)}") from error
