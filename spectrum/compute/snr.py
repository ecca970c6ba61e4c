"""Signal-to-noise ratio of weight matrices above the Marchenko-Pastur bulk edge (arXiv:2406.06623).

Singular values come from the float64 Gram matrix of the short side, which is several times faster than an SVD and
loses accuracy only where singular values span many orders of magnitude. Each matrix's loss is bounded, and those
that could miss SNR_ACCURACY are decomposed anew by a method that has no such loss.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spectrum.compute.workspace import gpu_columns
from spectrum.records import SNR_ACCURACY

NORMAL_IQR = 1.349  # interquartile range of N(0, 1)

# How far the edge is moved, either way, to see how much of a score hangs on where it lies.
EDGE_STEP = 0.01
_EPSILON = torch.finfo(torch.float64).eps
_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

# The Gram matrix is accumulated by tiles, of so many of its rows, over so many columns of the matrix. A tile's row ends
# at the diagonal. On one CPU core these keep the operands in its caches; a GPU wants fewer, larger products, and its
# columns are as many as their buffer has room for.
_CPU_TILE = 192, 256
_GPU_TILE = 1024

# Columns folded at a time by the exact method, at least.
_MIN_FOLD = 256

# What cuSOLVER's batched eigensolver takes in one call: it counts elements in 32 bits, and fails on 32,000 matrices or
# more (mjlab#732). torch uses it for small matrices, and from 2.12 on for all, single ones too.
_MOST_ELEMENTS = 2**31 - 1
_MOST_MATRICES = 2**14


class Scores(NamedTuple):
    """What is known of each matrix: (batch,) float64 each. All but `snr` are as in `records.BulkEdge`."""

    snr: Tensor
    num_above: Tensor
    num_below: Tensor
    nearest: Tensor
    sensitivity: Tensor


def score(weights: Tensor) -> Scores:
    """SNR of each matrix, `signal / noise / s_1`, and what lies at its bulk edge.

    Shapes: (batch, n, m) of any floating dtype -> (batch,) float64, on the device of `weights`. Relative error of an
    SNR at most SNR_ACCURACY. NaN where a matrix holds NaN or infinity; 0 for a matrix of zeros.
    """
    beta = min(weights.shape[1:]) / max(weights.shape[1:])
    values, exponent, finite = _singular_values(weights, beta)
    scale = 1.0 if exponent is None else _scaled(torch.ones_like(values[:, 0]), -exponent)
    edge = bulk_edge(noise_scale(values), beta)
    steps = (0, -EDGE_STEP, EDGE_STEP)
    ratios = torch.stack([signal_to_noise_ratio(values, edge * (1 + step), scale) for step in steps])
    low, high = ratios.aminmax(dim=0)
    over = values > edge[:, None]
    return Scores(
        snr=ratios[0].masked_fill(~finite, math.nan),
        num_above=over.sum(1).double(),
        num_below=((values > 0) & ~over).sum(1).double(),
        nearest=((values - edge[:, None]).abs() / torch.maximum(values, edge[:, None])).nan_to_num_(1.0).amin(1),
        sensitivity=torch.where(high > 0, (high - low) / high, 0.0),
    )


def singular_values(weights: Tensor) -> Tensor:
    """Singular values of each matrix: (batch, n, m) of any floating dtype -> (batch, k) ascending float64.

    NaN throughout where a matrix holds NaN or infinity.
    """
    beta = min(weights.shape[1:]) / max(weights.shape[1:])
    values, exponent, finite = _singular_values(weights, beta)
    if exponent is not None:
        values = _scaled(values, exponent[:, None])
    return values.masked_fill_(~finite[:, None], math.nan)


def _singular_values(weights: Tensor, beta: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Singular values, ascending, the powers of two that they are divided by, and whether the matrix is finite."""
    exponent = _exponent(weights) if weights.dtype == torch.float64 else None
    gram = _gram(weights, exponent)
    squares = gram.diagonal(dim1=1, dim2=2)
    finite = squares.isfinite().all(1)  # squares of what is not finite are not, either
    # cuSOLVER fails on zeros (pytorch#94772) and on what is not finite, and so does the rest of the batch. It gets the
    # identity instead.
    replaced = ~(finite & squares.any(1))
    gram[replaced] = 0
    squares[replaced] = 1
    values = _eigenvalues(gram).clamp_(min=0).sqrt_()
    values[replaced] = 0
    del gram, squares
    error = _gram_error(values, weights.shape[1] + weights.shape[2])
    uncertain = ~_is_certain(values, error, beta)
    for i in uncertain.nonzero().flatten().tolist():
        values[i] = _exact_singular_values(weights[i], None if exponent is None else exponent[i])
    # Values under the numerical rank's threshold are the rounding errors of zeros, and count as zeros.
    largest = values[:, -1:]
    values = values.where(values > largest * (max(weights.shape[1:]) * _EPSILON), 0)
    return values, exponent, finite


def noise_scale(values: Tensor) -> Tensor:
    """Scale of the noise among the singular values: `sigma = (q75 - q25) / 1.349`, as of a normal distribution.

    Quantiles are interpolated linearly. Shapes: (batch, k) ascending -> (batch,), same units.
    """
    q25, q75 = (_quantile(values, q) for q in (0.25, 0.75))
    return (q75 - q25) / NORMAL_IQR


def bulk_edge(scale: Tensor, beta: float) -> Tensor:
    """Upper edge of the Marchenko-Pastur bulk, in singular-value units: `eps = sigma (1 + sqrt(beta))`.

    beta = min(n, m) / max(n, m), arXiv:2406.06623. sigma is the scale of the singular values, not of the entries,
    so the factor sqrt(max(n, m)) of the textbooks is absent. Shapes: (batch,) -> (batch,). Raises ValueError if beta
    is outside (0, 1].
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta is an aspect ratio in (0, 1], got {beta!r}")
    return scale * (1 + math.sqrt(beta))


def signal_to_noise_ratio(values: Tensor, edge: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """`signal / noise / s_1`, where signal sums the singular values over the bulk edge, noise the others.

    Without noise it counts as 1, the reference's convention since April 2025. Without signal, as for a matrix of
    zeros, 0. Shapes: (batch, k) ascending float64, (batch,) -> (batch,). scale: what values and edge were multiplied
    by, (batch,) or 1.
    """
    over = values > edge[:, None]
    signal = values.where(over, 0).sum(1)
    noise = values.where(~over, 0).sum(1)
    # Signal over s_1 has no unit, so that only the division by noise, where there is some, takes the scale back out.
    ratio = signal / values[:, -1]
    return torch.where(signal > 0, torch.where(noise > 0, ratio / noise * scale, ratio), 0)


def _exponent(weights: Tensor) -> Tensor:
    """Binary exponent of each matrix's largest entry: (batch, n, m) float64 -> (batch,)."""
    low, high = weights.flatten(1).aminmax(dim=1)
    exponent: Tensor = torch.frexp(torch.maximum(low.abs(), high.abs())).exponent
    return exponent


def _powers_of_two(exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Two float64 factors whose product is `2^exponent`, exactly: integers -> two tensors of the same shape.

    A single factor could be out of range. The factors are made from their bits: some versions of torch.ldexp compute
    the power in float32 (pytorch#133267), which overflows beyond 127.
    """
    half = exponent // 2
    first, second = (((part.long() + 1023) << 52).view(torch.float64) for part in (half, exponent - half))
    return first, second


def _scaled(values: Tensor, exponent: Tensor) -> Tensor:
    """`values * 2^exponent`: float64, and integers of a shape that broadcasts to it."""
    first, second = _powers_of_two(exponent)
    return values * first * second


def _eigenvalues(gram: Tensor) -> Tensor:
    """Eigenvalues of symmetric matrices by their lower triangles: (batch, k, k) float64 -> (batch, k) ascending.

    Raises LinAlgError where the solver does not converge, or cannot take so large a matrix, and where the sum of the
    values is not the matrix's trace: some versions of cuSOLVER return wrong ones (pytorch#192483).
    """
    elements = gram.shape[-1] ** 2
    if gram.device.type == "cuda" and elements > _MOST_ELEMENTS:
        raise _LinAlgError(f"cuSOLVER takes no matrix of {elements} elements")
    most = max(1, min(_MOST_MATRICES, _MOST_ELEMENTS // elements))
    parts = (gram[start : start + most] for start in range(0, len(gram), most))
    values = torch.cat([torch.linalg.eigvalsh(part, UPLO="L") for part in parts])
    if not torch.allclose(values.sum(1), gram.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10, atol=0):
        raise _LinAlgError("the eigenvalues do not sum up to the trace")
    return values


def _short_side_first(weights: Tensor) -> Tensor:
    return weights if weights.shape[-2] <= weights.shape[-1] else weights.mT


def _gram(weights: Tensor, exponent: Tensor | None) -> Tensor:
    """Lower triangle of the Gram matrix of the short side: (batch, n, m) -> (batch, k, k) float64.

    exponent: powers of two that the entries are divided by, to where their squares neither overflow nor vanish.
    """
    matrices = _short_side_first(weights)
    batch, k, length = matrices.shape
    gram = torch.zeros(batch, k, k, dtype=torch.float64, device=weights.device)
    # A CPU gains nothing by products of several matrices at a time, and rounds them otherwise than one by one.
    on_cpu = weights.device.type == "cpu"
    step, tile = (1, _CPU_TILE[0]) if on_cpu else (batch, _GPU_TILE)
    width = min(_CPU_TILE[1], length) if on_cpu else gpu_columns(batch, k, length)
    # One buffer for all columns, in the order in which they are stored: new memory for each would cost a tenth.
    wide = matrices is weights
    shape = (step, k, width) if wide else (step, width, k)
    buffer = torch.empty(shape, dtype=torch.float64, device=weights.device)
    buffer = buffer if wide else buffer.mT
    factors = () if exponent is None else _powers_of_two(-exponent[:, None, None])
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


def _gram_error(values: Tensor, side_sum: int) -> Tensor:
    """Bound on the absolute error of singular values from a Gram matrix: (batch, k) -> (batch, k).

    Rounding moves an eigenvalue by up to about eps (8 + sqrt(n + m)) s_1^2: sums of length m round like random walks
    (Higham and Mary, SIAM J. Sci. Comput. 41, 2019), and the eigensolver is backward stable, with a small factor of
    its own. A singular value is its root, so a small one moves the more.
    """
    moved = _EPSILON * (8 + math.sqrt(side_sum)) * values[:, -1:] ** 2
    squares = values**2
    return torch.maximum((squares + moved).sqrt() - values, values - (squares - moved).clamp_(min=0).sqrt())


def _is_certain(values: Tensor, error: Tensor, beta: float) -> Tensor:
    """Whether singular values with such errors give the SNR to within SNR_ACCURACY: (batch, k) twice -> (batch,) bool.

    So they do if no value could lie on the other side of the bulk edge, and the errors within signal and noise are
    small beside these sums.
    """
    edge = bulk_edge(noise_scale(values), beta)[:, None]
    edge_error = (_quantile(error, 0.25, like=values) + _quantile(error, 0.75, like=values)) / NORMAL_IQR
    edge_error = bulk_edge(edge_error, beta)[:, None]
    sides = ((values - edge).abs() > error + edge_error).all(1)
    over = values > edge
    signal, signal_error = values.where(over, 0).sum(1), error.where(over, 0).sum(1)
    noise, noise_error = values.where(~over, 0).sum(1), error.where(~over, 0).sum(1)
    small = signal_error * noise + noise_error * signal <= SNR_ACCURACY * signal * noise
    without_noise = over.all(1) & (signal_error <= SNR_ACCURACY * signal)
    return (sides & (small | without_noise)) | (values[:, -1] == 0)


def _exact_singular_values(weight: Tensor, exponent: Tensor | None) -> Tensor:
    """Singular values with an error of about eps s_1, the small ones too: (n, m) -> (k,) ascending.

    The long side is folded into a triangular factor, some columns at a time, and only that is decomposed. This takes
    up to six times the memory of the Gram matrix.
    """
    matrix = _short_side_first(weight)
    k, length = matrix.shape

    def columns(start: int, stop: int) -> Tensor:
        part = matrix[:, start:stop].double()
        return part if exponent is None else _scaled(part, -exponent)

    factor = columns(0, k).mT
    # Many small folds cost a CPU the least, few large ones a GPU. torch's default on CUDA is Jacobi's method, which
    # takes minutes where `gesvd` takes seconds.
    on_gpu = weight.device.type == "cuda"
    width = max(_MIN_FOLD, k if on_gpu else k // 8)
    for start in range(k, length, width):
        stacked = torch.cat([factor, columns(start, start + width).mT])
        del factor  # the decomposition makes copies of its own
        factor = torch.linalg.qr(stacked, mode="r").R
        del stacked
    values: Tensor = torch.linalg.svdvals(factor, driver="gesvd" if on_gpu and torch.version.hip is None else None)
    return values.flip(0)


def _quantile(values: Tensor, q: float, like: Tensor | None = None) -> Tensor:
    """Linearly interpolated quantile of ascending rows; torch.quantile takes 16 million elements at most.

    With `like`, the larger of the two elements that the quantile of `like` lies between: a bound, not a value.
    """
    position = q * (values.shape[1] - 1)
    below, above = values[:, math.floor(position)], values[:, math.ceil(position)]
    if like is not None:
        return torch.maximum(below, above)
    return torch.lerp(below, above, position - math.floor(position))
