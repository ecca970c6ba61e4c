"""Every stored tensor of a checkpoint, and reading one of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from spectrum.checkpoint.disk import safetensors_header, torch_archive
from spectrum.checkpoint.disk.torch_values import ArchiveError
from spectrum.checkpoint.disk.weight_files import (
    PLACEHOLDER_BYTES,
    LocatedWeights,
    StoredTensor,
    WeightFile,
    deciding_files,
    locate_weights,
    located_by,
    open_weights,
    read_failure,
    refuse_placeholder,
    remedy_for,
)
from spectrum.dtypes import SAFETENSORS_DTYPES
from spectrum.errors import CheckpointError
from spectrum.files import open_untrusted
from spectrum.text import listed

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, StoredTensor]  # by their keys

_MAX_CHECKPOINT_TENSORS = 500_000  # in all files together
_READABLE_DTYPES = frozenset(SAFETENSORS_DTYPES.values())


class WeightHeaders:
    """The headers of a model's weight files: which tensors each file holds, and where.

    Each header is read once, and kept. If the fingerprint is wanted too, call `fingerprint` first: it keeps the headers
    of safetensors files here, and `tensors` then uses them.

    Args:
        directory: the model's.
        located: the weight files if they are not in the directory; None to look for them there.
    """

    def __init__(self, directory: Path, located: LocatedWeights | None = None) -> None:
        self.directory = directory
        self._by_file: dict[WeightFile, Tensors] = {}
        self._is_remote = located is not None
        if located is not None:
            self._located = located

    @property
    def files(self) -> Sequence[WeightFile]:
        """The weight files. Raises CheckpointError if there are none, or if an index names one that is missing."""
        return self._located.files

    @cached_property
    def _located(self) -> LocatedWeights:
        return locate_weights(self.directory)

    def keep(self, file: WeightFile, tensors: Tensors) -> None:
        """Keep the tensors of one file. Raises CheckpointError if the files have more than any model."""
        self._by_file[file] = tensors
        if sum(map(len, self._by_file.values())) > _MAX_CHECKPOINT_TENSORS:
            raise CheckpointError(f"{self.directory} holds more tensors than any model has; {remedy_for(file)}")

    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor by its key. All headers are read and checked, but no weight is read.

        Raises CheckpointError, naming the file, for damage of any kind.
        """
        unread = [file for file in self.files if file not in self._by_file]
        for file, tensors in zip(unread, _read_all(unread), strict=False):
            self.keep(file, tensors)
        return _merged(self.directory, self._located, self._by_file)

    @contextmanager
    def naming_other_weights(self, would_do: Callable[[Tensors], bool] = lambda _: True) -> Iterator[None]:
        """If the block raises a CheckpointError, and sound weights lie beside the ones in use, say so in its message.

        transformers prefers safetensors files to torch archives, and a single file to shards, even if the single file
        is damaged or an empty leftover of a training. Only weights in a directory have others beside them.

        Args:
            would_do: whether the block would succeed with these tensors, as far as that is known.
        """
        try:
            yield
        except CheckpointError as error:
            remedy = None if self._is_remote else self._other_weights(would_do)
            if remedy is None:
                raise
            raise CheckpointError(f"{error}; {remedy}") from error

    def _other_weights(self, would_do: Callable[[Tensors], bool]) -> str | None:
        """A phrase that says which other weights of the directory are sound, None if none are."""
        try:
            specs = _specs(self.tensors())
        except CheckpointError:
            specs = frozenset()
        paths = list(deciding_files(self.directory))
        for place, other in enumerate(paths[1:], 1):
            with suppress(CheckpointError):
                located = located_by(other)
                tensors = _merged(
                    self.directory, located, dict(zip(located.files, _read_all(located.files), strict=False))
                )
                found = _specs(tensors)
                if found - specs and all(0 not in shape for _, shape in found) and would_do(tensors):
                    these, them = (f"the shards of {other.name}", "them") if located.weight_map else (other.name, "it")
                    preferred = listed([path.name for path in paths[:place]])
                    return f"{these} can be read: to scan {them}, move {preferred} out of {self.directory}"
        return None


def _specs(tensors: Tensors) -> frozenset[tuple[str, tuple[int, ...]]]:
    return frozenset((key, tensor.shape) for key, tensor in tensors.items())


def _merged(directory: Path, located: LocatedWeights, by_file: Mapping[WeightFile, Tensors]) -> dict[str, StoredTensor]:
    """The tensors of all files by their keys. Raises CheckpointError if the index puts one in the wrong shard.

    If several files hold a key, transformers takes the last, also where the index names another.
    """
    tensors: dict[str, StoredTensor] = {}
    by_name: dict[str, Tensors] = {}
    for file in located.files:
        by_name[file.name] = by_file[file]
        tensors.update(by_file[file])
    for key, name in located.weight_map.items():
        if key not in by_name[name]:
            found = tensors.get(key)
            where = f"it is in {found.file.name}" if found else "it is in no shard"
            raise CheckpointError(
                f"the index of {directory} puts {key!r} in {name}, but {where}; {remedy_for(located.files[0])}"
            )
    return tensors


def _read_all(files: Sequence[WeightFile]) -> Iterable[Tensors]:
    """The tensors of each file, see `_read_tensors`. Headers of remote files are read many at once."""
    remote = next((file for file in files if not isinstance(file, Path)), None)
    return map(_read_tensors, files) if remote is None else remote.at_once(_read_tensors, files)


def _read_tensors(file: WeightFile) -> dict[str, StoredTensor]:
    """Every tensor of a file by its key. Raises CheckpointError for damage of any kind."""
    if not isinstance(file, Path):
        header = safetensors_header.read_header(file, file.size, file.read_header)
        return safetensors_header.parse_header(file, header, file.size)
    with open_weights(file) as stream, read_errors(file):
        if file.suffix == ".safetensors":
            size = os.fstat(stream.fileno()).st_size
            header = safetensors_header.read_header(file, size, partial(read_part, stream))
            return safetensors_header.parse_header(file, header, size)
        refuse_placeholder(file, stream.read(PLACEHOLDER_BYTES))
        archived = torch_archive.read_tensors(stream)
    return {
        key: StoredTensor(key, file, tensor.dtype, tensor.shape, tensor.offset, tensor.stride)
        for key, tensor in archived.items()
    }


def read_part(stream: BinaryIO, offset: int, size: int) -> bytes:
    """The part of an open file that begins at an offset and has a size, or what the file has of it."""
    stream.seek(offset)
    return stream.read(size)


@contextmanager
def read_errors(file: Path) -> Iterator[None]:
    """Raises CheckpointError, naming the file, for an OSError or an ArchiveError in the block."""
    try:
        yield
    except ArchiveError as error:
        raise CheckpointError(f"{file} cannot be read as a torch checkpoint of tensors alone: {error}") from error
    except OSError as error:
        raise read_failure(file, error) from error


def read_tensor(tensor: StoredTensor, index: int | slice | None = None) -> torch.Tensor:
    """Read a stored tensor in its stored dtype, or only row `index` of its first dimension, which is then dropped.

    A slice, which has a start and an end, selects several rows, and the dimension is kept.

    Reads only the bytes from the first element to the last, into new memory. The file is not mapped, because a process
    dies if a mapped file is truncated meanwhile. Raises CheckpointError if the file can no longer be read, or has
    become shorter.
    """
    dtype = torch_dtype(tensor)
    shape, stride = _part(tensor, index)
    offset, size = part_bytes(tensor, index)
    if isinstance(tensor.file, Path):
        content = read_file(tensor.file, offset, size, tensor.key)
    else:
        content = tensor.file.read(offset, size)
    return content.view(dtype).as_strided(shape, stride)


def part_bytes(tensor: StoredTensor, index: int | slice | None) -> tuple[int, int]:
    """Where the bytes are that `read_tensor` reads: their offset in the file, and their number."""
    shape, stride = _part(tensor, index)
    item = torch_dtype(tensor).itemsize
    elements = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    first = 0 if index is None else index.start if isinstance(index, slice) else index
    return tensor.offset + (first and first * _stride(tensor)[0] * item), elements * item


def _part(tensor: StoredTensor, index: int | slice | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape, and the stride in elements, of what `read_tensor` reads."""
    shape, stride = tensor.shape, _stride(tensor)
    if isinstance(index, slice):
        return (index.stop - index.start, *shape[1:]), stride
    return (shape, stride) if index is None else (shape[1:], stride[1:])


def _stride(tensor: StoredTensor) -> tuple[int, ...]:
    """The stride of a stored tensor, in elements."""
    if tensor.stride is not None:
        return tensor.stride
    return tuple(math.prod(tensor.shape[place + 1 :]) for place in range(len(tensor.shape)))


def read_file(file: Path, offset: int, size: int, content: str) -> torch.Tensor:
    """Read a part of a file on disk, as uint8. Raises CheckpointError if that is not possible.

    Args:
        file: to read.
        offset: of the part, in bytes.
        size: of the part, in bytes.
        content: the name of the tensor that is read, for messages.
    """
    import torch

    buffer = torch.empty(size, dtype=torch.uint8)
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]
    try:
        with open_untrusted(file) as stream:
            stream.seek(offset)
            done = 0
            while done < size:  # the system returns 2 GiB at most in one call
                count = stream.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointError(f"{file} ends within {content!r}: it was cut while being read")
                done += count
    except OSError as error:
        raise read_failure(file, error) from error
    return buffer


def torch_dtype(tensor: StoredTensor) -> torch.dtype:
    """The dtype of a stored tensor. Raises CheckpointError if this version of torch lacks it."""
    import torch

    # The name comes from a file, so nothing but the name of a dtype is looked up.
    dtype = getattr(torch, tensor.dtype, None) if tensor.dtype in _READABLE_DTYPES else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{tensor.file} holds {tensor.key!r} as {tensor.dtype}, which torch does not read")
    return dtype
