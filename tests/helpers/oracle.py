"""The score from NumPy's float64 SVD, which the code under test has no part in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def oracle_snr(weight: np.ndarray) -> float:
    """The contract's formula on NumPy's float64 singular values, written without the package."""
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    return _ratio(values, _bulk_edge(values, weight))


def oracle_edge(weight: np.ndarray, rank: int | None = None) -> tuple[int, int, float, float]:
    """What lies at the bulk edge, as `layers.Edge` says it: above, below, gap and jump.

    rank: how many singular values are not zeros, None for all. A decomposition has rounding errors in their place.
    """
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    values[len(values) if rank is None else rank :] = 0
    edge = _bulk_edge(values, weight)
    distances = [abs(value - edge) / max(value, edge) for value in values if max(value, edge) > 0]
    under, over = (_ratio(values, edge * factor) for factor in (0.99, 1.01))
    return (
        int((values > edge).sum()),
        int(((values > 0) & (values <= edge)).sum()),
        min(distances, default=1.0),
        (under - over) / under if under > 0 else 0.0,
    )


def _bulk_edge(values: NDArray[np.float64], weight: np.ndarray) -> float:
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    return float((three_quarters - quarter) / 1.349 * (1 + np.sqrt(min(weight.shape) / max(weight.shape))))


def _ratio(values: NDArray[np.float64], edge: float) -> float:
    signal, noise = values[values > edge], values[values <= edge].sum()
    return float(signal.sum() / (noise if noise > 0 else 1.0) / values[0]) if len(signal) else 0.0
