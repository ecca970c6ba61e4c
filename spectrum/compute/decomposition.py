"""Singular values of batches of matrices: fast from the Gram matrix, or more slowly without its loss of accuracy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spectrum.compute.workspace import gpu_columns

EPSILON = torch.finfo(torch.float64).eps
_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

# The Gram matrix is computed in bands of this many rows, which end at the diagonal, and summed over blocks of this many
# columns of the weight. On a CPU core these sizes keep the operands in its caches. A GPU needs fewer, larger products;
# its blocks have as many columns as `gpu_columns` says.
_CPU_TILE = 192, 256
_GPU_TILE = 1024

# The fewest columns that the exact method adds to its triangular factor at a time.
_MIN_FOLD = 256

# The limits of a call of cuSOLVER's batched eigensolver: it counts elements in 32 bits, and fails on 32,000 matrices or
# more (mjlab#732). torch uses it for small matrices, and from version 2.12 on for all, even single ones.
_MAX_ELEMENTS = 2**31 - 1
_MAX_MATRICES = 2**14


def exponent_of(weights: Tensor) -> Tensor:
    """Binary exponent of each matrix's largest entry: (batch, n, m) float64 -> (batch,)."""
    low, high = weights.flatten(1).aminmax(dim=1)
    exponent: Tensor = torch.frexp(torch.maximum(low.abs(), high.abs())).exponent
    return exponent


def powers_of_two(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Two float64 factors whose product is exactly `2^exponent`: integers -> two tensors of the same shape.

    A single factor could be out of range. The factors are built from their bits, because some versions of torch.ldexp
    compute the power in float32 (pytorch#133267), which overflows for exponents above 127.
    """
    half = exponent // 2
    first, second = (((part.long() + 1023) << 52).view(torch.float64) for part in (half, exponent - half))
    return first, second


def scaled(values: Tensor, exponent: Tensor) -> Tensor:
    """`values * 2^exponent`, for float64 values and integer exponents whose shapes broadcast."""
    first, second = powers_of_two(exponent)
    return values * first * second


def eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices from their lower triangles: (batch, k, k) float64 -> (batch, k) ascending.

    Raises LinAlgError if the solver does not converge, if the matrix is too large for it, or if the eigenvalues do not
    sum up to the trace: some versions of cuSOLVER return wrong ones (pytorch#192483).
    """
    elements = gram.shape[-1] ** 2
    if gram.device.type == "cuda" and elements > _MAX_ELEMENTS:
        raise _LinAlgError(f"cuSOLVER takes no matrix of {elements} elements")
    most = max(1, min(_MAX_MATRICES, _MAX_ELEMENTS // elements))
    parts = (gram[start : start + most] for start in range(0, len(gram), most))
    values = torch.cat([torch.linalg.eigvalsh(part, UPLO="L") for part in parts])
    if not torch.allclose(values.sum(1), gram.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=0):
        raise _LinAlgError("the eigenvalues do not sum up to the trace")
    return values


def _short_side_first(weights: Tensor) -> Tensor:
    """(..., n, m) -> (..., k, m), a view."""
    return weights if weights.shape[-2] <= weights.shape[-1] else weights.mT


def gram_matrix(weights: Tensor, exponent: Tensor | None) -> Tensor:
    """Lower triangle of the Gram matrix of the short side: (batch, n, m) -> (batch, k, k) float64.

    Args:
        exponent: the entries are first divided by `2^exponent`, so that their squares neither overflow nor vanish.
    """
    matrices = _short_side_first(weights)
    batch, k, length = matrices.shape
    gram = torch.zeros(batch, k, k, dtype=torch.float64, device=weights.device)
    # A CPU takes one matrix at a time: several are no faster, and are rounded differently.
    on_cpu = weights.device.type == "cpu"
    step, tile = (1, _CPU_TILE[0]) if on_cpu else (batch, _GPU_TILE)
    width = min(_CPU_TILE[1], length) if on_cpu else gpu_columns(batch, k, length)
    # One buffer serves all blocks of columns. It has the memory layout of the weight. New memory for each block would
    # take a tenth more time.
    wide = matrices is weights
    shape = (step, k, width) if wide else (step, width, k)
    buffer = torch.empty(shape, dtype=torch.float64, device=weights.device)
    buffer = buffer if wide else buffer.mT
    factors = () if exponent is None else powers_of_two(-exponent[:, None, None])
    for first in range(0, batch, step):
        some = slice(first, first + step)
        for start in range(0, length, width):
            part = matrices[some, :, start : start + width]
            columns = buffer[..., : part.shape[-1]].copy_(part)
            for factor in factors:
                columns.mul_(factor[some])
            for top in range(0, k, tile):
                bottom = min(top + tile, k)
                gram[some, top:bottom, :bottom].baddbmm_(columns[:, top:bottom], columns[:, :bottom].mT)
    return gram


def gram_error(values: Tensor, side_sum: int) -> Tensor:
    """Bound on the absolute error of singular values from a Gram matrix: (batch, k) -> (batch, k).

    Rounding moves an eigenvalue by at most about eps (8 + sqrt(n + m)) s_1^2. The square root is there because the
    rounding errors of a sum add up like a random walk (Higham and Mary, SIAM J. Sci. Comput. 41, 2019). The
    eigensolver, which is backward stable, adds a small constant. A singular value is the root of an eigenvalue, so the
    same error moves a small one further.

    Args:
        values: singular values.
        side_sum: n + m.
    """
    moved = EPSILON * (8 + math.sqrt(side_sum)) * values[:, -1:] ** 2
    squares = values**2
    return torch.maximum((squares + moved).sqrt() - values, values - (squares - moved).clamp_(min=0).sqrt())


def exact_singular_values(weight: Tensor, exponent: Tensor | None) -> Tensor:
    """Singular values with an absolute error of about eps s_1, even the small ones: (n, m) -> (k,) ascending.

    QR decompositions reduce the matrix, a block of columns at a time, to a triangular factor with the same singular
    values. This takes up to six times the memory of the Gram matrix.
    """
    matrix = _short_side_first(weight)
    k, length = matrix.shape

    def columns(start: int, stop: int) -> Tensor:
        part = matrix[:, start:stop].double()
        return part if exponent is None else scaled(part, -exponent)

    factor = columns(0, k).mT
    # On a CPU many small steps are fastest, on a GPU a few large ones. The SVD uses `gesvd` on CUDA: torch's default,
    # Jacobi's method, takes up to twice as long.
    on_gpu = weight.device.type == "cuda"
    width = max(_MIN_FOLD, k if on_gpu else k // 8)
    for start in range(k, length, width):
        stacked = torch.cat([factor, columns(start, start + width).mT])
        del factor  # to save memory: the decomposition makes its own copies
        factor = torch.linalg.qr(stacked, mode="r").R
        del stacked
    values: Tensor = torch.linalg.svdvals(factor, driver="gesvd" if on_gpu and torch.version.hip is None else None)
    return values.flip(0)
