"""The header of a safetensors file, read and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spectrum.checkpoint.disk.weight_files import (
    _LFS_POINTER,
    DOWNLOAD_AGAIN,
    StoredTensor,
    open_weights,
    refuse_placeholder,
)
from spectrum.errors import CheckpointError
from spectrum.files import parse_json

# Room for 200,000 tensors a file and 500,000 a checkpoint. What is more is damage, or an attack: parsed JSON takes many
# times its size. The largest published checkpoints have 140,000 tensors in under 200 files.
MAX_HEADER_BYTES = 32 << 20

# No key is longer: each is matched with patterns, whose time may grow with the square of its length.
_LONGEST_KEY = 1_000  # characters

# Bytes per element, by torch's names for safetensors' dtypes. Others are listed, but cannot be read.
_DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
    "C64": ("complex64", 8),
}
TORCH_NAMES = frozenset(name for name, _ in _DTYPES.values())
_MOST_DIMENSIONS = 64  # torch's own limit


def read_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by its key. Raises CheckpointError for damage."""
    with open_weights(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = read_header(file, stream)
    start = 8 + len(header)
    try:
        content = parse_json(header)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: its header is not valid JSON; {DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged: its header is no JSON object; {DOWNLOAD_AGAIN}")
    tensors = {}
    spans = []
    for key, entry in content.items():
        if key == "__metadata__":
            continue
        try:
            tensor, (begin, end) = _entry(file, key, entry, start)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is damaged: its entry {key[:_LONGEST_KEY]!r} makes no sense; {DOWNLOAD_AGAIN}"
            ) from error
        tensors[key] = tensor
        spans.append((begin, end, key))
    expected = 0
    for begin, end, key in sorted(spans):
        if begin != expected:
            raise CheckpointError(f"{file} is damaged: the data of {key!r} is not where it belongs; {DOWNLOAD_AGAIN}")
        expected = end
    if start + expected != size:
        promised = start + expected
        raise CheckpointError(f"{file} is damaged: {size} bytes long, {promised} by its header; {DOWNLOAD_AGAIN}")
    return tensors


def _entry(file: Path, key: str, entry: Mapping[str, Any], start: int) -> tuple[StoredTensor, tuple[int, int]]:
    dtype, itemsize = _DTYPES.get(entry["dtype"], (str(entry["dtype"]), None))
    if entry["dtype"] in TORCH_NAMES:
        raise ValueError("a name of torch's, not of the format's")
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)) or end < begin:
        raise ValueError("sizes are whole numbers")
    if len(shape) > _MOST_DIMENSIONS or math.prod(shape) >= 2**63:
        raise ValueError("more dimensions or elements than a tensor can have")
    if len(key) > _LONGEST_KEY:
        raise ValueError("a key that is longer than any")
    if itemsize is not None and end - begin != math.prod(shape) * itemsize:
        raise ValueError("shape and bytes disagree")
    return StoredTensor(key, file, dtype, shape, start + begin), (begin, end)


def read_header(file: Path, stream: BinaryIO) -> bytes:
    """The JSON header of a safetensors file, as bytes."""
    prefix = stream.read(8)
    refuse_placeholder(file, prefix + stream.read(len(_LFS_POINTER)))
    stream.seek(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, os.fstat(stream.fileno()).st_size - 8):
        raise CheckpointError(f"{file} is truncated, or no safetensors file; {DOWNLOAD_AGAIN}")
    return stream.read(length)
