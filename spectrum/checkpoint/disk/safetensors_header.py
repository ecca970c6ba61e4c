"""The header of a safetensors file: a JSON object that says where each tensor is. All of it is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from spectrum.checkpoint.disk.weight_files import (
    PLACEHOLDER_BYTES,
    StoredTensor,
    WeightFile,
    refuse_placeholder,
    remedy_for,
)
from spectrum.dtypes import ITEM_BYTES, MAX_DIMENSIONS, SAFETENSORS_DTYPES, SIZE_LIMIT
from spectrum.errors import CheckpointError
from spectrum.files import parse_json

# Enough for 200,000 tensors. The largest published checkpoints have 140,000, in under 200 files. A longer header is
# damaged or malicious, and parsed JSON takes many times its size in memory.
MAX_HEADER_BYTES = 32 << 20

# No real key is longer. Keys are matched with patterns, whose time may grow with the square of the length.
_MAX_KEY_LENGTH = 1_000  # characters

_LENGTH_BYTES = 8  # the header's length, before the header
_TORCH_NAMES = frozenset(SAFETENSORS_DTYPES.values())


def read_header(file: WeightFile, file_bytes: int, read: Callable[[int, int], bytes]) -> bytes:
    """Read the JSON text of a file's header.

    Raises CheckpointError if the file is truncated, empty, a Git LFS pointer or not a safetensors file.

    Args:
        file: for messages.
        file_bytes: its size.
        read: returns the part of the file that begins at an offset and has a size, or what the file has of it.
    """
    head = read(0, _LENGTH_BYTES + PLACEHOLDER_BYTES)
    refuse_placeholder(file, head)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    longest = min(MAX_HEADER_BYTES, file_bytes - _LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES or length > longest:
        raise CheckpointError(f"{file} is truncated, or not a safetensors file; {remedy_for(file)}")
    return read(_LENGTH_BYTES, length)


def parse_header(file: WeightFile, header: bytes, file_bytes: int) -> dict[str, StoredTensor]:
    """Every tensor of a file by its key.

    Raises CheckpointError unless the tensors fill the file exactly, without gaps and overlaps.

    Args:
        file: the file that the header is of.
        header: as `read_header` returns it.
        file_bytes: the size of the file.
    """
    try:
        content = parse_json(header)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: its header is not valid JSON; {remedy_for(file)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged: its header is not a JSON object; {remedy_for(file)}")
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
                f"{file} is damaged: its entry {key[:_MAX_KEY_LENGTH]!r} makes no sense; {remedy_for(file)}"
            ) from error
        spans.append((begin, end, key))
    expected = 0
    for begin, end, key in sorted(spans):
        if begin != expected:
            raise CheckpointError(f"{file} is damaged: the data of {key!r} is not where it belongs; {remedy_for(file)}")
        expected = end
    if start + expected != file_bytes:
        raise CheckpointError(
            f"{file} is damaged: {file_bytes} bytes long, {start + expected} by its header; {remedy_for(file)}"
        )
    return tensors


def _parse_entry(
    file: WeightFile, key: str, entry: Mapping[str, Any], start: int
) -> tuple[StoredTensor, tuple[int, int]]:
    """A tensor, and the offsets, from the end of the header, at which its bytes begin and end.

    Raises KeyError, TypeError or ValueError if the entry is not valid.

    Args:
        file: the file that the header is of.
        key: the tensor's name.
        entry: what the header says of it.
        start: where the header ends.
    """
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"], str(entry["dtype"]))  # unknown dtypes are listed, but not read
    if entry["dtype"] in _TORCH_NAMES:
        raise ValueError("this is torch's name for a dtype, not the format's")
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(n) is int and 0 <= n < SIZE_LIMIT for n in (*shape, begin, end)) or end < begin:
        raise ValueError("sizes are whole numbers")
    if len(shape) > MAX_DIMENSIONS or math.prod(shape) >= SIZE_LIMIT:
        raise ValueError("more dimensions or elements than a tensor can have")
    if len(key) > _MAX_KEY_LENGTH:
        raise ValueError("the key is longer than any real one")
    if dtype in _TORCH_NAMES and end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError("shape and bytes disagree")
    return StoredTensor(key, file, dtype, shape, start + begin), (begin, end)
