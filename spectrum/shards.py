"""A model directory's weight files: which they are, what their headers say, whether they are whole; reading a tensor.

Formats: safetensors (an 8-byte length, a JSON header, then raw data) and torch's archives. Files are looked at with
the standard library alone; torch is imported where tensors are made.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from spectrum.errors import CheckpointError, first_line

if TYPE_CHECKING:
    import torch

# Room for 200,000 tensors a file and 500,000 a checkpoint. What is longer is damage, or an attack: parsed JSON takes
# many times its size.
MAX_HEADER_BYTES = 32 << 20
MAX_INDEX_BYTES = 64 << 20

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
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number of torch before 1.6

# Enough to notice weights that were trained further in place, without reading them: some bytes from all over a file,
# and of each tensor, up to this many places in a checkpoint.
_SPREAD = 64
_SAMPLES = 4096
_SAMPLE_BYTES = 64

_DOWNLOAD_AGAIN = "download the model again"
_SCAN_A_MODEL = "give the directory of a model as save_pretrained writes it"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a checkpoint keeps a tensor. offset: of its first byte in a safetensors file, None in a torch archive."""

    key: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int | None


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
    by_file = {file: _tensors_of(file) for file in files}
    tensors: dict[str, StoredTensor] = {}
    for held in by_file.values():
        tensors.update(held)
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
            with file.open("rb") as stream:
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
    ends = sorted([*(tensor.offset or 0 for tensor in _safetensors(file).values()), size])
    return [*spread, *((start + end) // 2 for start, end in itertools.pairwise(ends))]


def _evenly(values: Sequence[int], count: int) -> Iterator[int]:
    """At most `count` of some values, from all over them."""
    yield from values[:: -(-len(values) // count) or 1]


def read_tensor(tensor: StoredTensor, index: int | None = None) -> torch.Tensor:
    """A stored tensor in its stored dtype, or only row `index` of its first dimension (which is dropped).

    Reads exactly those bytes into memory of its own; nothing of the file stays mapped. Raises CheckpointError where
    the file has become unreadable or shorter.
    """
    import torch

    if tensor.offset is None:
        value = load_archive(tensor.file)[tensor.key].detach()
        return (value if index is None else value[index]).clone()
    dtype = torch_dtype(tensor)
    shape = tensor.shape if index is None else tensor.shape[1:]
    size = math.prod(shape) * dtype.itemsize
    buffer = torch.empty(size, dtype=torch.uint8)
    view = memoryview(buffer.numpy())  # type: ignore[arg-type]
    try:
        with tensor.file.open("rb", buffering=0) as stream:
            stream.seek(tensor.offset + (index or 0) * size)
            done = 0
            while done < size:  # the system hands out 2 GiB at most in one call
                got = stream.readinto(view[done:])
                if not got:
                    raise CheckpointError(f"{tensor.file} ends within {tensor.key!r}: it was cut while being read")
                done += got
    except OSError as error:
        raise _unreadable(tensor.file, error) from error
    return buffer.view(dtype).reshape(shape)


def torch_dtype(tensor: StoredTensor) -> torch.dtype:
    """The dtype of a stored tensor. Raises CheckpointError where torch has none of its name."""
    import torch

    # Names come from a file: only those of dtypes are looked up.
    dtype = getattr(torch, tensor.dtype, None) if tensor.dtype in _TORCH_NAMES else None
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{tensor.file} holds {tensor.key!r} as {tensor.dtype}, which torch does not read")
    return dtype


def load_archive(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch archive, mapped from disk where its format allows, never unpickling code.

    Archives from before torch 1.6 are no zip files: they take their whole size in memory.
    Raises CheckpointError for anything but a mapping of names to tensors.
    """
    import torch

    try:
        with file.open("rb") as stream:
            mappable = stream.read(2) == b"PK"
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=mappable)
    except OSError as error:
        raise _unreadable(file, error) from error
    except Exception as error:  # torch lets errors of its unpickler and its C++ reader through unchanged
        raise CheckpointError(
            f"{file} cannot be read as a torch checkpoint of tensors alone: {first_line(error)}"
        ) from error
    if not isinstance(content, dict) or not all(_is_named_tensor(*item) for item in content.items()):
        raise CheckpointError(f"{file} holds other things than named dense tensors; {_SCAN_A_MODEL}")
    return content


def _is_named_tensor(key: object, value: object) -> bool:
    import torch

    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return isinstance(key, str) and is_dense


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
        if single.is_file():
            _refuse_link_out(single)
            return [single], {}
        if index.is_file():
            weight_map = _weight_map(index)
            files = [directory / name for name in sorted(set(weight_map.values()))]
            for file in files:
                _refuse_link_out(file)
            return files, weight_map
    raise CheckpointError(why_no_weights(str(directory), {path.name for path in directory.iterdir()}))


def _refuse_link_out(file: Path) -> None:
    """A link in a stranger's directory must not have us read other files, short of those in a cache of the Hub's."""
    real = file.resolve()
    of_the_hub = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    if not (of_the_hub or real.is_relative_to(file.parent.resolve())):
        raise CheckpointError(f"{file} is a link out of its directory, to {real}; put the file itself there")


def read_limited(path: Path, limit: int) -> bytes:
    """A file's content. Raises CheckpointError where it is longer than such a file can be, OSError as it comes."""
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise CheckpointError(f"{path} is over {limit >> 20} MiB long, which no model's is; {_DOWNLOAD_AGAIN}")
    return content


def _weight_map(index: Path) -> Mapping[str, str]:
    try:
        content = json.loads(read_limited(index, MAX_INDEX_BYTES))
    except OSError as error:
        raise _unreadable(index, error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{index} is not valid JSON ({error}); {_DOWNLOAD_AGAIN}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map of keys to shard names; {_DOWNLOAD_AGAIN}")
    for name in sorted(set(weight_map.values())):
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise CheckpointError(f"{index} names the shard {name!r}, which is not a file of the model's directory")
        if not _is_file(index.parent / name):
            raise CheckpointError(f"{index.parent} lacks the shard {name} that its index names; {_DOWNLOAD_AGAIN}")
    return weight_map


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long to be one
        return False


def _tensors_of(file: Path) -> dict[str, StoredTensor]:
    if file.suffix == ".safetensors":
        return _safetensors(file)
    with _opened(file) as stream:
        _structure(file, stream)
    return {
        key: StoredTensor(key, file, str(value.dtype).removeprefix("torch."), tuple(value.shape), None)
        for key, value in load_archive(file).items()
    }


def _safetensors(file: Path) -> dict[str, StoredTensor]:
    with _opened(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        header = _header(file, stream)
    start = 8 + len(header)
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
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
            raise CheckpointError(f"{file} is damaged: its entry {key!r} makes no sense; {_DOWNLOAD_AGAIN}") from error
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
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError("more dimensions than a tensor can have")
    if itemsize is not None and end - begin != math.prod(shape) * itemsize:
        raise ValueError("shape and bytes disagree")
    return StoredTensor(key, file, dtype, shape, start + begin), (begin, end)


def _structure(file: Path, stream: BinaryIO) -> bytes:
    """What a file says of its own tensors: the safetensors header, or the directory of a torch archive."""
    if file.suffix == ".safetensors":
        return _header(file, stream)
    head = stream.read(len(_LFS_POINTER))
    _refuse_placeholder(file, head)
    if head.startswith(_LEGACY_TORCH):
        return head
    stream.seek(0)
    try:
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError) as error:
        raise CheckpointError(f"{file} is truncated, or no torch checkpoint; {_DOWNLOAD_AGAIN}") from error
    return "\n".join(f"{r.filename} {r.file_size} {r.CRC}" for r in records).encode()


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
        return file.open("rb")
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot read {file}: {error.strerror or error}")
