"""A model directory's weight files: which they are, what their headers say, whether they are whole; reading a tensor.

Formats: safetensors (an 8-byte length, a JSON header, then raw data) and torch's archives (`archives`). Of both, a
tensor is a dtype, a shape and a place in a file. torch is imported where tensors are made.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from spectrum import archives
from spectrum.errors import CheckpointError
from spectrum.files import opened, parse_json, read

if TYPE_CHECKING:
    import torch

# Room for 200,000 tensors a file and 500,000 a checkpoint. What is more is damage, or an attack: parsed JSON takes many
# times its size. The largest published checkpoints have 140,000 tensors in under 200 files.
MAX_HEADER_BYTES = 32 << 20
MAX_INDEX_BYTES = 64 << 20
_MOST_TENSORS = 500_000
MOST_FILES = 2_000

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

_TORCH_NAMES = frozenset(name for name, _ in _DTYPES.values())

# In transformers' order of preference. Each may be split into shards, with an index `<name>.index.json`.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")

_MOST_DIMENSIONS = 64  # torch's own limit

_LFS_POINTER = b"version https://git-lfs"

# Enough to notice weights that were trained further in place, without reading them: some bytes from all over a file,
# and of each tensor, up to this many places in a checkpoint.
_SPREAD = 64
_SAMPLES = 4096
_SAMPLE_BYTES = 64

_DOWNLOAD_AGAIN = "download the model again"
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
    files, _ = _located(directory)
    return files


def has_weights(directory: Path) -> bool:
    """Whether a directory has a weight file, or an index of some, whatever their state."""
    return any((directory / f"{name}{end}").exists() for name in SINGLE_FILES for end in ("", ".index.json"))


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint by its key. All headers are read and checked, no weight is.

    Raises CheckpointError, naming the file, for damage of any kind.
    """
    files, weight_map = _located(directory)
    by_file: dict[Path, dict[str, StoredTensor]] = {}
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        by_file[file] = _tensors_of(file)
        tensors.update(by_file[file])
        if sum(map(len, by_file.values())) > _MOST_TENSORS:
            raise CheckpointError(f"{directory} holds more tensors than any model has; {_DOWNLOAD_AGAIN}")
    for key, name in weight_map.items():
        held = by_file[directory / name]
        if key not in held:
            found = tensors.get(key)
            where = f"it is in {found.file.name}" if found else "it is in no shard"
            raise CheckpointError(f"the index of {directory} puts {key!r} in {name}, but {where}; {_DOWNLOAD_AGAIN}")
        tensors[key] = held[key]
    return tensors


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
            raise _unreadable(file, error) from error
    return digest.hexdigest()


def _middles(file: Path, size: int) -> Sequence[int]:
    """Offsets within a file: from all over it, and the middle of each tensor where these are known."""
    spread = range(0, size, size // _SPREAD + 1)
    if file.suffix != ".safetensors":
        return spread
    ends = sorted([*(tensor.offset for tensor in _safetensors(file).values()), size])
    return [*spread, *((start + end) // 2 for start, end in itertools.pairwise(ends))]


def _evenly(values: Sequence[int], count: int) -> Iterator[int]:
    """At most `count` of some values, from all over them."""
    yield from values[:: -(-len(values) // count) or 1]


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
        raise _unreadable(tensor.file, error) from error
    return buffer


def torch_dtype(tensor: StoredTensor) -> torch.dtype:
    """The dtype of a stored tensor. Raises CheckpointError where torch has none of its name."""
    import torch

    # Names come from a file: only those of dtypes are looked up.
    dtype = getattr(torch, tensor.dtype, None) if tensor.dtype in _TORCH_NAMES else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{tensor.file} holds {tensor.key!r} as {tensor.dtype}, which torch does not read")
    return dtype


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


def _located(directory: Path) -> tuple[list[Path], Mapping[str, str]]:
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
        raise _unreadable(index, error) from error
    except ValueError as error:
        raise CheckpointError(f"{index} is not valid JSON ({error}); {_DOWNLOAD_AGAIN}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of keys to shard names; {_DOWNLOAD_AGAIN}")
    names = sorted(set(weight_map.values()))
    if len(names) > MOST_FILES:
        raise CheckpointError(f"{index} names {len(names)} files, more than any model has; {_DOWNLOAD_AGAIN}")
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which is not a file of the model's directory")
        if not _is_there(index.parent / name):
            raise CheckpointError(f"{index.parent} lacks the shard {name} that its index names; {_DOWNLOAD_AGAIN}")
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


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    if file.suffix == ".safetensors":
        return _safetensors(file)
    with _opened(file) as stream:
        _refuse_placeholder(file, stream.read(len(_LFS_POINTER)))
        try:
            found = archives.tensors(stream)
        except archives.ArchiveError as error:
            raise CheckpointError(f"{file} cannot be read as a torch checkpoint of tensors alone: {error}") from error
        except OSError as error:
            raise _unreadable(file, error) from error
    return {key: StoredTensor(key, file, it.dtype, it.shape, it.offset, it.stride) for key, it in found.items()}


def _safetensors(file: Path) -> dict[str, StoredTensor]:
    with _opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _header(file, stream)
    start = 8 + len(header)
    try:
        content = parse_json(header)
    except ValueError as error:
        raise CheckpointError(f"{file} is damaged: its header is not valid JSON; {_DOWNLOAD_AGAIN}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} is damaged: its header is no JSON object; {_DOWNLOAD_AGAIN}")
    tensors = {}
    spans = []
    for key, entry in content.items():
        if key == "__metadata__":
            continue
        try:
            tensor, (begin, end) = _entry(file, key, entry, start)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{file} is damaged: its entry {key[:_LONGEST_KEY]!r} makes no sense; {_DOWNLOAD_AGAIN}"
            ) from error
        tensors[key] = tensor
        spans.append((begin, end, key))
    expected = 0
    for begin, end, key in sorted(spans):
        if begin != expected:
            raise CheckpointError(f"{file} is damaged: the data of {key!r} is not where it belongs; {_DOWNLOAD_AGAIN}")
        expected = end
    if start + expected != size:
        promised = start + expected
        raise CheckpointError(f"{file} is damaged: {size} bytes long, {promised} by its header; {_DOWNLOAD_AGAIN}")
    return tensors


def _entry(file: Path, key: str, entry: Mapping[str, Any], start: int) -> tuple[StoredTensor, tuple[int, int]]:
    dtype, itemsize = _DTYPES.get(entry["dtype"], (str(entry["dtype"]), None))
    if entry["dtype"] in _TORCH_NAMES:
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


def _structure(file: Path, stream: BinaryIO) -> bytes:
    """What a file says of its own tensors: the safetensors header, or the directory of a torch archive."""
    if file.suffix == ".safetensors":
        return _header(file, stream)
    _refuse_placeholder(file, stream.read(len(_LFS_POINTER)))
    try:
        return archives.structure(stream)
    except archives.ArchiveError as error:
        raise CheckpointError(f"{file} is truncated, or no torch checkpoint: {error}; {_DOWNLOAD_AGAIN}") from error


def _header(file: Path, stream: BinaryIO) -> bytes:
    """The JSON header of a safetensors file, as bytes."""
    prefix = stream.read(8)
    _refuse_placeholder(file, prefix + stream.read(len(_LFS_POINTER)))
    stream.seek(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, os.fstat(stream.fileno()).st_size - 8):
        raise CheckpointError(f"{file} is truncated, or no safetensors file; {_DOWNLOAD_AGAIN}")
    return stream.read(length)


def _refuse_placeholder(file: Path, head: bytes) -> None:
    if not head:
        raise CheckpointError(f"{file} is empty; {_DOWNLOAD_AGAIN}")
    if head.startswith(_LFS_POINTER):
        raise CheckpointError(f"{file} is a Git LFS pointer, not the file itself; run `git lfs pull` in its directory")


def _opened(file: Path) -> BinaryIO:
    try:
        return opened(file)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {file}: {error.strerror or error}")
