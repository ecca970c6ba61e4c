"""The fingerprint of a checkpoint: a digest that changes when the weights do."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from spectrum.checkpoint.disk import safetensors_header, torch_archive
from spectrum.checkpoint.disk.tensors import WeightHeaders, read_errors, read_part
from spectrum.checkpoint.disk.weight_files import PLACEHOLDER_BYTES, refuse_placeholder
from spectrum.files import open_untrusted

# Bytes are sampled to notice weights that were trained further in place, without reading all of them. The samples are
# taken at even distances in each file, and in the middle of each tensor.
_SPREAD = 64  # at even distances
_SAMPLES = 4096  # of a checkpoint, at most
_SAMPLE_BYTES = 64


def fingerprint(weights: Path | WeightHeaders) -> str:
    """A digest of a checkpoint's weight files: their names, sizes, headers, and some bytes of the tensors.

    A header says the name, dtype and shape of every tensor; that of a torch archive has checksums too. If a safetensors
    file is trained further in place, its header and size stay the same, so bytes are sampled as well.
    Raises CheckpointError if a file is missing or damaged.

    Args:
        weights: the model's directory; or its headers, which then keep those that are read here.
    """
    headers = WeightHeaders(weights) if isinstance(weights, Path) else weights
    digest = hashlib.sha256()
    files = [file for file in headers.files if isinstance(file, Path)]  # those of a directory are nothing else
    samples = _SAMPLES // len(files) + 1
    for file in files:
        with read_errors(file), open_untrusted(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            offsets: Sequence[int] = range(0, size, size // _SPREAD + 1)
            if file.suffix == ".safetensors":
                header = safetensors_header.read_header(file, size, partial(read_part, stream))
                digest.update(header)
                tensors = safetensors_header.parse_header(file, header, size)
                headers.keep(file, tensors)
                ends = sorted([*(tensor.offset for tensor in tensors.values()), size])
                offsets = [*offsets, *((start + end) // 2 for start, end in itertools.pairwise(ends))]
            else:
                refuse_placeholder(file, stream.read(PLACEHOLDER_BYTES))
                digest.update(torch_archive.read_structure(stream))
            for offset in _evenly(offsets, samples):
                stream.seek(offset)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _evenly(values: Sequence[int], count: int) -> Iterator[int]:
    """At most `count` of the values, at even distances."""
    yield from values[:: -(-len(values) // count) or 1]
