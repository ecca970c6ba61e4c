"""What the pickles in torch's archives say of tensors. No class is looked up, no function called.

The few steps of a pickle that torch writes are followed over inert values: strings, numbers, tuples, lists,
dictionaries and records of tensors. Nothing is hashed but short strings. Standard library only.
"""

from __future__ import annotations

import math
import operator
import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

# Room for 300,000 tensors, as many names and values to describe each, and the modules that hold them. What is more is
# damage, or an attack: what a pickle says takes many times its size.
MOST_BYTES = 32 << 20
_MOST_TENSORS = 300_000
_MOST_CONTAINERS = 10 * _MOST_TENSORS
_MOST_STEPS = 40 * _MOST_TENSORS  # at torch's four bytes a step, a pickle is too long before that
_MOST_STACKED = 10_000  # torch's pickler lays down a thousand names and values at a time
_MOST_MARKS = 100
_MOST_CHARACTERS = 1000  # of a tensor's name, and of any other string
_MOST_DIMENSIONS = 64  # torch's own limit
_MOST_INTEGER_BYTES = 16

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
_CUT = f"its pickle ends too early, or is over {MOST_BYTES >> 20} MiB long"


class ArchiveError(ValueError):
    """A file is no sound archive of tensors alone. The message is a reason, to follow the file's name and a colon."""


@dataclass(frozen=True, slots=True)
class _Global:
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


class _OrderedDict(dict[object, object]):
    """An OrderedDict of the pickle's, which unlike a plain one may carry attributes."""

    __slots__ = ()


_GLOBALS = {
    "collections.OrderedDict": _Global("dictionary"),
    "torch._utils._rebuild_tensor_v2": _Global("tensor"),
    "torch._utils._rebuild_tensor_v3": _Global("typed tensor"),
    "torch._utils._rebuild_parameter": _Global("parameter"),
    "torch.storage.UntypedStorage": _Global("storage"),
    "torch.UntypedStorage": _Global("storage"),
    **{f"torch.{name}": _Global("storage", dtype) for name, dtype in _STORAGE_TYPES.items()},
    **{f"torch.{name}": _Global("dtype", name) for name in ITEM_BYTES},
}


@dataclass(frozen=True, slots=True)
class Pickled:
    """What a pickle builds, the storages that it refers to by their keys, and the offset of what follows it."""

    value: object
    storages: Mapping[str, Storage]
    end: int


def follow(content: bytes, at: int, *, ends_with_view: bool) -> Pickled:
    """Follow the pickle that begins there.

    ends_with_view: whether a storage's id has a sixth part, as before zip. Raises ArchiveError for what torch does not
    write.
    """
    machine = _Machine(content, at, ends_with_view=ends_with_view)
    value = machine.run()
    return Pickled(value, machine.storages, machine.at)


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


def _storage(identity: object, *, ends_with_view: bool) -> Storage:
    """The storage that a persistent id means: what it is, its type, key, device and number of elements."""
    length = 6 if ends_with_view else 5
    if type(identity) is not tuple or len(identity) != length or identity[0] != "storage":
        raise ArchiveError("it refers to something else than a storage")
    if identity[5:] not in ((), (None,)):
        raise ArchiveError("it has a storage that is a part of another")
    _, kind, key, device, count = identity[:5]
    if type(kind) is not _Global or kind.kind != "storage" or type(key) is not str or type(device) is not str:
        raise ArchiveError("it has a storage that makes no sense")
    if type(count) is not int or not _is_size(16 * count):  # of the largest elements that there are
        raise ArchiveError("it has a storage whose length makes no sense")
    return Storage(key, kind.dtype, count)


def _tensor(arguments: Sequence[object], dtype: str | None) -> Tensor:
    """A view of a storage. It lies within that, and has no more elements: what is read is no larger than the file."""
    storage, offset, shape, stride, requires_grad, hooks = arguments
    if type(storage) is not Storage or dtype is None or type(requires_grad) is not bool:
        raise ArchiveError("it has a tensor that makes no sense")
    _refuse_hooks(hooks)
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


def _refuse_hooks(hooks: object) -> None:
    if type(hooks) is not _OrderedDict or hooks:
        raise ArchiveError("it has a tensor with hooks")


class _Machine:
    """Follows a pickle, one step at a time, and builds strings, numbers, tuples, lists, dictionaries and tensors.

    at: the offset of what comes next in `content`. storages: those met so far, by key. ends_with_view: whether a
    storage's id has a sixth part, as before zip.
    """

    def __init__(self, content: bytes, at: int, *, ends_with_view: bool) -> None:
        self.at = at
        self.storages: dict[str, Storage] = {}
        self._content = content
        self._ends_with_view = ends_with_view
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: list[object] = []
        self._containers = 0
        self._tensors = 0

    def run(self) -> object:
        """What the pickle builds; `at` is its end then. Raises ArchiveError for what torch does not write."""
        if self.byte() != _PROTO or self.byte() not in range(2, 6):
            raise ArchiveError("its pickle is of a protocol that torch does not write")
        for _ in range(_MOST_STEPS):
            code = self.byte()
            if code == _STOP:
                break
            step = _STEPS.get(code)
            if step is None:
                raise ArchiveError(f"its pickle has {_step_name(code)}, which tensors alone do not need")
            step(self)
        else:
            raise ArchiveError("its pickle takes more steps than any model needs")
        value = self.pop()
        if self._stack or self._marks:
            self._fail()
        return value

    # The pickle, the stack and the memo.

    def _fail(self) -> NoReturn:
        raise ArchiveError("its pickle is damaged")

    def byte(self) -> int:
        if self.at >= len(self._content):
            raise ArchiveError(_CUT)
        self.at += 1
        return self._content[self.at - 1]

    def _bytes(self, length: int) -> bytes:
        start = self.at
        if length > len(self._content) - start:
            raise ArchiveError(_CUT)
        self.at = start + length
        return self._content[start : self.at]

    def number(self, length: int) -> int:
        return int.from_bytes(self._bytes(length), "little")

    def push(self, value: object) -> None:
        if len(self._stack) >= _MOST_STACKED:
            raise ArchiveError("its pickle piles up more than torch does")
        self._stack.append(value)

    def push_new(self, container: object) -> None:
        self._containers += 1
        if self._containers > _MOST_CONTAINERS:
            raise ArchiveError("its pickle makes more than any model needs")
        self.push(container)

    def _depth(self) -> int:
        """How much of the stack is out of reach: what lies below the last mark."""
        return self._marks[-1] if self._marks else 0

    def pop(self) -> object:
        if len(self._stack) <= self._depth():
            self._fail()
        return self._stack.pop()

    def _top(self) -> object:
        if len(self._stack) <= self._depth():
            self._fail()
        return self._stack[-1]

    def pop_to_mark(self) -> list[object]:
        if not self._marks:
            self._fail()
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def remember(self, index: int) -> None:
        # Pickles number what they remember in order; only so is a list as long as there are steps.
        if index > len(self._memo):
            self._fail()
        self._memo[index : index + 1] = [self._top()]

    def remember_next(self) -> None:
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        if index >= len(self._memo):
            self._fail()
        self.push(self._memo[index])

    # Steps, named after pickle's.

    def mark(self) -> None:
        if len(self._marks) >= _MOST_MARKS:
            raise ArchiveError("its pickle nests more than torch does")
        self._marks.append(len(self._stack))

    def frame(self) -> None:
        if self.number(8) > len(self._content) - self.at:
            raise ArchiveError(_CUT)

    def tuple_of(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.push_new(tuple(reversed(values)))

    def text(self, length_bytes: int) -> None:
        length = self.number(length_bytes)
        try:
            value = self._bytes(length).decode() if length <= 4 * _MOST_CHARACTERS else None
        except UnicodeDecodeError:
            raise ArchiveError("its pickle has a string that is not text") from None
        if value is None or len(value) > _MOST_CHARACTERS:
            raise ArchiveError(f"its pickle has a string of over {_MOST_CHARACTERS} characters")
        self.push(value)

    def signed(self, length: int) -> None:
        if length > _MOST_INTEGER_BYTES:
            raise ArchiveError("its pickle has a number larger than any that torch writes")
        self.push(int.from_bytes(self._bytes(length), "little", signed=True))

    def real(self) -> None:
        self.push(struct.unpack(">d", self._bytes(8))[0])

    def append(self, values: Iterable[object]) -> None:
        target = self._top()
        if type(target) is not list:
            self._fail()
        target.extend(values)

    def set_items(self, values: Sequence[object]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            self._fail()
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:  # before it is hashed: other keys may take forever
                raise ArchiveError("it has a dictionary whose keys are not strings")
            if key in target:
                raise ArchiveError(f"it has two entries {shown(key)}")
            target[key] = value

    def set_item(self) -> None:
        value = self.pop()
        self.set_items((self.pop(), value))

    def global_on_lines(self) -> None:
        self.push(_global(self._line(), self._line()))

    def _line(self) -> str:
        end = self._content.find(b"\n", self.at, self.at + _MOST_CHARACTERS)
        if end < 0:
            self._fail()
        line = self._bytes(end - self.at)
        self.at += 1
        if not line.isascii():
            self._fail()
        return line.decode()

    def global_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            self._fail()
        self.push(_global(module, name))

    def persistent(self) -> None:
        storage = _storage(self.pop(), ends_with_view=self._ends_with_view)
        known = self.storages.setdefault(storage.key, storage)
        # Of no bytes, torch takes views of several dtypes; of others, bytes and storages of uint8 are the same.
        if (known.size, known.dtype or "uint8") != (
            storage.size,
            storage.dtype or "uint8",
        ) and known.size + storage.size:
            raise ArchiveError(f"it has two storages {shown(storage.key)}")
        self.push_new(storage)

    def build(self) -> None:
        # The attributes of a state dict are of no interest here.
        if type(self.pop()) is not dict or type(self._top()) is not _OrderedDict:
            raise ArchiveError("it sets attributes of something else than a state dict")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or type(function) is not _Global:
            self._fail()
        self.push_new(self._called(function.kind, arguments))

    def _called(self, kind: str, arguments: tuple[object, ...]) -> object:
        if kind == "dictionary" and not arguments:
            return _OrderedDict()
        if kind == "parameter" and len(arguments) == 3:
            return self._parameter(*arguments)
        if kind not in ("tensor", "typed tensor"):
            raise ArchiveError("its pickle makes something else than tensors")
        self._tensors += 1
        if self._tensors > _MOST_TENSORS:
            raise ArchiveError(f"it has over {_MOST_TENSORS} tensors")
        usual = 6 if kind == "tensor" else 7
        if len(arguments) == usual + 1:
            raise ArchiveError("it has a tensor that is stored negated or conjugated")
        if len(arguments) != usual:
            raise ArchiveError("it has a tensor that makes no sense")
        return _tensor(arguments[:6], _dtype(arguments))

    def _parameter(self, value: object, requires_grad: object, hooks: object) -> Tensor:
        if type(value) is not Tensor or type(requires_grad) is not bool:
            raise ArchiveError("it has a parameter that makes no sense")
        _refuse_hooks(hooks)
        return value


def _dtype(arguments: Sequence[object]) -> str | None:
    """Of a tensor that is to be: its storage's, or the seventh argument's where that has none. None: neither is so."""
    storage = arguments[0]
    if type(storage) is not Storage:
        return None
    if len(arguments) == 6:
        return storage.dtype
    named = arguments[6]
    if type(named) is not _Global or named.kind != "dtype" or storage.dtype is not None:
        return None
    return named.dtype


def _global(module: str, name: str) -> _Global:
    full = f"{module}.{name}"
    known = _GLOBALS.get(full)
    if known is None:
        raise ArchiveError(f"its pickle names {shown(full)}, which tensors alone do not need")
    return known


def _step_name(code: int) -> str:
    known = [step.name for step in pickletools.opcodes if step.code == chr(code)]
    return f"a step {known[0]}" if known else f"a step {code:#04x} that no pickle has"


_PROTO, _STOP = 0x80, ord(".")
_STEPS: Mapping[int, Callable[[_Machine], None]] = {
    0x95: _Machine.frame,
    ord("("): _Machine.mark,
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("K"): lambda machine: machine.push(machine.byte()),
    ord("M"): lambda machine: machine.push(machine.number(2)),
    ord("J"): lambda machine: machine.signed(4),
    0x8A: lambda machine: machine.signed(machine.byte()),
    ord("G"): _Machine.real,
    ord("U"): lambda machine: machine.text(1),  # of Python 2
    0x8C: lambda machine: machine.text(1),
    ord("X"): lambda machine: machine.text(4),
    ord(")"): lambda machine: machine.push(()),
    0x85: lambda machine: machine.tuple_of(1),
    0x86: lambda machine: machine.tuple_of(2),
    0x87: lambda machine: machine.tuple_of(3),
    ord("t"): lambda machine: machine.push_new(tuple(machine.pop_to_mark())),
    ord("]"): lambda machine: machine.push_new([]),
    ord("a"): lambda machine: machine.append([machine.pop()]),
    ord("e"): lambda machine: machine.append(machine.pop_to_mark()),
    ord("}"): lambda machine: machine.push_new({}),
    ord("s"): _Machine.set_item,
    ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
    ord("q"): lambda machine: machine.remember(machine.byte()),
    ord("r"): lambda machine: machine.remember(machine.number(4)),
    0x94: _Machine.remember_next,
    ord("h"): lambda machine: machine.recall(machine.byte()),
    ord("j"): lambda machine: machine.recall(machine.number(4)),
    ord("c"): _Machine.global_on_lines,
    0x93: _Machine.global_on_stack,
    ord("Q"): _Machine.persistent,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
