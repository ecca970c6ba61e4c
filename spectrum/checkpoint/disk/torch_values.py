"""What a pickle of torch's may build: tensors, storages, and their names. Standard library only."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

_MOST_DIMENSIONS = 64  # torch's own limit
_SIZES = 2**63  # every size and every offset is less

# Bytes per element, by torch's names. The first are those whose storages have a type of their own.
_STORAGE_TYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
}
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
    "complex128": 16,
    "complex64": 8,
    "complex32": 4,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "bits16": 2,
    "bits8": 1,
    "bits1x8": 1,
    "bits2x4": 1,
    "bits4x2": 1,
}
_OTHER_THINGS = "it holds other things than named dense tensors"


class ArchiveError(ValueError):
    """A file is no sound archive of tensors alone. The message is a reason, to follow the file's name and a colon."""


@dataclass(frozen=True, slots=True)
class Global:
    """What a pickle may name. kind: "dictionary", "tensor", "typed tensor", "parameter", "storage" or "dtype".

    dtype: of a storage, None where that is bytes of any dtype, or the one named.
    """

    kind: str
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """What tensors are views of. dtype: None for bytes that each tensor takes as its own dtype."""

    key: str
    dtype: str | None
    count: int

    @property
    def item_bytes(self) -> int:
        """Of an element."""
        return 1 if self.dtype is None else ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * self.item_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """offset: of its first element in its storage, in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class OrderedDict(dict[object, object]):
    """An OrderedDict of the pickle's, which unlike a plain one may carry attributes."""

    __slots__ = ()


_GLOBALS = {
    "collections.OrderedDict": Global("dictionary"),
    "torch._utils._rebuild_tensor_v2": Global("tensor"),
    "torch._utils._rebuild_tensor_v3": Global("typed tensor"),
    "torch._utils._rebuild_parameter": Global("parameter"),
    "torch.storage.UntypedStorage": Global("storage"),
    "torch.UntypedStorage": Global("storage"),
    **{f"torch.{name}": Global("storage", dtype) for name, dtype in _STORAGE_TYPES.items()},
    **{f"torch.{name}": Global("dtype", name) for name in ITEM_BYTES},
}


def named_tensors(value: object) -> dict[str, Tensor]:
    """The tensors of a state dict. Raises ArchiveError where a pickle has built anything else."""
    if not isinstance(value, dict):
        raise ArchiveError(_OTHER_THINGS)
    named = {key: held for key, held in value.items() if isinstance(held, Tensor)}
    others = {key: held for key, held in value.items() if not isinstance(held, Tensor)}
    for key, held in others.items():
        if isinstance(held, dict):
            raise ArchiveError(
                f"its entry {shown(key)} is a dictionary, as training checkpoints have: tensors must be at the top"
            )
    if others:
        raise ArchiveError(f"{_OTHER_THINGS}, as {shown(next(iter(others)))}")
    return named


def shown(name: str) -> str:
    """A name from a file as a message can have it: printable, and not long."""
    return repr(name if len(name) <= 100 else f"{name[:97]}...")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _SIZES


def _sizes(value: object) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > _MOST_DIMENSIONS or not all(map(_is_size, value)):
        raise ArchiveError("it has a tensor whose sizes make no sense")
    return value


def storage_of(identity: object, *, ends_with_view: bool) -> Storage:
    """The storage that a persistent id means: what it is, its type, key, device and number of elements."""
    length = 6 if ends_with_view else 5
    if type(identity) is not tuple or len(identity) != length or identity[0] != "storage":
        raise ArchiveError("it refers to something else than a storage")
    if identity[5:] not in ((), (None,)):
        raise ArchiveError("it has a storage that is a part of another")
    _, kind, key, device, count = identity[:5]
    if type(kind) is not Global or kind.kind != "storage" or type(key) is not str or type(device) is not str:
        raise ArchiveError("it has a storage that makes no sense")
    if type(count) is not int or not _is_size(16 * count):  # of the largest elements that there are
        raise ArchiveError("it has a storage whose length makes no sense")
    return Storage(key, kind.dtype, count)


def tensor_of(arguments: Sequence[object], dtype: str | None) -> Tensor:
    """A view of a storage. It lies within that, and has no more elements: what is read is no larger than the file."""
    storage, offset, shape, stride, requires_grad, hooks = arguments
    if type(storage) is not Storage or dtype is None or type(requires_grad) is not bool:
        raise ArchiveError("it has a tensor that makes no sense")
    refuse_hooks(hooks)
    shape, stride = _sizes(shape), _sizes(stride)
    if len(shape) != len(stride) or type(offset) is not int or not _is_size(offset):
        raise ArchiveError("it has a tensor whose sizes make no sense")
    if math.prod(filter(None, shape)) >= _SIZES:
        raise ArchiveError("it has a tensor larger than any can be")
    if 0 in shape:  # may be said to lie anywhere
        return Tensor(storage, dtype, 0, shape, stride)
    held = storage.size // ITEM_BYTES[dtype]
    last = offset + sum(map(operator.mul, (size - 1 for size in shape), stride))
    if last >= held:
        raise ArchiveError("it has a tensor that reaches beyond its storage")
    if math.prod(shape) > held:
        raise ArchiveError("it has a tensor that repeats a smaller one")
    return Tensor(storage, dtype, offset, shape, stride)


def refuse_hooks(hooks: object) -> None:
    """Raises ArchiveError unless a tensor's hooks are an empty OrderedDict."""
    if type(hooks) is not OrderedDict or hooks:
        raise ArchiveError("it has a tensor with hooks")


def dtype_of(arguments: Sequence[object]) -> str | None:
    """Of a tensor that is to be: its storage's, or the seventh argument's where that has none. None: neither is so."""
    storage = arguments[0]
    if type(storage) is not Storage:
        return None
    if len(arguments) == 6:
        return storage.dtype
    named = arguments[6]
    if type(named) is not Global or named.kind != "dtype" or storage.dtype is not None:
        return None
    return named.dtype


def named_global(module: str, name: str) -> Global:
    """What a pickle may name. Raises ArchiveError for any other name."""
    full = f"{module}.{name}"
    known = _GLOBALS.get(full)
    if known is None:
        raise ArchiveError(f"its pickle names {shown(full)}, which tensors alone do not need")
    return known
