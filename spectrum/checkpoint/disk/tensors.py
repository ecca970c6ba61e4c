"""Every stored tensor of a checkpoint, and reading one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.checkpoint.disk import torch_archive, torch_values
from spectrum.checkpoint.disk.safetensors_header import TORCH_NAMES, read_safetensors
from spectrum.checkpoint.disk.weight_files import (
    _LFS_POINTER,
    DOWNLOAD_AGAIN,
    StoredTensor,
    located,
    open_weights,
    refuse_placeholder,
    unreadable,
)
from spectrum.errors import CheckpointError
from spectrum.files import opened

if TYPE_CHECKING:
    import torch

_MOST_TENSORS = 500_000


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its key. All headers are read and checked, no weight is.

    Raises CheckpointError, naming the file, for damage of any kind.
    """
    files, weight_map = located(directory)
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        by_file[file] = _tensors_of(file)
        tensors.update(by_file[file])
        if sum(map(len, by_file.values())) > _MOST_TENSORS:
            raise CheckpointError(f"{directory} holds more tensors than any model has; {DOWNLOAD_AGAIN}")
    for key, name in weight_map.items():
        held = by_file[directory / name]
        if key not in held:
            found = tensors.get(key)
            where = f"it is in {found.file.name}" if found else "it is in no shard"
            raise CheckpointError(f"the index of {directory} puts {key!r} in {name}, but {where}; {DOWNLOAD_AGAIN}")
        tensors[key] = held[key]
    return tensors


def read_tensor(tensor: StoredTensor, index: int | None = None) -> torch.Tensor:
    """A stored tensor in its stored dtype, or only row `index` of its first dimension (which is dropped).

    Reads exactly those bytes, or what lies between the first and the last of them, into memory of its own. Nothing of
    the file is mapped: a file that is cut in the meantime would end the process. Raises CheckpointError where the file
    has become unreadable or shorter.
    """
    dtype = torch_dtype(tensor)
    shape, stride, offset = tensor.shape, tensor.stride or _contiguous(tensor.shape), tensor.offset
    if index is not None:
        offset += index * stride[0] * dtype.itemsize
        shape, stride = shape[1:], stride[1:]
    elements = 0 if 0 in shape else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return _bytes(tensor, offset, elements * dtype.itemsize).view(dtype).as_strided(shape, stride)


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The stride of a tensor without gaps, in elements."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def _bytes(tensor: StoredTensor, offset: int, size: int) -> torch.Tensor:
    """Some bytes of a tensor's file, as uint8."""
    import torch

    buffer = torch.empty(size, dtype=torch.uint8)
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]
    try:
        with opened(tensor.file) as stream:
            stream.seek(offset)
            done = 0
            while done < size:  # the system hands out 2 GiB at most in one call
                got = stream.readinto(view[done:])  # type: ignore[attr-defined]
                if not got:
                    raise CheckpointError(f"{tensor.file} ends within {tensor.key!r}: it was cut while being read")
                done += got
    except OSError as error:
        raise unreadable(tensor.file, error) from error
    return buffer


def torch_dtype(tensor: StoredTensor) -> torch.dtype:
    """The dtype of a stored tensor. Raises CheckpointError where torch has none of its name."""
    import torch

    # Names come from a file: only those of dtypes are looked up.
    dtype = getattr(torch, tensor.dtype, None) if tensor.dtype in TORCH_NAMES else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{tensor.file} holds {tensor.key!r} as {tensor.dtype}, which torch does not read")
    return dtype


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    if file.suffix == ".safetensors":
        return read_safetensors(file)
    with open_weights(file) as stream:
        refuse_placeholder(file, stream.read(len(_LFS_POINTER)))
        try:
            found = torch_archive.tensors(stream)
        except torch_values.ArchiveError as error:
            raise CheckpointError(f"{file} cannot be read as a torch checkpoint of tensors alone: {error}") from error
        except OSError as error:
            raise unreadable(file, error) from error
    return {key: StoredTensor(key, file, it.dtype, it.shape, it.offset, it.stride) for key, it in found.items()}
