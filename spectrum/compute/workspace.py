"""How much memory one kernel call takes. Computed from shapes alone, so that batches are planned without torch."""

from __future__ import annotations

from spectrum.dtypes import ITEM_BYTES

_FLOAT64 = ITEM_BYTES["float64"]

# A GPU sums the Gram matrix over blocks of columns, each converted to float64. A block has at most this many columns,
# and its buffer at most this many bytes.
_GPU_COLUMNS = 4096
_GPU_BUFFER = 256 << 20

# The workspace of cuSOLVER's eigensolver for a matrix of side k takes `4 k^2 + 130 k + 30000` numbers in float64, as
# measured with version 12.0.4.
_SOLVER_WORKSPACE = 4, 130, 30_000


def gpu_columns(count: int, k: int, length: int) -> int:
    """How many columns a GPU converts to float64 at a time.

    Args:
        count: matrices in the call.
        k: the short side of each.
        length: the long side of each.
    """
    return max(1, min(_GPU_COLUMNS, length, _GPU_BUFFER // (_FLOAT64 * count * k)))


def call_bytes(count: int, shape: tuple[int, int], dtype: str, *, gpu: bool) -> int:
    """Memory in bytes to score `count` matrices of one shape in one call.

    This is the stored matrices, their Gram matrices, and the working memory of the two steps, which run one after the
    other: first the buffer of columns, then the eigensolver's copy of the Gram matrices. On a GPU the solver also has
    a workspace. On the CPU, the buffer and the workspace are too small to count.
    """
    k, length = sorted(shape)
    stored = count * k * length * ITEM_BYTES[dtype]
    gram = count * k * k * _FLOAT64
    if not gpu:
        return stored + 2 * gram
    columns = count * k * gpu_columns(count, k, length) * _FLOAT64
    squared, linear, constant = _SOLVER_WORKSPACE
    solver = gram + count * (squared * k * k + linear * k + constant) * _FLOAT64
    return stored + gram + max(columns, solver)
