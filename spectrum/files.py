"""Files that strangers may have made, and directories that another program may move or remove at any time."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from spectrum.errors import ResultsError

_T = TypeVar("_T")
_TRIES = 3  # more often than that, a directory does not disappear by chance
_ABANDONED = 3600.0  # seconds: writing a file takes less

# Each value takes some 60 bytes once it is parsed. A header of 200,000 tensors has 2 million.
_MOST_VALUES = 5_000_000

# Without O_NONBLOCK, opening a FIFO waits for a writer. Windows has neither flag, and needs O_BINARY.
FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


def opened(path: Path) -> BinaryIO:
    """A file of a model, of a results directory, or a list, opened for reading.

    Raises OSError for what a stranger could put in its place to have something else read, or to have this wait for
    ever: anything but a regular file; a link that leads out of the file's directory. From a snapshot in the Hub's
    cache, a link may lead to the blobs of the same repository.
    """
    real = Path(os.path.realpath(path))
    directory = Path(os.path.realpath(path.parent))
    if not real.is_relative_to(directory) and real.parent != _blobs(directory):
        raise OSError(errno.ELOOP, f"it is a link out of its directory, to {real}; put the file itself there")
    _check_regular(os.stat(real))  # before it is opened, since to open a device may have an effect
    descriptor = os.open(real, os.O_RDONLY | FLAGS)
    try:
        _check_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read(path: Path, limit: int) -> bytes:
    """The content of such a file. Raises OSError as `opened` does, and for more than `limit` bytes."""
    with opened(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, limit) + 1)  # no more, since a buffer of that size is made
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is over {limit / (1 << 20):.3g} MiB long, more than any such file has")
    return content


def parse_json(text: bytes) -> Any:
    """The value of a JSON text. Raises ValueError where it is none, or would take many times its size in memory."""
    if sum(map(text.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise ValueError("it holds more values than any such file does")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def create(path: Path) -> int:
    """The descriptor of a new file, to read and write. Raises FileExistsError for whatever is there, a link too."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def beside(path: Path) -> Path:
    """A name for what will take a file's place once it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def sweep(path: Path) -> None:
    """Remove what runs have left `beside` a file that were killed before it was whole, and nothing of an editor's."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+\.[0-9a-f]{{8}}")
    with suppress(OSError):
        for name in filter(ours.fullmatch, os.listdir(path.parent)):
            left = path.with_name(name)
            if time.time() - left.lstat().st_mtime > _ABANDONED:
                left.unlink()


def check_place(path: Path) -> None:
    """Raises OSError where a new file cannot take a name: a directory has it, a device, a FIFO or a socket."""
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EEXIST, "what has its name is no file")


def owner(directory: Path) -> int:
    """The user whose the files are that this process writes to a directory: on network disks, root may be nobody.

    Raises OSError where the directory takes no file.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno()).st_uid


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


def _blobs(directory: Path) -> Path | None:
    """Where the files of a snapshot in the Hub's cache are; None for any other directory."""
    repository = directory.parent.parent
    of_the_hub = directory.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository / "blobs" if of_the_hub else None


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


# Of the 255 bytes that a file's name may have, what is left beside the rest of the longest name written.
_LONGEST_SLUG = 180


def slug(model: str) -> str:
    """The model's name as it appears in file names: as given, `/` and `_` become `-`."""
    return model.replace("/", "-").replace("_", "-")


def check_name(model: str) -> None:
    """Raises ResultsError for a model whose name cannot be part of a file's."""
    if "\0" in model:
        raise ResultsError(f"{model!r} cannot be part of a file's name")
    if len(os.fsencode(slug(model))) > _LONGEST_SLUG:
        raise ResultsError(f"the name {model[:40]}... is too long to name files by; give a shorter, relative path")


def sorted_path(output_dir: Path, model: str) -> Path:
    """Scores by layer type, descending."""
    return output_dir / f"snr_results_{slug(model)}_sorted.json"


def selection_path(output_dir: Path, model: str, form: str, percent: str, ending: str) -> Path:
    """A selection in some form; Axolotl's is `unfrozenparameters`, `yaml`."""
    return output_dir / f"snr_results_{slug(model)}_{form}_{percent}percent.{ending}"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file's content, or leave it as it was: written beside it, flushed to disk, then renamed.

    Raises ResultsError where that fails.
    """
    temporary = beside(path)

    def write() -> None:
        check_place(path)
        with os.fdopen(create(temporary), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    try:
        in_directory(path.parent, write)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # after the rename there is none; where it could not be made, neither
            temporary.unlink()
    sweep(path)


def check_writable(paths: Iterable[Path]) -> None:
    """Find out before a long scan whether files can be written after it. Creates nothing that stays.

    Raises ResultsError where a file's directory, or the nearest one above it that exists, takes no file, and where
    what has the file's name cannot be replaced.
    """
    for path in paths:
        existing = path.parent
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        try:
            me = owner(existing)
        except OSError as error:
            raise ResultsError(f"cannot write to {path.parent}: {error.strerror or error}") from error
        try:
            check_place(path)
            if os.path.lexists(path):
                _check_replaceable(path.lstat(), existing.stat(), me)
        except OSError as error:
            raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error


def _check_replaceable(file: os.stat_result, directory: os.stat_result, me: int) -> None:
    # Such as /tmp: what is there can be replaced by its owner, the directory's, and root alone.
    if directory.st_mode & stat.S_ISVTX and me not in (0, file.st_uid, directory.st_uid):
        raise PermissionError(errno.EPERM, "it is another user's; take another --results-dir or --output-dir")
