"""What is known of each parameter after both checkpoints are read once. Records in, records out."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ComparedParameter:
    """A parameter of the base, and what became of it.

    Args:
        name: in the base.
        layer_type: the type of its layer or, of a parameter that is no layer's weight, of its own path.
        listed: whether it was to train, under this name or that of the owner that it is tied to.
        shape: in the base.
        trained_shape: in the trained model.
        dtype: in the base, by torch's name.
        trained_dtype: in the trained model.
        is_tied: whether it is tied in the base, so that trainers see another name.
        compared: whether values were compared: the shapes are equal, or differ in the size of the vocabulary alone.
            Then the rows that both have were compared.
        is_coarser: whether values were compared, and the dtype after training lacks numbers of that before.
        moved: whether an element differs, to the last bit, in the dtype of the trained one. Of a parameter of which
            only rows were to train: whether one of these rows does.
        moved_elsewhere: whether rows differ that were not to train, while others of the parameter were.
        relative_change: the Frobenius norm of the change over that of the base; NaN if one of the two holds NaN or
            infinity, infinity if the base is all zeros.
        finite: whether the trained one has neither NaN nor infinity.
        base_finite: the same of the base; None if the trained one is finite.
        rounded_to: the dtype to which the base was rounded on the way, and is equal otherwise, so that it did not move;
            None if it was not.
    """

    name: str
    layer_type: str
    listed: bool
    shape: tuple[int, ...]
    trained_shape: tuple[int, ...]
    dtype: str
    trained_dtype: str
    is_tied: bool
    compared: bool = False
    is_coarser: bool = False
    moved: bool = False
    moved_elsewhere: bool = False
    relative_change: float = 0.0
    finite: bool = True
    base_finite: bool | None = None
    rounded_to: str | None = None

    @property
    def is_resized(self) -> bool:
        """Whether the vocabulary has another size after training."""
        return self.compared and self.shape != self.trained_shape

    @property
    def num_elements(self) -> int:
        """The number of elements in the base."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class LowRank:
    """Changes of a few matrices that all have a low rank, as those of a merged adapter do.

    Args:
        names: the matrices that were looked at.
        rank: the highest of their ranks.
        precision: the dtype to whose precision that holds.
    """

    names: tuple[str, ...]
    rank: int
    precision: str
