"""The machine that runs a pickle: its bytes, stack and memo, each within limits.

`torch_pickle` has the steps that torch's pickles take on this machine.
"""

from __future__ import annotations

from typing import NoReturn

from spectrum.checkpoint.disk.torch_values import ArchiveError

# Enough for 300,000 tensors, with their names and all values that describe them. A longer pickle is damaged or
# malicious, and what it builds takes many times its size in memory.
MAX_BYTES = 32 << 20
_MAX_CONTAINERS = 3_000_000
_MAX_STACKED = 10_000  # torch's pickler puts a thousand names and values on the stack at a time
_MAX_MARKS = 100
_CUT = f"its pickle ends too early, or is over {MAX_BYTES >> 20} MiB long"


class PickleMachine:
    """A position in a pickle, a stack with marks, and a memo. All methods raise ArchiveError if the pickle is damaged.

    Args:
        content: the bytes that the pickle is in.
        at: the offset of the next byte.
    """

    def __init__(self, content: bytes, at: int) -> None:
        self.at = at
        self._content = content
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: list[object] = []
        self._containers = 0

    def fail(self) -> NoReturn:
        """Raises ArchiveError, for a pickle that is damaged."""
        raise ArchiveError("its pickle is damaged")

    def finish(self) -> object:
        """The one value that the pickle has built, taken from the stack."""
        value = self.pop()
        if self._stack or self._marks:
            self.fail()
        return value

    # The bytes.

    def byte(self) -> int:
        """Read one byte."""
        if self.at >= len(self._content):
            raise ArchiveError(_CUT)
        self.at += 1
        return self._content[self.at - 1]

    def take(self, length: int) -> bytes:
        """Read some bytes."""
        start = self.at
        if length > len(self._content) - start:
            raise ArchiveError(_CUT)
        self.at = start + length
        return self._content[start : self.at]

    def number(self, length: int) -> int:
        """Read an unsigned number of this many bytes."""
        return int.from_bytes(self.take(length), "little")

    def line(self, longest: int) -> str:
        """Read ASCII text up to a line break, which is left out."""
        end = self._content.find(b"\n", self.at, self.at + longest)
        if end < 0:
            self.fail()
        line = self.take(end - self.at)
        self.at += 1
        if not line.isascii():
            self.fail()
        return line.decode()

    def frame(self) -> None:
        """Read the length of a frame, and check that the pickle is as long. A frame has no other effect."""
        if self.number(8) > len(self._content) - self.at:
            raise ArchiveError(_CUT)

    # The stack.

    def push(self, value: object) -> None:
        """Put a value on the stack."""
        if len(self._stack) >= _MAX_STACKED:
            raise ArchiveError("its pickle piles up more than torch does")
        self._stack.append(value)

    def push_new(self, container: object) -> None:
        """Put a new container or tensor on the stack. They are counted: a few bytes of a pickle can make one."""
        self._containers += 1
        if self._containers > _MAX_CONTAINERS:
            raise ArchiveError("its pickle makes more than any model needs")
        self.push(container)

    def pop(self) -> object:
        """Take the value on top."""
        self._check_not_empty()
        return self._stack.pop()

    def top(self) -> object:
        """The value on top, which stays there."""
        self._check_not_empty()
        return self._stack[-1]

    def _check_not_empty(self) -> None:
        """Raises ArchiveError if the stack has no value above the last mark."""
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            self.fail()

    def mark(self) -> None:
        """Mark the current height of the stack."""
        if len(self._marks) >= _MAX_MARKS:
            raise ArchiveError("its pickle nests more than torch does")
        self._marks.append(len(self._stack))

    def pop_to_mark(self) -> list[object]:
        """Take the values above the last mark, and the mark."""
        if not self._marks:
            self.fail()
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    # The memo.

    def remember(self, index: int) -> None:
        """Note the value on top under a number."""
        # Pickles number values in order. A larger number is refused: the memo must not outgrow the pickle.
        if index > len(self._memo):
            self.fail()
        self._memo[index : index + 1] = [self.top()]

    def remember_next(self) -> None:
        """Note the value on top under the next number."""
        self.remember(len(self._memo))

    def recall(self, index: int) -> None:
        """Put the value with this number on the stack."""
        if index >= len(self._memo):
            self.fail()
        self.push(self._memo[index])
