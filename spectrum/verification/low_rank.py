"""Do the changes have a low rank, as those have that a merged LoRA adapter makes? A few small matrices tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from spectrum.verification.compared import ComparedParameter, LowRank
from spectrum.verification.opening import OpenModel

if TYPE_CHECKING:
    import torch

_MAX_MATRICES = 4  # that are read again
_MAX_ROWS = 2048  # of a matrix that are read
_MAX_ELEMENTS = 1 << 22  # of these rows: float64 takes about fifty bytes for each of them
_MIN_SIDE = 32  # of a matrix, so that a low rank says something
_MAX_RANK = 128  # that is looked for
_MAX_SHARE_OF_SIDE = 4  # a rank of more than the short side over this is not low
_MORE_COLUMNS = 32  # of the sketch than the highest rank

# The energy of rounding is taken this many times: the base may have been rounded before it changed, and the adapter's
# product too.
_ROUNDINGS = 2.5
_MIN_SHARE = 0.9  # of the energy that has the low rank


def low_rank_changes(
    base: OpenModel, trained: OpenModel, names: Mapping[str, str], compared: Sequence[ComparedParameter]
) -> LowRank | None:
    """What the ranks of the changes have in common; None if a change is not of low rank, or if no matrix tells.

    The smallest matrices that moved are read again, one of each type, at most four.

    Args:
        base: the base.
        trained: the trained model.
        names: the trained model's name for each parameter of the base.
        compared: the parameters after the comparison.
    """
    chosen = list(_chosen(base, compared))
    precision, rank = "", 0
    for parameter in chosen:
        before = _block(base, parameter.name)
        after = _block(trained, names[parameter.name])
        found = _rank_of_change(before, after)
        if found is None:
            return None
        rank, precision = max(rank, found[0]), found[1]
    return LowRank(tuple(parameter.name for parameter in chosen), rank, precision) if chosen else None


def _chosen(base: OpenModel, compared: Sequence[ComparedParameter]) -> Iterator[ComparedParameter]:
    """The smallest matrices that moved, of different types. An input embedding may move in a few rows alone."""
    matrices = [
        parameter
        for parameter in compared
        if parameter.moved
        and math.isfinite(parameter.relative_change)
        and len(parameter.shape) == 2
        and parameter.shape == parameter.trained_shape
        and min(parameter.shape) >= _MIN_SIDE
        and parameter.name != base.info.embedding
    ]
    types = set[str]()
    for parameter in sorted(matrices, key=lambda one: one.num_elements):
        if parameter.layer_type not in types and len(types) < _MAX_MATRICES:
            types.add(parameter.layer_type)
            yield parameter


def _block(model: OpenModel, name: str) -> torch.Tensor:
    """A matrix or, of a large one, some of its rows and columns: a change of low rank has a low rank in them too."""
    rows = slice(0, min(_MAX_ROWS, model.parameters[name].shape[0]))
    value = model.values.read_part(name, rows) if model.values.reads_rows(name) else model.values.read_part(name, None)
    value = value[rows]
    return value[:, : _MAX_ELEMENTS // value.shape[0]]


def _rank_of_change(before: torch.Tensor, after: torch.Tensor) -> tuple[int, str] | None:
    """The rank of a change to the precision of what it changed, and that precision; None if it is not low.

    Random projections onto a few more vectors than the highest rank keep all of a change of low rank. Its singular
    values stand out from those of rounding errors, which are at most about sigma (sqrt(n) + sqrt(m)).
    """
    import torch

    dtype = _precision(after)
    change = after.double() - before.double()
    energy = change.square().sum().item()
    rounding = _rounding_energy(after, dtype) + energy * (torch.finfo(dtype).eps / 2) ** 2
    rows, columns = change.shape
    size = min(_MAX_RANK + _MORE_COLUMNS, rows, columns)
    random = torch.randn(columns, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(change @ random).Q
    basis = torch.linalg.qr(change @ (change.T @ basis)).Q  # once more, so that the largest values come out exact
    values = torch.linalg.svdvals(basis.T @ change)
    edge = math.sqrt(_ROUNDINGS * rounding / change.numel()) * (math.sqrt(rows) + math.sqrt(columns))
    rank = int((values > max(edge, 1e-6 * values[0].item())).sum())
    kept = values[:rank].square().sum().item()
    is_low = 0 < rank <= min(_MAX_RANK, min(rows, columns) // _MAX_SHARE_OF_SIDE)
    if not is_low or kept < _MIN_SHARE * energy:
        return None
    # A few rows or columns that moved have a low rank too, and no adapter.
    if min(int(change.any(side).sum()) for side in (0, 1)) <= 2 * rank:
        return None
    return rank, str(dtype).removeprefix("torch.")


def _precision(values: torch.Tensor) -> torch.dtype:
    """The dtype that values are rounded to: a coarser one than their own if all of them are numbers of it."""
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(values.to(dtype).to(values.dtype), values):
            return dtype
    return values.dtype


def _rounding_energy(values: torch.Tensor, dtype: torch.dtype) -> float:
    """The expected sum of the squared errors of values that were rounded to a dtype: a twelfth of squared spacings."""
    import torch

    exponents = torch.frexp(values.double()).exponent  # values are 0.5 to 1 times two to this power
    spacing = torch.finfo(dtype).eps * torch.exp2(exponents.double() - 1)
    return spacing.masked_fill(values == 0, 0.0).square().sum().item() / 12
