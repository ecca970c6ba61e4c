"""Two parts of one parameter, before and after training: does an element differ, how far, is each of them finite?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import torch

# Elements that are compared in another dtype at once: they stay in the processor's cache.
_CHUNK = 1 << 18

_FIRST = 1 << 10  # elements that are compared first, since most vectors that differ do so everywhere

_TINY = 1e-30  # a sum of squares below this may have lost some of them in float32

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of an element

_ROUNDED = (torch.bfloat16, torch.float16)  # in which models are loaded to train


@dataclass(frozen=True, slots=True)
class PartComparison:
    """The comparison of two parts.

    Args:
        moved: whether an element differs, to the last bit.
        finite: whether the trained part has neither NaN nor infinity.
        base_finite: the same of the base's part; None if it does not matter, since the trained part is finite.
        squared_change: the sum of the squares of the differences.
        squared_norm: the sum of the squares of the base's elements; 0 if it does not matter, since nothing moved.
        rounded_to: those of the dtypes asked for that the base has only to be rounded to, to be equal.
    """

    moved: bool
    finite: bool
    base_finite: bool | None
    squared_change: float
    squared_norm: float
    rounded_to: frozenset[torch.dtype]


def holds_all(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Whether a dtype has every number of another one."""
    return dtype == other or torch.promote_types(dtype, other) == dtype


def rounded_on_the_way(base: torch.dtype, trained: torch.dtype) -> frozenset[torch.dtype]:
    """The dtypes that values may have been rounded to, between a base and a trained checkpoint of these dtypes."""
    if not (base.is_floating_point and trained.is_floating_point):
        return frozenset()
    return frozenset(dtype for dtype in _ROUNDED if not holds_all(dtype, base) and dtype != trained)


def compare(
    base: torch.Tensor,
    trained: torch.Tensor,
    rounded_to: frozenset[torch.dtype] = frozenset(),
    *,
    is_whole: bool = False,
) -> PartComparison:
    """Compare two parts of the same shape, in the dtype of the trained one.

    That is exact if this dtype has every number of the base's. Otherwise the base's part is rounded to it.

    Args:
        base: of any shape and dtype, on the CPU.
        trained: the same part after training.
        rounded_to: the dtypes that the base's part may have been rounded to on the way.
        is_whole: whether the parts are all of the parameter.
    """
    base, trained = base.detach().reshape(-1), trained.detach().reshape(-1)
    moved = not _are_equal(base, trained)
    finite = is_finite(trained)
    base_finite = None if finite else is_finite(base)
    change, norm = 0.0, 0.0
    if moved or not is_whole:
        change, norm = _squares(base, trained if moved else None)
    equal = frozenset(dtype for dtype in rounded_to if not moved or _are_equal(base, trained, dtype))
    return PartComparison(moved, finite, base_finite, change, norm, equal)


def moved_rows(base: torch.Tensor, trained: torch.Tensor, rounded_to: frozenset[torch.dtype]) -> list[bool]:
    """For each row, or element of the first dimension, whether it differs, and not only by rounding.

    The arguments are those of `compare`.
    """
    rows = base.shape[0]
    after = _bits(trained.detach().reshape(rows, -1))
    moved = torch.ones(rows, dtype=torch.bool)
    for before in (base.detach(), *(base.detach().to(dtype) for dtype in rounded_to)):
        moved &= torch.ne(_bits(before.to(trained.dtype).reshape(rows, -1)), after).any(1)
    different: list[bool] = moved.tolist()
    return different


def _are_equal(base: torch.Tensor, trained: torch.Tensor, rounded_to: torch.dtype | None = None) -> bool:
    """Whether two vectors have the same bits in the dtype of the second. rounded_to: the first is rounded to it first.

    The same NaN is equal to itself, and 0 differs from -0.
    """
    if base.dtype == trained.dtype and rounded_to is None:
        return torch.equal(_words(base), _words(trained))
    first = base[:_FIRST], trained[:_FIRST]
    return all(
        torch.equal(_bits((one if rounded_to is None else one.to(rounded_to)).to(trained.dtype)), _bits(other))
        for one, other in chain([first], _chunks(base, trained))
    )


def _words(vector: torch.Tensor) -> torch.Tensor:
    """A vector as integers of eight bytes, which are compared fastest; as of `_bits` if its length is no multiple."""
    size = vector.element_size()
    if vector.numel() * size % 8 or vector.storage_offset() * size % 8 or vector.is_complex():
        return _bits(vector)
    return vector.view(torch.int64)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Values as integers of the same bits."""
    values = torch.view_as_real(values) if values.is_complex() else values
    return values.view(_INTEGERS[values.element_size()])


def is_finite(vector: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. The extremes tell: they are NaN if an element is."""
    if vector.numel() == 0 or not vector.is_floating_point():
        return True
    if vector.element_size() == 1:  # torch finds no extremes of these
        vector = vector.float()
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(vector))


def _squares(base: torch.Tensor, trained: torch.Tensor | None) -> tuple[float, float]:
    """The squared norms of the change of a vector, 0 without a trained one, and of the vector itself.

    They are relative to 1e-5. Squares that float32 cannot hold are summed in float64.
    """
    if base.dtype not in (torch.float64, torch.int64):
        change, norm = _sums(base, trained, torch.float32)
        # A change is there, so 0 is wrong. NaN and infinity may also come of an overflow.
        if (trained is None or _TINY < change < float("inf")) and (_TINY < norm < float("inf") or norm == 0.0):
            return change, norm
    return _sums(base, trained, torch.float64)


def _sums(base: torch.Tensor, trained: torch.Tensor | None, dtype: torch.dtype) -> tuple[float, float]:
    """The sums of `_squares`, where those of each chunk are of a dtype."""
    change, norm = 0.0, 0.0
    own, other = (torch.empty(min(base.numel(), _CHUNK), dtype=dtype) for _ in range(2))
    for one, after in _chunks(base, base if trained is None else trained):
        before = own[: one.numel()].copy_(one if trained is None else one.to(after.dtype))
        norm += torch.dot(before, before).item()
        if trained is not None:
            difference = other[: one.numel()].copy_(after).sub_(before)
            change += torch.dot(difference, difference).item()
    return change, norm


def _chunks(base: torch.Tensor, trained: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, base.numel(), _CHUNK):
        yield base[start : start + _CHUNK], trained[start : start + _CHUNK]
