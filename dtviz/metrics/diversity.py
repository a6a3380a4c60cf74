"""How different the samples of one prompt are (Table 3), from features (n, d), one row an image. They are normalised here.

mean_pairwise(features)  # Estimate(value=.34, low=.31, high=.37, n=100), 1 - cosine
vendi(features)  # effective number of different images
"""

import numpy as np
from scipy import special

from .statistics import Estimate, t_interval


def mean_pairwise(features) -> Estimate:
    """Return the mean of 1 - cosine over all pairs of images, with a jackknife-t interval over images.

    The value is in [0, n / (n - 1)]. The interval is nan for n = 2. docs/numbers.md gives its coverage.

    >>> mean_pairwise([[1.0, 0.0], [0.0, 2.0]]).value
    1.0
    """
    centred = unit_rows(features, name="features", least=2)
    n = len(centred)
    centred -= centred.mean(axis=0)
    # d_ij = |f_i - f_j|^2 / 2 for unit rows; summed over j about the mean this needs no n x n matrix and no 1 - cos.
    squares = np.einsum("ij,ij->i", centred, centred)
    rows = (n * squares + squares.sum()) / 2
    total = rows.sum()
    value = float(total / (n * (n - 1)))
    if n == 2:
        return Estimate(value, np.nan, np.nan, n)
    without = (total - 2 * rows) / ((n - 1) * (n - 2))  # the value without each image
    error = np.sqrt((n - 1) / n * ((without - value) ** 2).sum())
    return t_interval(value, error, n)


def vendi(features, *, q: float = 2) -> float:
    """Return the Vendi score exp H_q(eigenvalues of K / n), K the cosines: the effective number of images, 1 to n.

    Compare at equal n only (Friedman & Dieng 2023, Pasarkar & Dieng 2024). q is the order, above 0: 1 is Shannon's entropy.

    >>> vendi([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    2.0
    """
    if not 0 < q < np.inf:
        raise ValueError(f"q = {q} must be a finite number above 0")
    rows = unit_rows(features, name="features")
    n, d = rows.shape
    gram = (rows @ rows.T if n <= d else rows.T @ rows) / n  # the same eigenvalues but for zeros
    if q == 2:
        return float(1 / (gram**2).sum())
    weights = np.linalg.eigvalsh(gram)
    weights = weights[weights > weights[-1] * max(n, d) * np.finfo(float).eps]  # rounding would count when q < 1
    weights /= weights.sum()
    if abs(q - 1) < 1e-8:  # the general formula is 0 / 0 here
        return float(np.exp(special.entr(weights).sum()))
    return float(np.exp(special.logsumexp(q * np.log(weights)) / (1 - q)))


def entropy(labels) -> float:
    """Return the Shannon entropy of labels (n,) in nats, with Miller's (1955) correction + (modes - 1) / (2 n)."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iuU":
        raise ValueError(f"labels {labels.shape} of type {labels.dtype} must be (n,) integers or strings, one a sample")
    counts = np.unique(labels, return_counts=True)[1]
    return float(special.entr(counts / counts.sum()).sum() + (len(counts) - 1) / (2 * counts.sum()))


def unit_rows(features, *, name: str, least: int = 1, ndim: int = 2) -> np.ndarray:
    """Return a copy of features (n, d), or with ndim=3 (step, n, d), as float64 rows of length 1."""
    features = np.array(features, dtype=np.float64)
    fits = features.ndim == ndim and features.size and len(features) >= least
    norm = np.sqrt(np.einsum("...j,...j->...", features, features))[..., None] if fits else np.zeros(1)
    if not np.isfinite(norm).all() or (norm == 0).any():
        shape = "(step, n, d)" if ndim == 3 else f"(n, d), n >= {least}"
        raise ValueError(f"{name} of shape {features.shape} must be {shape}, with finite nonzero rows")
    features /= norm  # in place: of 30,000 images nothing is held twice
    return features
