"""Reads the pickles in torch archives without unpickling: no class is looked up, and no function is called.

Only the steps that torch writes are accepted. They build inert values: strings, numbers, tuples, lists, dictionaries
and records that describe tensors. Only short strings are hashed.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spectrum.checkpoint.disk.torch_pickle_machine import PickleMachine
from spectrum.checkpoint.disk.torch_values import (
    ArchiveError,
    Global,
    OrderedDict,
    Storage,
    Tensor,
    lookup_global,
    parse_dtype,
    parse_storage,
    parse_tensor,
    quoted,
    refuse_hooks,
)

_MAX_ARCHIVE_TENSORS = 300_000  # of one file
_MAX_STEPS = 40 * _MAX_ARCHIVE_TENSORS  # torch writes four bytes a step, so the limit on bytes is met first
_MAX_CHARACTERS = 1000  # of a tensor's name, and of any other string
_MAX_INTEGER_BYTES = 16


@dataclass(frozen=True, slots=True)
class Pickled:
    """The content of a pickle.

    Args:
        value: the value that it builds.
        storages: the storages that it refers to, by key.
        end: the offset of what follows it.
    """

    value: object
    storages: Mapping[str, Storage]
    end: int


def read_pickle(content: bytes, start: int, *, ends_with_view: bool) -> Pickled:
    """Read the pickle at an offset. Raises ArchiveError for everything that torch does not write.

    Args:
        content: the bytes that the pickle is in.
        start: the offset of its first byte.
        ends_with_view: whether the id of a storage has a sixth part, as in the older format.
    """
    steps = _Steps(content, start, ends_with_view=ends_with_view)
    value = steps.run()
    return Pickled(value, steps.storages, steps.at)


class _Steps(PickleMachine):
    """The steps of torch's pickles, each named after its pickle opcode. `storages` has all storages so far, by key."""

    def __init__(self, content: bytes, at: int, *, ends_with_view: bool) -> None:
        super().__init__(content, at)
        self.storages: dict[str, Storage] = {}
        self._ends_with_view = ends_with_view
        self._tensors = 0

    def run(self) -> object:
        """Follow the pickle to its end, and return what it builds."""
        if self.byte() != _PROTO or self.byte() not in range(2, 6):
            raise ArchiveError("its pickle is of a protocol that torch does not write")
        for _ in range(_MAX_STEPS):
            code = self.byte()
            if code == _STOP:
                return self.finish()
            step = _STEPS.get(code)
            if step is None:
                raise ArchiveError(f"its pickle has {_step_name(code)}, which tensors alone do not need")
            step(self)
        raise ArchiveError("its pickle takes more steps than any model needs")

    # Numbers, text and containers.

    def tuple_of(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.push_new(tuple(reversed(values)))

    def text(self, length_bytes: int) -> None:
        length = self.number(length_bytes)
        try:
            value = self.take(length).decode() if length <= 4 * _MAX_CHARACTERS else None
        except UnicodeDecodeError:
            raise ArchiveError("its pickle has a string that is not text") from None
        if value is None or len(value) > _MAX_CHARACTERS:
            raise ArchiveError(f"its pickle has a string of over {_MAX_CHARACTERS} characters")
        self.push(value)

    def signed(self, length: int) -> None:
        if length > _MAX_INTEGER_BYTES:
            raise ArchiveError("its pickle has a number larger than any that torch writes")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def float64(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0])

    def append(self, values: Iterable[object]) -> None:
        target = self.top()
        if type(target) is not list:
            self.fail()
        target.extend(values)

    def set_items(self, values: Sequence[object]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(values) % 2:
            self.fail()
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:  # checked before it is hashed, which may take forever for other keys
                raise ArchiveError("it has a dictionary whose keys are not strings")
            if key in target:
                raise ArchiveError(f"it has two entries {quoted(key)}")
            target[key] = value

    def set_item(self) -> None:
        value = self.pop()
        self.set_items((self.pop(), value))

    # Names, storages and tensors.

    def global_on_lines(self) -> None:
        self.push(lookup_global(self.line(_MAX_CHARACTERS), self.line(_MAX_CHARACTERS)))

    def global_on_stack(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            self.fail()
        self.push(lookup_global(module, name))

    def persistent(self) -> None:
        storage = parse_storage(self.pop(), ends_with_view=self._ends_with_view)
        first = self.storages.setdefault(storage.key, storage)
        # torch may write an empty storage under several dtypes. All others have one; untyped bytes count as uint8.
        same = (first.size, first.dtype or "uint8") == (storage.size, storage.dtype or "uint8")
        if not same and first.size + storage.size:
            raise ArchiveError(f"it has two storages {quoted(storage.key)}")
        self.push_new(storage)

    def build(self) -> None:
        # A state dict may have attributes. They say nothing about tensors, and are dropped.
        if type(self.pop()) is not dict or type(self.top()) is not OrderedDict:
            raise ArchiveError("it sets attributes of something other than a state dict")

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or type(function) is not Global:
            self.fail()
        self.push_new(self._build(function.role, arguments))

    def _build(self, role: str, arguments: tuple[object, ...]) -> object:
        """A record of what torch would build by calling a function of this role."""
        if role == "dictionary" and not arguments:
            return OrderedDict()
        if role == "parameter" and len(arguments) == 3:
            return self._parameter(*arguments)
        if role not in ("tensor", "typed tensor"):
            raise ArchiveError("its pickle makes something other than tensors")
        self._tensors += 1
        if self._tensors > _MAX_ARCHIVE_TENSORS:
            raise ArchiveError(f"it has over {_MAX_ARCHIVE_TENSORS} tensors")
        usual = 6 if role == "tensor" else 7
        if len(arguments) == usual + 1:
            raise ArchiveError("it has a tensor that is stored negated or conjugated")
        if len(arguments) != usual:
            raise ArchiveError("it has a tensor that makes no sense")
        return parse_tensor(arguments[:6], parse_dtype(arguments))

    def _parameter(self, value: object, requires_grad: object, hooks: object) -> Tensor:
        if type(value) is not Tensor or type(requires_grad) is not bool:
            raise ArchiveError("it has a parameter that makes no sense")
        refuse_hooks(hooks)
        return value


def _step_name(code: int) -> str:
    names = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
    return f"a step {names[0]}" if names else f"a step {code:#04x} that no pickle has"


_PROTO, _STOP = 0x80, ord(".")
_STEPS: Mapping[int, Callable[[_Steps], None]] = {
    0x95: _Steps.frame,
    ord("("): _Steps.mark,
    ord("N"): lambda machine: machine.push(None),
    0x88: lambda machine: machine.push(True),
    0x89: lambda machine: machine.push(False),
    ord("K"): lambda machine: machine.push(machine.byte()),
    ord("M"): lambda machine: machine.push(machine.number(2)),
    ord("J"): lambda machine: machine.signed(4),
    0x8A: lambda machine: machine.signed(machine.byte()),
    ord("G"): _Steps.float64,
    ord("U"): lambda machine: machine.text(1),  # written by Python 2
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
    ord("s"): _Steps.set_item,
    ord("u"): lambda machine: machine.set_items(machine.pop_to_mark()),
    ord("q"): lambda machine: machine.remember(machine.byte()),
    ord("r"): lambda machine: machine.remember(machine.number(4)),
    0x94: _Steps.remember_next,
    ord("h"): lambda machine: machine.recall(machine.byte()),
    ord("j"): lambda machine: machine.recall(machine.number(4)),
    ord("c"): _Steps.global_on_lines,
    0x93: _Steps.global_on_stack,
    ord("Q"): _Steps.persistent,
    ord("R"): _Steps.reduce,
    ord("b"): _Steps.build,
}
