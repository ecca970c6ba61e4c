"""A digest that changes when a checkpoint's weights do."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from spectrum.checkpoint.disk import torch_archive, torch_values
from spectrum.checkpoint.disk.safetensors_header import read_header, read_safetensors
from spectrum.checkpoint.disk.weight_files import (
    _LFS_POINTER,
    DOWNLOAD_AGAIN,
    refuse_placeholder,
    unreadable,
    weight_files,
)
from spectrum.errors import CheckpointError
from spectrum.files import opened

# Enough to notice weights that were trained further in place, without reading them: some bytes from all over a file,
# and of each tensor, up to this many places in a checkpoint.
_SPREAD = 64
_SAMPLES = 4096
_SAMPLE_BYTES = 64


def fingerprint(directory: Path) -> str:
    """Digest of a checkpoint's weight files: names, sizes, headers, and some bytes of the tensors.

    A header holds every tensor's name, dtype and shape, a torch archive's a checksum too. Weights trained further in
    place change neither header nor size of a safetensors file; the sampled bytes give those away. Raises
    CheckpointError where a file is missing or damaged.
    """
    digest = hashlib.sha256()
    files = weight_files(directory)
    for file in files:
        try:
            with opened(file) as stream:
                size = os.fstat(stream.fileno()).st_size
                digest.update(f"{file.name}\0{size}\0".encode())
                digest.update(_structure(file, stream))
                for middle in _evenly(_middles(file, size), _SAMPLES // len(files) + 1):
                    stream.seek(middle)
                    digest.update(stream.read(_SAMPLE_BYTES))
        except OSError as error:
            raise unreadable(file, error) from error
    return digest.hexdigest()


def _middles(file: Path, size: int) -> Sequence[int]:
    """Offsets within a file: from all over it, and the middle of each tensor where these are known."""
    spread = range(0, size, size // _SPREAD + 1)
    if file.suffix != ".safetensors":
        return spread
    ends = sorted([*(tensor.offset for tensor in read_safetensors(file).values()), size])
    return [*spread, *((start + end) // 2 for start, end in itertools.pairwise(ends))]


def _evenly(values: Sequence[int], count: int) -> Iterator[int]:
    """At most `count` of some values, from all over them."""
    yield from values[:: -(-len(values) // count) or 1]


def _structure(file: Path, stream: BinaryIO) -> bytes:
    """What a file says of its own tensors: the safetensors header, or the directory of a torch archive."""
    if file.suffix == ".safetensors":
        return read_header(file, stream)
    refuse_placeholder(file, stream.read(len(_LFS_POINTER)))
    try:
        return torch_archive.structure(stream)
    except torch_values.ArchiveError as error:
        raise CheckpointError(f"{file} is truncated, or no torch checkpoint: {error}; {DOWNLOAD_AGAIN}") from error
