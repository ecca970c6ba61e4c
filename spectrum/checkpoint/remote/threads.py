"""Threads for calls over a network, which may hang: nobody ever has to wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from spectrum.errors import DeviceError, thread_errors

_P = ParamSpec("_P")
_T = TypeVar("_T")

# A call, and where its result goes; None ends the thread that takes it.
_Calls = SimpleQueue["tuple[Future[Any], Callable[[], Any]] | None"]


class Threads:
    """Threads that make calls in the order in which these are given.

    Unlike those of concurrent.futures, they do not keep the process from ending, and `close` frees whoever waits for a
    call that is being made.

    Args:
        number: how many threads; there are fewer if the system does not allow as many.
        name: of each thread.

    Raises DeviceError if not a single thread can be started.
    """

    def __init__(self, number: int, name: str) -> None:
        self._calls: _Calls = SimpleQueue()
        self._unfinished: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._number = 0
        for _ in range(number):
            thread = threading.Thread(target=_work, args=(self._calls,), daemon=True, name=name)
            try:
                with thread_errors():
                    thread.start()
            except DeviceError:
                if not self._number:
                    raise
                break
            self._number += 1

    def submit(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have a thread make a call. The result raises CancelledError if the threads are closed before it is there."""
        future: Future[_T] = Future()
        with self._lock:
            if self._is_closed:
                future.cancel()
                return future
            self._unfinished.add(future)
        future.add_done_callback(self._finished)
        self._calls.put((future, lambda: call(*args, **kwargs)))
        return future

    def close(self) -> None:
        """Cancel all calls. Does not wait for those that are being made. A second call does nothing."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            unfinished = list(self._unfinished)
        for future in unfinished:
            future.cancel()
        for _ in range(self._number):
            self._calls.put(None)

    def _finished(self, future: Future[Any]) -> None:
        with self._lock:
            self._unfinished.discard(future)


def _work(calls: _Calls) -> None:
    while (taken := calls.get()) is not None:
        future, call = taken
        # The future is never marked as running, so that it can be cancelled at any time.
        if not future.cancelled():
            with suppress(InvalidStateError):
                _make(call, future)
        del taken, future, call  # a thread that waits for its next call holds no memory of the last


def _make(call: Callable[[], Any], future: Future[Any]) -> None:
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
