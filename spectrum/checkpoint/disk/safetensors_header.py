"""The header of a safetensors file: a JSON object that says where each tensor lies. It is checked completely."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from spectrum.checkpoint.disk.weight_files import DOWNLOAD_AGAIN, PLACEHOLDER_BYTES, StoredTensor, refuse_placeholder
from spectrum.dtypes import ITEM_BYTES, SAFETENSORS_DTYPES
from spectrum.errors import CheckpointError
from spectrum.files import parse_json

# Enough for 200,000 tensors; the largest published checkpoints have 140,000, in under 200 files. A longer header is
# damaged or malicious: once it is parsed, JSON takes many times its size in memory.
MAX_HEADER_BYTES = 32 << 20

# No real key is longer. Keys are matched with patterns, which may take a time that grows with the square of the length.
_LONGEST_KEY = 1_000  # characters

_LENGTH_BYTES = 8  # the header's length, before the header
_MAX_DIMENSIONS = 64  # torch's own limit
_TORCH_NAMES = frozenset(SAFETENSORS_DTYPES.values())


def read_header(file: Path, stream: BinaryIO) -> bytes:
    """Read the JSON text of a header from the beginning of an open file.

    Raises CheckpointError if the file is truncated, empty, a Git LFS pointer or something else.
    """
    prefix = stream.read(_LENGTH_BYTES)
    refuse_placeholder(file, prefix + stream.read(PLACEHOLDER_BYTES))
    stream.seek(_LENGTH_BYTES)
    length = int.from_bytes(prefix, "little")
    longest = min(MAX_HEADER_BYTES, os.fstat(stream.fileno()).st_size - _LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES or length > longest:
        raise CheckpointError(f"{file} is truncated, or no safetensors file; {DOWNLOAD_AGAIN}")
    return stream.read(length)


def parse_header(file: Path, header: bytes, file_bytes: int) -> dict[str, StoredTensor]:
    """Return every tensor of a file by its key.

    Raises CheckpointError unless the tensors fill the file exactly, without gaps and overlaps.

    Args:
        file: the file that the header is of.
        header: as `read_header` returns it.
        file_bytes: the size of the file.
    """
    try:
        content = parse_json(header)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: its header is not valid JSON; {DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged: its header is no JSON object; {DOWNLOAD_AGAIN}")
    start = _LENGTH_BYTES + len(header)
    tensors = {}
    spans = []
    for key, entry in content.items():
        if key == "__metadata__":
            continue
        try:
            tensors[key], (begin, end) = _parse_entry(file, key, entry, start)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is damaged: its entry {key[:_LONGEST_KEY]!r} makes no sense; {DOWNLOAD_AGAIN}"
            ) from error
        spans.append((begin, end, key))
    expected = 0
    for begin, end, key in sorted(spans):
        if begin != expected:
            raise CheckpointError(f"{file} is damaged: the data of {key!r} is not where it belongs; {DOWNLOAD_AGAIN}")
        expected = end
    if start + expected != file_bytes:
        raise CheckpointError(
            f"{file} is damaged: {file_bytes} bytes long, {start + expected} by its header; {DOWNLOAD_AGAIN}"
        )
    return tensors


def _parse_entry(file: Path, key: str, entry: Mapping[str, Any], start: int) -> tuple[StoredTensor, tuple[int, int]]:
    """Return a tensor, and the begin and the end of its bytes after the header, which ends at `start`."""
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"], str(entry["dtype"]))  # unknown dtypes are listed, but not read
    if entry["dtype"] in _TORCH_NAMES:
        raise ValueError("this is torch's name for a dtype, not the format's")
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)) or end < begin:
        raise ValueError("sizes are whole numbers")
    if len(shape) > _MAX_DIMENSIONS or math.prod(shape) >= 2**63:
        raise ValueError("more dimensions or elements than a tensor can have")
    if len(key) > _LONGEST_KEY:
        raise ValueError("the key is longer than any real one")
    if dtype in _TORCH_NAMES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError("shape and bytes disagree")
    return StoredTensor(key, file, dtype, shape, start + begin), (begin, end)
