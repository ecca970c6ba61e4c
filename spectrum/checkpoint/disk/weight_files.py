"""START HERE. Which files hold a model's weights, and is none missing?

`tensors` then reads the descriptions of the tensors: the headers of safetensors files (`safetensors_header`), or the
pickles in torch archives (`torch_archive`). `fingerprint` notices weights that have changed. `other_formats` says what
a directory without weights holds instead.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from spectrum.checkpoint.disk.other_formats import WEIGHT_NAMES, names_below, no_weights_reason, unfinished_download
from spectrum.errors import CheckpointError
from spectrum.files import open_untrusted, parse_json, read_untrusted

if TYPE_CHECKING:
    import torch

_R = TypeVar("_R")

MAX_CONFIG_BYTES = 16 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_FILES = 2_000

_LFS_POINTER = b"version https://git-lfs"
PLACEHOLDER_BYTES = len(_LFS_POINTER)  # how many bytes of a file `refuse_placeholder` needs
DOWNLOAD_AGAIN = "download the model again"
_MEND_ON_HUB = "so it is on the Hub: take another --revision, or tell the owner of the repository"


class RemoteFile(Protocol):
    """A weight file that is not in a directory, but can be read part by part. `str` gives its name for messages."""

    @property
    def name(self) -> str:
        """The name that an index has for it."""
        ...

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def read_header(self, offset: int, size: int) -> bytes:
        """A short part, or what the file has of it. Raises CheckpointError if it cannot be read."""
        ...

    def read(self, offset: int, size: int) -> torch.Tensor:
        """A part, as uint8. Raises CheckpointError if it cannot be read."""
        ...

    def at_once(self, call: Callable[[WeightFile], _R], files: Sequence[WeightFile]) -> Sequence[_R]:
        """The results of a call for each file, made for many files at once. Raises what the first that fails raises."""
        ...


WeightFile = Path | RemoteFile


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a checkpoint keeps a tensor.

    Args:
        key: the tensor's name in the file.
        file: the file that holds it.
        dtype: by torch's name, or by the file's if torch has none.
        shape: as stored.
        offset: of its first byte in the file.
        stride: in elements; None if the elements follow one another without gaps, as in safetensors files.
    """

    key: str
    file: WeightFile
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LocatedWeights:
    """The files that hold a checkpoint's weights.

    Args:
        files: in order of their names.
        weight_map: the name of the file for each key, from the index; empty for a single file.
    """

    files: tuple[WeightFile, ...]
    weight_map: Mapping[str, str]


def deciding_files(directory: Path) -> Iterator[Path]:
    """The files of a directory that may say which weights it holds: single weight files, and indexes of shards.

    They come in transformers' order of preference: it loads the first. Like it, this passes over directories and
    anything else that is not a file.
    """
    return (path for path in (directory / name for name in WEIGHT_NAMES) if os.path.isfile(path))


def locate_weights(directory: Path) -> LocatedWeights:
    """The weight files that transformers would load: safetensors files if there are any, else torch archives.

    Raises CheckpointError if there are none, or if an index names one that is missing.
    """
    path = next(deciding_files(directory), None)
    if path is None:
        _refuse_other_than_files(directory)
        raise CheckpointError(no_weights_reason(directory, names_below(directory)))
    return located_by(path)


def located_by(path: Path) -> LocatedWeights:
    """The weight files that one of the `deciding_files` stands for. Raises CheckpointError as `locate_weights` does."""
    if path.suffix != ".json":
        return LocatedWeights((path,), {})
    weight_map = _read_weight_map(path)
    files = tuple(path.with_name(name) for name in sorted(set(weight_map.values())))
    return LocatedWeights(files, weight_map)


def has_weights(directory: Path) -> bool:
    """Whether a directory has a weight file or the index of some, damaged or not."""
    return any(os.path.exists(directory / name) for name in WEIGHT_NAMES)


def _refuse_other_than_files(directory: Path) -> None:
    """Raises CheckpointError if something else than a file has the name of a weight file or an index."""
    path = next((directory / name for name in WEIGHT_NAMES if os.path.lexists(directory / name)), None)
    if path is None:
        return
    if path.is_dir():
        inside = any(name.endswith((".safetensors", ".bin")) for name in names_below(path))
        remedy = f"rename it, and move the files in it into {directory}" if inside else DOWNLOAD_AGAIN
        raise CheckpointError(f"{path} is a directory, not a file; {remedy}")
    if not path.exists():
        raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which does not exist; {DOWNLOAD_AGAIN}")
    open_weights(path).close()  # refuses all but regular files


def _read_weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = read_untrusted(index, MAX_INDEX_BYTES)
    except OSError as error:
        raise read_failure(index, error) from error
    weight_map = parse_weight_map(index, content)
    _check_shards(index, sorted(set(weight_map.values())))
    return weight_map


def parse_weight_map(index: object, text: bytes) -> Mapping[str, str]:
    """The name of the file for each key, from the text of an index.

    Raises CheckpointError if it is not an index, or if it names what cannot be a file beside it.

    Args:
        index: for messages.
        text: the content of the index.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        raise CheckpointError(f"{index} is not valid JSON ({error}); {remedy_for(index)}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of keys to shard names; {remedy_for(index)}")
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_FILES:
        raise CheckpointError(f"{index} names {len(names)} files, more than any model has; {remedy_for(index)}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which is not a file of the model's directory")
    return weight_map


def _check_shards(index: Path, names: Collection[str]) -> None:
    """Raises CheckpointError unless these are the names of as many different files in the index's directory."""
    for name in names:
        if not os.path.exists(index.parent / name):  # False also if the name is too long
            partial = unfinished_download(names_below(index.parent))
            remedy = f"finish the download of {partial}" if partial else DOWNLOAD_AGAIN
            raise CheckpointError(f"{index.parent} lacks the shard {name} that its index names; {remedy}")
    by_inode: dict[tuple[int, int], str] = {}
    for name in names:
        status = os.stat(index.parent / name)
        first = by_inode.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            raise CheckpointError(f"{index} names {first} and {name}, which are one and the same file")


def remedy_for(file: object) -> str:
    """What to do about a damaged file, which is the path of one on disk or else names one on the Hub."""
    return DOWNLOAD_AGAIN if isinstance(file, Path) else _MEND_ON_HUB


def refuse_placeholder(file: WeightFile, head: bytes) -> None:
    """Raises CheckpointError if a file is empty, or is a Git LFS pointer.

    Args:
        file: for the message.
        head: its first `PLACEHOLDER_BYTES` bytes, or more.
    """
    if not head:
        raise CheckpointError(f"{file} is empty; {remedy_for(file)}")
    if head.startswith(_LFS_POINTER):
        pull = "run `git lfs pull` in its directory" if isinstance(file, Path) else remedy_for(file)
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself; {pull}")


def open_weights(file: Path) -> BinaryIO:
    """Open a weight file for reading. Raises CheckpointError if that is not possible."""
    try:
        return open_untrusted(file)
    except OSError as error:
        raise read_failure(file, error) from error


def read_failure(file: Path, error: OSError) -> CheckpointError:
    """The error for a file that cannot be read."""
    remedy = "; allow this user to read it" if error.errno == errno.EACCES else ""
    return CheckpointError(f"cannot read {file}: {error.strerror or error}{remedy}")
