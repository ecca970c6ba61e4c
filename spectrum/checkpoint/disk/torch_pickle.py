"""What the pickles in torch's archives say of tensors. No class is looked up, no function called.

The few steps of a pickle that torch writes are followed over inert values: strings, numbers, tuples, lists,
dictionaries and records of tensors. Nothing is hashed but short strings. Standard library only.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from spectrum.checkpoint.disk.torch_values import (
    ArchiveError,
    Global,
    OrderedDict,
    Storage,
    Tensor,
    dtype_of,
    named_global,
    refuse_hooks,
    shown,
    storage_of,
    tensor_of,
)

# Room for 300,000 tensors, as many names and values to describe each, and the modules that hold them. What is more is
# damage, or an attack: what a pickle says takes many times its size.
MOST_BYTES = 32 << 20
_MOST_TENSORS = 300_000
_MOST_CONTAINERS = 10 * _MOST_TENSORS
_MOST_STEPS = 40 * _MOST_TENSORS  # at torch's four bytes a step, a pickle is too long before that
_MOST_STACKED = 10_000  # torch's pickler lays down a thousand names and values at a time
_MOST_MARKS = 100
_MOST_CHARACTERS = 1000  # of a tensor's name, and of any other string
_MOST_INTEGER_BYTES = 16
_CUT = f"its pickle ends too early, or is over {MOST_BYTES >> 20} MiB long"


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
        self.push(named_global(self._line(), self._line()))

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
        self.push(named_global(module, name))

    def persistent(self) -> None:
        storage = storage_of(self.pop(), ends_with_view=self._ends_with_view)
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
        if type(self.pop()) is not dict or type(self._top()) is not OrderedDict:
            raise ArchiveError("it sets attributes of something else than a state dict")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or type(function) is not Global:
            self._fail()
        self.push_new(self._called(function.kind, arguments))

    def _called(self, kind: str, arguments: tuple[object, ...]) -> object:
        if kind == "dictionary" and not arguments:
            return OrderedDict()
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
        return tensor_of(arguments[:6], dtype_of(arguments))

    def _parameter(self, value: object, requires_grad: object, hooks: object) -> Tensor:
        if type(value) is not Tensor or type(requires_grad) is not bool:
            raise ArchiveError("it has a parameter that makes no sense")
        refuse_hooks(hooks)
        return value


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
