"""A model directory's weight files: which they are, and whether they are whole."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spectrum.errors import CheckpointError
from spectrum.files import opened, parse_json, read

MAX_INDEX_BYTES = 64 << 20
MOST_FILES = 2_000

# In transformers' order of preference. Each may be split into shards, with an index `<name>.index.json`.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_LFS_POINTER = b"version https://git-lfs"
DOWNLOAD_AGAIN = "download the model again"
_SCAN_A_MODEL = "give the directory of a model as save_pretrained writes it"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a checkpoint keeps a tensor.

    offset: of its first byte in the file. stride: in elements, of a tensor in a torch archive; None for rows that
    follow one another without gaps.
    """

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    stride: tuple[int, ...] | None = None


def weight_files(directory: Path) -> list[Path]:
    """The files that hold a checkpoint's weights, as transformers chooses them: safetensors before torch archives.

    Raises CheckpointError where there are none, or an index names one that is missing.
    """
    files, _ = located(directory)
    return files


def has_weights(directory: Path) -> bool:
    """Whether a directory has a weight file, or an index of some, whatever their state."""
    return any((directory / f"{name}{end}").exists() for name in SINGLE_FILES for end in ("", ".index.json"))


def other_than_a_model(where: str, names: Collection[str]) -> str | None:
    """What a place that holds these files, but not those of a model, is known to be instead."""
    if "adapter_config.json" in names:
        return f"{where} holds an adapter, not a model; merge it into its base model, or scan that"
    if any(name.endswith(".gguf") for name in names):
        return f"{where} holds GGUF files only, which are quantized; scan the original checkpoint"
    return None


def why_no_weights(where: str, names: Collection[str]) -> str:
    """What a place that holds these files, but no weights that transformers would load, is instead."""
    if other := other_than_a_model(where, names):
        return other
    others = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")))
    if others:
        return (
            f"{where} has weight files ({', '.join(others[:3])}) but neither model.safetensors, pytorch_model.bin "
            f"nor an index of either; {_SCAN_A_MODEL}"
        )
    return f"{where} has no weight files (model.safetensors, pytorch_model.bin, or shards with an index)"


def located(directory: Path) -> tuple[list[Path], Mapping[str, str]]:
    """Weight files, and the index's placement of keys in them."""
    for name in SINGLE_FILES:
        single = directory / name
        index = directory / f"{name}.index.json"
        if single.exists():
            return [single], {}
        if index.exists():
            weight_map = _weight_map(index)
            return [directory / name for name in sorted(set(weight_map.values()))], weight_map
    raise CheckpointError(why_no_weights(str(directory), {path.name for path in directory.iterdir()}))


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = parse_json(read(index, MAX_INDEX_BYTES))
    except OSError as error:
        raise unreadable(index, error) from error
    except ValueError as error:
        raise CheckpointError(f"{index} is not valid JSON ({error}); {DOWNLOAD_AGAIN}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of keys to shard names; {DOWNLOAD_AGAIN}")
    names = sorted(set(weight_map.values()))
    if len(names) > MOST_FILES:
        raise CheckpointError(f"{index} names {len(names)} files, more than any model has; {DOWNLOAD_AGAIN}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which is not a file of the model's directory")
        if not _is_there(index.parent / name):
            raise CheckpointError(f"{index.parent} lacks the shard {name} that its index names; {DOWNLOAD_AGAIN}")
    by_identity: dict[tuple[int, int], str] = {}
    for name in names:
        status = os.stat(index.parent / name)
        other = by_identity.setdefault((status.st_dev, status.st_ino), name)
        if other != name:
            raise CheckpointError(f"{index} names {other} and {name}, which are one and the same file")
    return weight_map


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long to be one
        return False


def refuse_placeholder(file: Path, head: bytes) -> None:
    """Raises CheckpointError for an empty file and for a Git LFS pointer."""
    if not head:
        raise CheckpointError(f"{file} is empty; {DOWNLOAD_AGAIN}")
    if head.startswith(_LFS_POINTER):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its directory")


def open_weights(file: Path) -> BinaryIO:
    """A weight file, open for reading. Raises CheckpointError."""
    try:
        return opened(file)
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> CheckpointError:
    """The error for a file that cannot be read."""
    return CheckpointError(f"cannot read {file}: {error.strerror or error}")
