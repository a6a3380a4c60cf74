"""How near generated images are to real ones, from their features.

distance = frechet_distance(features, real_features)       # FD; with Inception's features it would be called FID
"""

from __future__ import annotations

import numpy as np


def frechet_distance(features, reference) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (Dowson and Landau 1982).

    |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); the last trace is the nuclear norm of the product of the centred
    features, so that no covariance is ever formed. The name of the features belongs to the number: with another
    network than Inception-v3 it is not an FID. Biased upwards at small n: compare only at equal n.

    Args:
        features, reference: (n, d) and (m, d), at least two rows each.

    Returns:
        0 for equal sets, else positive; in squared units of the features.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    >>> frechet_distance([[0.0], [2.0]], [[1.0], [3.0]])
    1.0
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (features, reference))
    for name, values in (("features", a), ("reference", b)):
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all() or a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"{name} of shape {values.shape} must be (n, d) finite numbers, n >= 2, d the same for both"
            )
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    a, b = ((values - values.mean(0)) / np.sqrt(len(values) - 1) for values in (a, b))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(mean + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))
