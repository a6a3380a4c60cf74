"""How near generated images are to real ones and to their prompts (Tables 2 and 4), from features of any embedder.

inception = embedder("inception")  # FID and Inception score are the names for its features only
frechet_distance(inception.raw(images), inception.raw(real))
inception_score(inception.classify(inception.raw(images)))
"""

import numpy as np
from scipy import special

from .concepts import checked_probabilities
from .diversity import unit_rows
from .statistics import Estimate, mean_interval


def frechet_distance(features, reference) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features (FID: Heusel et al. 2017).

    |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), biased upwards by about 1 / n: compare at equal n only.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (features, reference))
    for name, values in (("features", a), ("reference", b)):
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all() or a.shape[-1] != b.shape[-1]:
            raise ValueError(f"{name} of shape {values.shape} must be (n, d), finite, n >= 2, of the same d")
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    a, b = ((values - values.mean(0)) / np.sqrt(len(values) - 1) for values in (a, b))
    # A rotation of the rows changes no norm: of more rows than columns the triangle of QR is enough.
    a, b = (np.linalg.qr(values, mode="r") if len(values) > values.shape[1] else values for values in (a, b))
    # tr (S_a S_b)^(1/2) is the nuclear norm of the product of the centred features: no covariance is formed.
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(mean + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))


def inception_score(probabilities, *, splits: int | None = None) -> float:
    """Return exp of the mean KL divergence of each image's class probabilities (n, class) from their mean.

    As published (Salimans et al. 2016) it is the mean over ten parts of the images in their order. None takes fewer parts where
    they would have fewer than ten images. Compare at equal n only.
    """
    p = checked_probabilities(probabilities, name="probabilities", atol=1e-4)
    splits = max(1, min(10, len(p) // 10)) if splits is None else splits
    if splits < 1 or len(p) < 2 * splits:  # one image alone scores 1, whatever it shows
        raise ValueError(f"splits={splits} must be at least 1, with two or more of the {len(p)} images in each")
    parts = [special.rel_entr(part, part.mean(axis=0)).sum(axis=1).mean() for part in np.array_split(p, splits)]
    return float(np.exp(parts).mean())


def clip_score(images, texts, *, prompts=None) -> Estimate:
    """Return 100 times the mean cosine of each image with its own prompt, with Student's t interval.

    images, texts: (n, d) features of a CLIP, row for row. With prompts (n,), mean and interval are over the prompts' means.
    """
    a, b = unit_rows(images, name="images"), unit_rows(texts, name="texts")
    if a.shape != b.shape:
        raise ValueError(f"images {a.shape}, texts {b.shape} must be of one shape, one prompt an image")
    values = 100 * (a * b).sum(axis=1)
    if prompts is not None:
        _, which = np.unique(np.asarray(prompts), return_inverse=True)
        values = np.bincount(which, values) / np.bincount(which)  # refuses another number of prompts
    return mean_interval(values)
