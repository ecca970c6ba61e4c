"""The score from NumPy's float64 SVD, which the code under test has no part in."""

from __future__ import annotations

import numpy as np


def oracle_snr(weight: np.ndarray) -> float:
    """The contract's formula on NumPy's float64 singular values, written without the package."""
    values = np.linalg.svd(weight.astype(np.float64), compute_uv=False)
    quarter, three_quarters = np.quantile(values, [0.25, 0.75])
    edge = (three_quarters - quarter) / 1.349 * (1 + np.sqrt(min(weight.shape) / max(weight.shape)))
    signal, noise = values[values > edge], values[values <= edge]
    return float(signal.sum() / (noise.sum() if len(noise) else 1.0) / values[0])
