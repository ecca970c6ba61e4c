"""Memory that one call of the kernel takes, from shapes alone: plans are made without torch, by these numbers."""

from __future__ import annotations

_ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

# On a GPU the Gram matrix is accumulated over float64 copies of so many columns, in a buffer of at most so many bytes.
_GPU_COLUMNS = 4096
_GPU_BUFFER = 256 << 20


def gpu_columns(count: int, k: int, length: int) -> int:
    """Columns that a GPU converts to float64 at a time, of `count` matrices of short side k and long side `length`."""
    return max(1, min(_GPU_COLUMNS, length, _GPU_BUFFER // (8 * count * k)))


def call_bytes(count: int, shape: tuple[int, int], dtype: str, *, gpu: bool) -> int:
    """Memory to score `count` matrices of one shape in a call, in bytes.

    That is the matrices as stored, their Gram matrices, and the larger of what the two steps need besides: the buffer
    of columns, then the eigensolver's copy of the Gram matrices. On a GPU the solver also has a workspace, which is
    counted as one more copy; on the CPU workspace and buffer are small.
    """
    k, length = sorted(shape)
    stored = count * k * length * _ITEMSIZE[dtype]
    gram = count * 8 * k * k
    if not gpu:
        return stored + 2 * gram
    return stored + gram + max(count * 8 * k * gpu_columns(count, k, length), 2 * gram)
