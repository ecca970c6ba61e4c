"""The values that a pickle in a torch archive may build: records of tensors and storages. torch is not imported.

The functions here check the values of the pickle and make the records from them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spectrum.dtypes import ITEM_BYTES, MAX_DIMENSIONS, SIZE_LIMIT

_MAX_ITEM_BYTES = max(ITEM_BYTES.values())

# Storages of these types have a class of their own. All others are untyped bytes.
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
_OTHER_CONTENT = "it holds other things than named dense tensors"


class ArchiveError(ValueError):
    """A file is not a valid archive of tensors alone. The message is a reason, without the file's name."""


@dataclass(frozen=True, slots=True)
class Global:
    """A class or a function of torch that a pickle names.

    Args:
        role: what torch builds with it.
        dtype: of a storage, the dtype of its elements, None if they may be of any. Of a dtype, its name. Else None.
    """

    role: Literal["dictionary", "tensor", "typed tensor", "parameter", "storage", "dtype"]
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """A block of bytes that tensors are views of.

    Args:
        key: the storage's name in the file.
        dtype: of its elements; None if each tensor reads the bytes as its own dtype.
        count: how many elements it has.
    """

    key: str
    dtype: str | None
    count: int

    @property
    def item_bytes(self) -> int:
        """The size of an element, in bytes."""
        return 1 if self.dtype is None else ITEM_BYTES[self.dtype]

    @property
    def size(self) -> int:
        """The size of the storage, in bytes."""
        return self.count * self.item_bytes


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage. Offset (of the first element), shape and stride are in elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class OrderedDict(dict[object, object]):
    """Stands for a collections.OrderedDict of the pickle. Unlike a plain dictionary, it may have attributes."""

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


def lookup_global(module: str, name: str) -> Global:
    """The class or function of this name. Raises ArchiveError for all names that tensors do not need."""
    path = f"{module}.{name}"
    found = _GLOBALS.get(path)
    if found is None:
        raise ArchiveError(f"its pickle names {quoted(path)}, which tensors alone do not need")
    return found


def state_dict_tensors(value: object) -> dict[str, Tensor]:
    """The tensors of a state dict by name. Raises ArchiveError if a pickle has built anything else."""
    if not isinstance(value, dict):
        raise ArchiveError(_OTHER_CONTENT)
    tensors = {key: item for key, item in value.items() if isinstance(item, Tensor)}
    rest = {key: item for key, item in value.items() if not isinstance(item, Tensor)}
    for key, item in rest.items():
        if isinstance(item, dict):
            raise ArchiveError(
                f"its entry {quoted(key)} is a dictionary, as training checkpoints have: tensors must be at the top"
            )
    if rest:
        raise ArchiveError(f"{_OTHER_CONTENT}, as {quoted(next(iter(rest)))}")
    return tensors


def quoted(name: str) -> str:
    """A name from a file as messages show it: quoted, printable, and not long."""
    return repr(name if len(name) <= 100 else f"{name[:97]}...")


def parse_storage(persistent_id: object, *, ends_with_view: bool) -> Storage:
    """The storage of a persistent id: ("storage", its type, its key, its device, its number of elements).

    Args:
        persistent_id: as the pickle has it.
        ends_with_view: whether a sixth part says what the storage is a view of. It must be None.
    """
    length = 6 if ends_with_view else 5
    if type(persistent_id) is not tuple or len(persistent_id) != length or persistent_id[0] != "storage":
        raise ArchiveError("it refers to something other than a storage")
    if persistent_id[5:] not in ((), (None,)):
        raise ArchiveError("it has a storage that is a part of another")
    _, storage_type, key, device, count = persistent_id[:5]
    is_storage = type(storage_type) is Global and storage_type.role == "storage"
    if not is_storage or type(key) is not str or type(device) is not str:
        raise ArchiveError("it has a storage that makes no sense")
    if type(count) is not int or not _is_size(_MAX_ITEM_BYTES * count):
        raise ArchiveError("it has a storage whose length makes no sense")
    return Storage(key, storage_type.dtype, count)


def parse_tensor(arguments: Sequence[object], dtype: str | None) -> Tensor:
    """The view of a storage that torch would make with these six arguments.

    The view is within the storage and has no more elements than the storage, so reading it takes no more memory than
    the file has bytes.
    Raises ArchiveError for every other view.
    """
    storage, offset, shape, stride, requires_grad, hooks = arguments
    if type(storage) is not Storage or dtype is None or type(requires_grad) is not bool:
        raise ArchiveError("it has a tensor that makes no sense")
    refuse_hooks(hooks)
    shape, stride = _parse_sizes(shape), _parse_sizes(stride)
    if len(shape) != len(stride) or type(offset) is not int or not _is_size(offset):
        raise ArchiveError("it has a tensor whose sizes make no sense")
    if math.prod(filter(None, shape)) >= SIZE_LIMIT:
        raise ArchiveError("it has a tensor larger than any can be")
    if 0 in shape:  # an empty view may be anywhere, even outside the storage
        return Tensor(storage, dtype, 0, shape, stride)
    capacity = storage.size // ITEM_BYTES[dtype]
    last = offset + sum(map(operator.mul, (size - 1 for size in shape), stride))
    if last >= capacity:
        raise ArchiveError("it has a tensor that reaches beyond its storage")
    if math.prod(shape) > capacity:
        raise ArchiveError("it has a tensor that repeats elements of its storage")
    return Tensor(storage, dtype, offset, shape, stride)


def _parse_sizes(value: object) -> tuple[int, ...]:
    if type(value) is not tuple or len(value) > MAX_DIMENSIONS or not all(map(_is_size, value)):
        raise ArchiveError("it has a tensor whose sizes make no sense")
    return value


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < SIZE_LIMIT


def parse_dtype(arguments: Sequence[object]) -> str | None:
    """The dtype of the tensor that torch would make with these arguments, None if they do not fit together.

    It is the storage's or, if the storage has none, the seventh argument.
    """
    storage = arguments[0]
    if type(storage) is not Storage:
        return None
    if len(arguments) == 6:
        return storage.dtype
    named = arguments[6]
    if type(named) is not Global or named.role != "dtype" or storage.dtype is not None:
        return None
    return named.dtype


def refuse_hooks(hooks: object) -> None:
    """Raises ArchiveError unless the hooks of a tensor, functions to be called, are an empty OrderedDict."""
    if type(hooks) is not OrderedDict or hooks:
        raise ArchiveError("it has a tensor with hooks")
