"""START HERE: the signal-to-noise ratio (SNR) of weight matrices (arXiv:2406.06623).

Singular values above the bulk edge of the Marchenko-Pastur law are signal, all others are noise. The rules are in
`noise_scale`, `bulk_edge` and `signal_to_noise_ratio`.

Singular values come from the float64 Gram matrix of the short side. That is several times faster than an SVD, but less
accurate if singular values span many orders of magnitude. So the error is bounded for each matrix. If the SNR might not
be accurate to SNR_ACCURACY, a slower method without this loss decomposes the matrix again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spectrum.compute.decomposition import (
    EPSILON,
    eigenvalues,
    exact_singular_values,
    exponent_of,
    gram_error,
    gram_matrix,
    scaled,
)
from spectrum.records import SNR_ACCURACY

# Bump when any score changes, or when scores say more. Journals of another version are not resumed.
SCORE_VERSION = 2

NORMAL_IQR = 1.349  # interquartile range of N(0, 1)

# How far the bulk edge moves up and down to measure the score's sensitivity to it, relative to its place.
EDGE_STEP = 0.01


class Scores(NamedTuple):
    """The SNR of each matrix of a batch, and the fields of `records.BulkEdge`; all (batch,) float64."""

    snr: Tensor
    num_above: Tensor
    num_below: Tensor
    nearest: Tensor
    sensitivity: Tensor


def score(weights: Tensor) -> Scores:
    """SNR of each matrix, `signal / noise / s_1`, and how its singular values lie around the bulk edge.

    Shapes: (batch, n, m) of any floating dtype -> (batch,) float64 each, on the device of `weights`. The relative error
    of an SNR is at most SNR_ACCURACY. The SNR is NaN if the matrix holds NaN or infinity, and 0 if it is all zeros.
    """
    beta = aspect_ratio(weights.shape[1:])
    values, exponent, finite = _singular_values(weights, beta)
    scale = 1.0 if exponent is None else scaled(torch.ones_like(values[:, 0]), -exponent)
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

    All are NaN for a matrix that holds NaN or infinity.
    """
    values, exponent, finite = _singular_values(weights, aspect_ratio(weights.shape[1:]))
    if exponent is not None:
        values = scaled(values, exponent[:, None])
    return values.masked_fill_(~finite[:, None], math.nan)


def _singular_values(weights: Tensor, beta: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Scaled singular values, the exponents of their scales, and which matrices are finite.

    These are (batch, k) ascending float64, divided by `2^exponent`; (batch,) exponents, or None if none is needed; and
    (batch,) bool.
    """
    exponent = exponent_of(weights) if weights.dtype == torch.float64 else None
    gram = gram_matrix(weights, exponent)
    squares = gram.diagonal(dim1=1, dim2=2)
    finite = squares.isfinite().all(1)  # the squares of NaN and infinity are not finite either
    # A matrix of zeros (pytorch#94772) or with NaN or infinity makes cuSOLVER fail on the whole batch. The identity
    # replaces it.
    replaced = ~(finite & squares.any(1))
    gram[replaced] = 0
    squares[replaced] = 1
    values = eigenvalues(gram).clamp_(min=0).sqrt_()
    values[replaced] = 0
    del gram, squares
    error = gram_error(values, weights.shape[1] + weights.shape[2])
    uncertain = ~_is_certain(values, error, beta)
    for i in uncertain.nonzero().flatten().tolist():
        values[i] = exact_singular_values(weights[i], None if exponent is None else exponent[i])
    # Values below the threshold of the numerical rank are zeros with a rounding error, and count as zeros.
    largest = values[:, -1:]
    values = values.where(values > largest * (max(weights.shape[1:]) * EPSILON), 0)
    return values, exponent, finite


def aspect_ratio(shape: Sequence[int]) -> float:
    """`beta = min(n, m) / max(n, m)` of a matrix of shape (n, m)."""
    return min(shape) / max(shape)


def noise_scale(values: Tensor) -> Tensor:
    """Scale of the noise, `sigma = (q75 - q25) / 1.349`: of a normal distribution it is the standard deviation.

    q25 and q75 are the quartiles of the singular values, interpolated linearly. Shapes: (batch, k) ascending ->
    (batch,), in the units of the singular values.
    """
    q25, q75 = (_quantile(values, q) for q in (0.25, 0.75))
    return (q75 - q25) / NORMAL_IQR


def bulk_edge(scale: Tensor, beta: float) -> Tensor:
    """Upper edge of the Marchenko-Pastur bulk (arXiv:2406.06623): `eps = sigma (1 + sqrt(beta))`.

    sigma is the scale of the singular values, not of the entries, so the factor sqrt(max(n, m)) of textbooks is absent.
    Shapes: (batch,) -> (batch,), in the units of the singular values.

    Args:
        scale: sigma.
        beta: the aspect ratio.

    Raises ValueError if beta is outside (0, 1].
    """
    if not 0 < beta <= 1:
        raise ValueError(f"beta is an aspect ratio in (0, 1], got {beta!r}")
    return scale * (1 + math.sqrt(beta))


def signal_to_noise_ratio(values: Tensor, edge: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """`signal / noise / s_1` of each matrix: (batch, k), (batch,) -> (batch,).

    The signal is the sum of the singular values above the bulk edge, the noise is the sum of all others, and s_1 is the
    largest. A noise of 0 counts as 1, the reference's convention since April 2025. If there is no signal, as in a
    matrix of zeros, the ratio is 0.

    Args:
        values: singular values, ascending float64.
        edge: the bulk edge.
        scale: the factor by which values and edge were multiplied, (batch,) or 1.
    """
    over = values > edge[:, None]
    signal = values.where(over, 0).sum(1)
    noise = values.where(~over, 0).sum(1)
    # Signal over s_1 has no unit, so the scale matters only in the division by the noise.
    ratio = signal / values[:, -1]
    return torch.where(signal > 0, torch.where(noise > 0, ratio / noise * scale, ratio), 0)


def _is_certain(values: Tensor, error: Tensor, beta: float) -> Tensor:
    """Whether singular values with these errors give the SNR to SNR_ACCURACY: (batch, k), (batch, k) -> (batch,) bool.

    They do if no value could lie on the other side of the bulk edge, and if the errors of signal and noise are small
    relative to signal and noise.
    """
    edge = bulk_edge(noise_scale(values), beta)[:, None]
    edge_error = (_quantile_bound(error, 0.25) + _quantile_bound(error, 0.75)) / NORMAL_IQR
    edge_error = bulk_edge(edge_error, beta)[:, None]
    sides = ((values - edge).abs() > error + edge_error).all(1)
    over = values > edge
    signal, signal_error = values.where(over, 0).sum(1), error.where(over, 0).sum(1)
    noise, noise_error = values.where(~over, 0).sum(1), error.where(~over, 0).sum(1)
    small = signal_error * noise + noise_error * signal <= SNR_ACCURACY * signal * noise
    without_noise = over.all(1) & (signal_error <= SNR_ACCURACY * signal)
    return (sides & (small | without_noise)) | (values[:, -1] == 0)


def _quantile(values: Tensor, q: float) -> Tensor:
    """Quantile of ascending rows, interpolated linearly: (batch, k) -> (batch,).

    torch.quantile accepts at most 2^24 elements.
    """
    position = q * (values.shape[1] - 1)
    below, above = values[:, math.floor(position)], values[:, math.ceil(position)]
    return torch.lerp(below, above, position - math.floor(position))


def _quantile_bound(error: Tensor, q: float) -> Tensor:
    """Bound on the error of `_quantile`, from the errors of its values: (batch, k) -> (batch,)."""
    position = q * (error.shape[1] - 1)
    return torch.maximum(error[:, math.floor(position)], error[:, math.ceil(position)])
