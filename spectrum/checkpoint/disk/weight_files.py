"""START HERE. Which files of a model's directory hold its weights, and is none missing?

`tensors` then reads the descriptions of the tensors: the headers of safetensors files (`safetensors_header`), or the
pickles in torch archives (`torch_archive`). `fingerprint` notices weights that have changed.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spectrum.errors import CheckpointError
from spectrum.files import open_untrusted, parse_json, read_untrusted

MAX_INDEX_BYTES = 64 << 20
MAX_FILES = 2_000

# In transformers' order of preference. Each may be split into shards, with an index `<name>.index.json`.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
_LFS_POINTER = b"version https://git-lfs"
PLACEHOLDER_BYTES = len(_LFS_POINTER)  # how many bytes of a file `refuse_placeholder` needs
DOWNLOAD_AGAIN = "download the model again"
_SCAN_A_MODEL = "give the directory of a model as save_pretrained writes it"


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
    file: Path
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

    files: tuple[Path, ...]
    weight_map: Mapping[str, str]


def locate_weights(directory: Path) -> LocatedWeights:
    """The weight files that transformers would load: safetensors files if there are any, else torch archives.

    Raises CheckpointError if there are none, or if an index names one that is missing.
    """
    for name in SINGLE_FILES:
        single = directory / name
        index = directory / f"{name}.index.json"
        if single.exists():
            return LocatedWeights((single,), {})
        if index.exists():
            weight_map = _read_weight_map(index)
            files = tuple(directory / name for name in sorted(set(weight_map.values())))
            return LocatedWeights(files, weight_map)
    raise CheckpointError(no_weights_reason(str(directory), {path.name for path in directory.iterdir()}))


def has_weights(directory: Path) -> bool:
    """Whether a directory has a weight file or the index of some, damaged or not."""
    return any((directory / f"{name}{end}").exists() for name in SINGLE_FILES for end in ("", ".index.json"))


def not_a_model_reason(where: str, names: Collection[str]) -> str | None:
    """A message that says what a place with these files holds instead of a model, None if that is not known."""
    if "adapter_config.json" in names:
        return f"{where} holds an adapter, not a model; merge it into its base model, or scan that"
    if any(name.endswith(".gguf") for name in names):
        return f"{where} holds GGUF files only, which are quantized; scan the original checkpoint"
    return None


def no_weights_reason(where: str, names: Collection[str]) -> str:
    """A message for a place with these files, none of which transformers would load weights from."""
    if reason := not_a_model_reason(where, names):
        return reason
    endings = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")
    similar = sorted(name for name in names if name.endswith(endings))
    if similar:
        return (
            f"{where} has weight files ({', '.join(similar[:3])}) but neither model.safetensors, pytorch_model.bin "
            f"nor an index of either; {_SCAN_A_MODEL}"
        )
    return f"{where} has no weight files (model.safetensors, pytorch_model.bin, or shards with an index)"


def _read_weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = parse_json(read_untrusted(index, MAX_INDEX_BYTES))
    except OSError as error:
        raise read_failure(index, error) from error
    except ValueError as error:
        raise CheckpointError(f"{index} is not valid JSON ({error}); {DOWNLOAD_AGAIN}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of keys to shard names; {DOWNLOAD_AGAIN}")
    _check_shards(index, sorted(set(weight_map.values())))
    return weight_map


def _check_shards(index: Path, names: Collection[str]) -> None:
    """Raises CheckpointError unless these are the names of as many different files in the index's directory."""
    if len(names) > MAX_FILES:
        raise CheckpointError(f"{index} names {len(names)} files, more than any model has; {DOWNLOAD_AGAIN}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which is not a file of the model's directory")
        if not _exists(index.parent / name):
            raise CheckpointError(f"{index.parent} lacks the shard {name} that its index names; {DOWNLOAD_AGAIN}")
    by_inode: dict[tuple[int, int], str] = {}
    for name in names:
        status = os.stat(index.parent / name)
        first = by_inode.setdefault((status.st_dev, status.st_ino), name)
        if first != name:
            raise CheckpointError(f"{index} names {first} and {name}, which are one and the same file")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # the name is too long
        return False


def refuse_placeholder(file: Path, head: bytes) -> None:
    """Raises CheckpointError if a file is empty, or is a Git LFS pointer.

    Args:
        file: for the message.
        head: its first `PLACEHOLDER_BYTES` bytes, or more.
    """
    if not head:
        raise CheckpointError(f"{file} is empty; {DOWNLOAD_AGAIN}")
    if head.startswith(_LFS_POINTER):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its directory")


def open_weights(file: Path) -> BinaryIO:
    """Open a weight file for reading. Raises CheckpointError if that is not possible."""
    try:
        return open_untrusted(file)
    except OSError as error:
        raise read_failure(file, error) from error


def read_failure(file: Path, error: OSError) -> CheckpointError:
    """The error for a file that cannot be read."""
    return CheckpointError(f"cannot read {file}: {error.strerror or error}")
