"""How near generated images are to real ones and to their prompts (Tables 2 and 4), from features of any embedder.

    inception, clip = embedder("inception"), embedder("clip:openai/clip-vit-large-patch14")
    frechet_distance(inception.raw(images), inception.raw(real))            # FID
    inception_score(inception.classify(inception.raw(images)))              # Inception score
    clip_score(clip(images), clip.text(prompts), prompts=prompts)           # CLIP score, with its interval

These equal torchmetrics on the same features. FID and Inception score are the names for Inception-v3's features only.
Every function raises ValueError for shapes that do not fit, values that are not finite, and rows of length zero.
"""

import numpy as np
from scipy import special

from .statistics import Estimate, mean_interval


def frechet_distance(features, reference) -> float:
    """Return the Fréchet distance between Gaussians fitted to two sets of features (FID: Heusel et al. 2017).

    |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), biased upwards by about 1 / n: compare at equal n only.
    features, reference: (n, d) and (m, d), at least two rows each.

    >>> frechet_distance([[0.0], [2.0]], [[1.0], [3.0]])
    1.0
    """
    a, b = _feature_pair(features, reference, least=2)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    a, b = ((values - values.mean(0)) / np.sqrt(len(values) - 1) for values in (a, b))
    # A rotation of the rows changes no norm: of more rows than columns the triangle of QR is enough.
    a, b = (np.linalg.qr(values, mode="r") if len(values) > values.shape[1] else values for values in (a, b))
    # tr (S_a S_b)^(1/2) is the nuclear norm of the product of the centred features: no covariance is formed.
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(mean + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))


def inception_score(probabilities, *, splits: int = 10) -> float:
    """Return exp of the mean KL divergence of each image's class probabilities from their mean (Salimans et al. 2016).

    As published it is the mean over `splits` parts of the images in their order. It grows with the number of images.
    probabilities: (n, classes), rows add up to 1. The result is from 1 (all alike, or undecided) to the number of classes.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not p.size or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1, atol=1e-4):
        raise ValueError(f"probabilities of shape {p.shape} must be (n, classes), 0 or above, each row adding up to 1")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits = {splits} must be from 1 to the number of images, {len(p)}")
    parts = [special.rel_entr(part, part.mean(axis=0)).sum(axis=1).mean() for part in np.array_split(p, splits)]
    return float(np.exp(parts).mean())


def clip_score(images, texts, *, prompts=None, confidence: float = 0.95) -> Estimate:
    """Return 100 times the mean cosine of each image with its own prompt, with Student's t interval.

    Hessel et al. (2021) scale by 2.5 and cut at 0. Tables of generated images, and this function, scale by 100.
    images, texts: (n, d) features of a CLIP, row for row. prompts: (n,) the prompt of each image, for mean and interval
    over the prompts' means.
    """
    a, b = _feature_pair(images, texts, least=1)
    if len(a) != len(b) or not (a.any(axis=1).all() and b.any(axis=1).all()):
        raise ValueError(f"images {a.shape}, texts {b.shape} must have as many rows, one prompt an image, none zero")
    values = 100 * (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    if prompts is not None:
        if len(prompts) != len(a):
            raise ValueError(f"prompts has {len(prompts)} entries for {len(a)} images")
        _, which = np.unique(np.asarray(prompts), return_inverse=True)
        values = np.bincount(which, values) / np.bincount(which)
    return mean_interval(values, confidence=confidence)


def _feature_pair(features, reference, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(values, dtype=np.float64) for values in (features, reference))
    for name, values in (("features", a), ("reference", b)):
        if values.ndim != 2 or len(values) < least or not np.isfinite(values).all() or a.shape[-1] != b.shape[-1]:
            raise ValueError(f"{name} of shape {values.shape} must be (n, d), finite, n >= {least}, of the same d")
    return a, b
