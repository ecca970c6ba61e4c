"""In which parts are two parameters read, so that a few matrices are in memory at once, however large they are?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from spectrum.dtypes import ITEM_BYTES
from spectrum.records import Parameter
from spectrum.verification.opening import OpenModel

_MAX_BYTES = 32 << 20  # of what is read at once, unless it cannot be read in parts


@dataclass(frozen=True, slots=True)
class Pair:
    """A parameter under its names in the base and in the trained model, and how it is read.

    Args:
        name: in the base.
        trained_name: in the trained model.
        parts: what of the first dimension is read at once; None for all.
        added: how the rows that only the trained model has are read.
        num_rows: the size of the first dimension as far as it is compared; None for a number without dimensions.
        num_bytes: of the larger of the two.
    """

    name: str
    trained_name: str
    parts: tuple[int | slice | None, ...]
    added: tuple[slice, ...]
    num_rows: int | None
    num_bytes: int

    def rows_of(self, part: int | slice | None) -> range:
        """The rows, or elements of the first dimension, that a part has."""
        if isinstance(part, int):
            return range(part, part + 1)
        rows = range(self.num_rows or 0)
        return rows if part is None else rows[part]


def pair_of(base: OpenModel, trained: OpenModel, name: str, trained_name: str) -> Pair:
    """How a parameter is read, of which the trained model may have more or fewer rows than the base."""
    first, second = base.parameters[name], trained.parameters[trained_name]
    own, other = first.shape, second.shape
    num_rows = min(own[0], other[0]) if own else None
    num_bytes = max(_bytes(first), _bytes(second))
    in_rows = base.values.reads_rows(name) and trained.values.reads_rows(trained_name)
    parts = tuple(_parts(own, num_bytes, num_rows, in_rows=in_rows, is_resized=own != other))
    added: tuple[slice, ...] = ()
    if num_rows is not None and num_rows < other[0]:
        at_once = _rows_at_once(other, num_bytes) if trained.values.reads_rows(trained_name) else other[0]
        added = tuple(_rows(num_rows, other[0], at_once))
    return Pair(name, trained_name, parts, added, num_rows, num_bytes)


def _parts(
    shape: tuple[int, ...], num_bytes: int, num_rows: int | None, *, in_rows: bool, is_resized: bool
) -> Iterator[int | slice | None]:
    if num_rows is None or num_rows == 0 or (num_bytes <= _MAX_BYTES and not (is_resized and in_rows)):
        yield None
    elif len(shape) == 3 and not is_resized:  # a stack of experts, which are converted one by one
        yield from range(num_rows)
    elif in_rows:
        yield from _rows(0, num_rows, _rows_at_once(shape, num_bytes))
    else:
        yield None


def _rows_at_once(shape: tuple[int, ...], num_bytes: int) -> int:
    return max(_MAX_BYTES * shape[0] // max(num_bytes, 1), 1)


def _rows(start: int, end: int, at_once: int) -> Iterator[slice]:
    return (slice(first, min(first + at_once, end)) for first in range(start, end, at_once))


def _bytes(parameter: Parameter) -> int:
    return math.prod(parameter.shape) * ITEM_BYTES.get(parameter.dtype, 8)
