"""Work in a directory that another program may move or remove at any time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")

_TRIES = 3  # more often than that, a directory does not disappear by chance


def in_directory(directory: Path, act: Callable[[], _T]) -> _T:
    """Make a directory if it is missing, then act in it. If the directory disappears in between, do both again.

    Raises OSError as `mkdir` and `act` do.
    """
    for _ in range(_TRIES - 1):
        # mkdir raises FileExistsError too: when the directory was there, and is gone before mkdir looks what it is.
        with suppress(FileNotFoundError, FileExistsError):
            directory.mkdir(parents=True, exist_ok=True)
            return act()
    directory.mkdir(parents=True, exist_ok=True)
    return act()
