"""Files on disk: open untrusted files, replace files as a whole, and name the output files.

Another user may have put anything in the place of a file that this package reads. Another program may remove a
directory, or a file in it, at any time.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from spectrum.errors import ResultsError
from spectrum.text import amount

_T = TypeVar("_T")
_TRIES = 3  # if a directory disappears more often than this, it is not by chance
_ABANDONED_AFTER = 3600.0  # seconds; writing a file takes less

# A parsed value takes about 60 bytes. The header of 200,000 tensors has 2 million values.
_MAX_VALUES = 5_000_000

# A file name has 255 bytes at most. This leaves room for the other parts of the longest name.
_MAX_SLUG_BYTES = 180

# Without O_NONBLOCK, opening a FIFO waits for a writer. Windows lacks some of these flags, and needs O_BINARY.
OPEN_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


# Reading.


def open_untrusted(path: Path) -> BinaryIO:
    """Open for reading a file that others may have written: of a model, of a results directory, or a list.

    Refuses symlinks out of the file's directory, except within the Hub's cache from a snapshot to the blobs of the same
    repository, and from either to those that repositories share. Refuses everything but regular files. Otherwise
    another file could be read in its place, or the read could wait forever.

    Raises OSError if the file is refused or cannot be opened.
    """
    real = Path(os.path.realpath(path))
    directory = Path(os.path.realpath(path.parent))
    if not (real.is_relative_to(directory) or _is_blob(real, directory)):
        raise OSError(errno.ELOOP, f"it is a link out of its directory, to {real}; put the file itself there")
    _check_regular(os.stat(real))  # before it is opened, because opening a device may have an effect
    descriptor = os.open(real, os.O_RDONLY | OPEN_FLAGS)
    try:
        _check_regular(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_untrusted(path: Path, limit: int) -> bytes:
    """The content of a file that others may have written.

    Raises OSError as `open_untrusted` does, and if the file is longer than `limit` bytes.
    """
    with open_untrusted(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(min(size, limit) + 1)  # not `limit` alone: Python allocates as much as is asked for
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is over {limit / (1 << 20):.3g} MiB long, more than any such file has")
    return content


def parse_json(text: bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is not JSON, or would take many times its size in memory."""
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ValueError("it holds more values than any such file does")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _is_blob(file: Path, directory: Path) -> bool:
    """Whether a file is where symlinks of a directory lead that is a snapshot in the Hub's cache, or has its blobs.

    Those of a snapshot lead to a blob of the repository. In newer versions of huggingface_hub, that may be a link to a
    shared blob.
    """
    repository = directory.parent if directory.name == "blobs" else directory.parent.parent
    is_in_cache = directory.name == "blobs" or directory.parent.name == "snapshots"
    if not is_in_cache or not repository.name.startswith("models--"):
        return False
    is_shared = file.parent.parent == repository.parent / "blobs" and re.fullmatch(r"[0-9a-f]{64}", file.name)
    return file.parent == repository / "blobs" or bool(is_shared)


def _check_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")


# Names of output files.


def slug(model: str) -> str:
    """The model's name as it appears in file names: as given, with `/` and `_` replaced by `-`."""
    return model.replace("/", "-").replace("_", "-")


def check_name(model: str) -> None:
    """Raises ResultsError if the model's name cannot be part of a file name."""
    if "\0" in model:
        raise ResultsError(f"{model!r} cannot be part of a file's name")
    if len(os.fsencode(slug(model))) > _MAX_SLUG_BYTES:
        raise ResultsError(f"the name {model[:40]}... is too long to name files by; give a shorter, relative path")


def sorted_path(output_dir: Path, model: str) -> Path:
    """The path of the file with the scores by layer type, each type sorted."""
    return output_dir / f"snr_results_{slug(model)}_sorted.json"


def selection_path(output_dir: Path, model: str, content: str, percent: str, ending: str, *, control: str = "") -> Path:
    """The path of a selection's file.

    Args:
        content: what the file has; `unfrozenparameters` for Axolotl.
        percent: the percentage as the user typed it.
        ending: the extension without a dot; `yaml` for Axolotl.
        control: what the name says of a control, `lowest` or `random-7`; empty for the layers of highest SNR.
    """
    suffix = f"_{control}" if control else ""
    return output_dir / f"snr_results_{slug(model)}_{content}_{percent}percent{suffix}.{ending}"


# Writing.


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace the content of a file, or leave the file as it was.

    The content is written to a temporary file beside it, which is flushed to disk and then renamed.

    Raises ResultsError if that fails.
    """
    if not path.name:  # "." and "/", beside which there is no name
        raise ResultsError(f"cannot write {path}: it is a directory")
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
        with suppress(OSError):  # it does not exist after the rename, or if it could not be created
            temporary.unlink()
    remove_abandoned(path)


def check_writable(paths: Iterable[Path]) -> None:
    """Check before a long scan that these files can be written after it. Leaves nothing behind.

    Raises ResultsError if a directory, or its nearest ancestor that exists, does not accept files, or if something with
    a file's name cannot be replaced.
    """
    for path in paths:
        existing = _existing(path.parent)
        try:
            user = user_of(existing)
        except OSError as error:
            raise ResultsError(f"cannot write to {path.parent}: {error.strerror or error}") from error
        try:
            check_place(path)
            check_place(existing / beside(path).name)  # the longer name, under which it is written
            if os.path.lexists(path):
                _check_replaceable(path.lstat(), existing.stat(), user)
        except OSError as error:
            raise ResultsError(f"cannot write {path}: {error.strerror or error}") from error


def check_space(needed: Mapping[Path, int]) -> None:
    """Check before a long scan that the disks have room for what it will write.

    A disk that does not tell its free space is taken to have room. Raises ResultsError if one has too little.

    Args:
        needed: for each directory, which need not exist, how many bytes will be written there at most.
    """
    by_disk: dict[int, dict[Path, int]] = {}
    for directory, size in needed.items():
        with suppress(OSError):
            by_disk.setdefault(os.stat(_existing(directory)).st_dev, {})[directory] = size
    for sizes in by_disk.values():
        directory, total = next(iter(sizes)), sum(sizes.values())
        free = free_space(directory)
        if free is not None and free < total:
            raise ResultsError(
                f"the disk of {directory} has {amount(free)} free, and this scan may write {amount(total)} there; "
                "free some, or take other directories (--results-dir, --output-dir)"
            )


def free_space(directory: Path) -> int | None:
    """How many bytes this user may write on a directory's disk; None if that cannot be told.

    The directory need not exist.
    """
    try:
        usage = shutil.disk_usage(_existing(directory))
    except OSError:
        return None
    return usage.free if usage.total else None  # some network disks and drivers tell nothing but zeros


def _existing(directory: Path) -> Path:
    """A directory or, if it does not exist, its nearest ancestor that does."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory


def _check_replaceable(file: os.stat_result, directory: os.stat_result, user: int) -> None:
    # In a directory with the sticky bit, like /tmp, only the file's owner, the directory's owner and root may replace
    # a file.
    if directory.st_mode & stat.S_ISVTX and user not in (0, file.st_uid, directory.st_uid):
        raise PermissionError(errno.EPERM, "it is another user's; take another --results-dir or --output-dir")


def in_directory(directory: Path, act: Callable[[], _T]) -> _T:
    """Create a directory if it is missing, then act in it. If it disappears in between, do both again.

    Raises OSError as `mkdir` and `act` do.
    """
    for _ in range(_TRIES - 1):
        # mkdir raises FileExistsError too, if the directory disappears before mkdir checks that it is a directory.
        with suppress(FileNotFoundError, FileExistsError):
            directory.mkdir(parents=True, exist_ok=True)
            return act()
    directory.mkdir(parents=True, exist_ok=True)
    return act()


def beside(path: Path) -> Path:
    """A name in the same directory for a temporary file that will replace this one."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def create(path: Path) -> int:
    """The descriptor of a new file, for reading and writing. Raises FileExistsError if the name is taken."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def remove_abandoned(path: Path) -> None:
    """Remove temporary files that killed runs left `beside` this file. Files of other programs stay."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.\d+\.[0-9a-f]{{8}}")
    with suppress(OSError):
        for name in filter(ours.fullmatch, os.listdir(path.parent)):
            left = path.with_name(name)
            if time.time() - left.lstat().st_mtime > _ABANDONED_AFTER:
                left.unlink()


def check_place(path: Path) -> None:
    """Raises OSError if a directory, a device, a FIFO or a socket has this name. A file or a symlink may have it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EEXIST, "it exists and is not a file")


def user_of(directory: Path) -> int:
    """The id of the user who owns the files that this process creates in a directory.

    On a network disk, that may be another user than the one who runs the process: `nobody` in place of root.

    Raises OSError if the directory does not accept files.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        return os.fstat(file.fileno()).st_uid
