"""How near generated images are to real ones, and to their prompts, from their features (Tables 2 and 4).

    frechet_distance(features, real_features)       # FD; of Inception-v3's features it is called FID
    kernel_distance(features, real_features)        # of Inception-v3's features: KID, with its interval
    clip_score(image_features, text_features)       # 100 cosine, with its interval

Arrays in, numbers out; which network, resize and number of images made the features is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import special

from .estimate import Estimate, mean_interval, t_interval

BLOCK = 512  # rows compared at once with all others: 120 MB for 30,000


@dataclass(frozen=True)
class Neighbours:
    """Shares of samples near the reference, of reference near the samples, and their densities; see `neighbours`."""

    precision: float
    recall: float
    density: float
    coverage: float


def frechet_distance(features, reference) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (Dowson and Landau 1982; FID: Heusel et al. 2017).

    |mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2)); the last trace is the nuclear norm of the product of the centred
    features, so that no covariance is ever formed. The name of the features belongs to the number: with another
    network than Inception-v3 it is not an FID. Biased upwards by about 1 / n, much at small n: compare only at equal n.

    Args:
        features, reference: (n, d) and (m, d), at least two rows each.

    Returns:
        0 for equal sets, else positive; in squared units of the features.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    >>> frechet_distance([[0.0], [2.0]], [[1.0], [3.0]])
    1.0
    """
    a, b = _sets(features, reference, least=2)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    a, b = ((values - values.mean(0)) / np.sqrt(len(values) - 1) for values in (a, b))
    # A rotation of the rows changes no norm: of more rows than columns the triangle of QR is enough.
    a, b = (np.linalg.qr(values, mode="r") if len(values) > values.shape[1] else values for values in (a, b))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(max(mean + (a**2).sum() + (b**2).sum() - 2 * cross, 0.0))


def kernel_distance(features, reference, *, confidence: float = 0.95) -> Estimate:
    """Squared maximum mean discrepancy with the kernel (x·y / d + 1)³, unbiased, over all pairs (Bińkowski et al. 2018).

    Of Inception-v3's features it is the KID. The usual mean over subsets of 1,000 has the same expectation and more
    variance. The interval is a two-sample jackknife-t with Welch's degrees of freedom; it says where the distance of two
    different distributions lies, and is no test of their being equal, where the statistic is not near normal.

    Args:
        features, reference: (n, d) and (m, d), at least three rows each.
        confidence: of the interval.

    Returns:
        An Estimate with n the number of samples; the value may be a little below 0.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    >>> round(kernel_distance([[0.0], [1.0], [2.0]], [[3.0], [4.0], [5.0]]).value, 6)
    4569.666667
    """
    a, b = _sets(features, reference, least=3)
    d = a.shape[1]

    def sums(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.concatenate([((part @ y.T / d + 1) ** 3).sum(axis=1) for part in _parts(x)])

    n, m = len(a), len(b)
    own = [sums(x, x) - ((x**2).sum(axis=1) / d + 1) ** 3 for x in (a, b)]  # without each row's pair with itself
    across = [sums(a, b), sums(b, a)]
    cross = across[0].sum()
    terms = [rows.sum() / (k * (k - 1)) for rows, k in zip(own, (n, m), strict=True)]
    value = float(terms[0] + terms[1] - 2 * cross / (n * m))
    variances = []
    for rows, column, k, other in ((own[0], across[0], n, m), (own[1], across[1], m, n)):
        # the value without each row in turn; the other set's own term stays, so it does not count
        without = (rows.sum() - 2 * rows) / ((k - 1) * (k - 2)) - 2 * (cross - column) / ((k - 1) * other)
        variances.append((k - 1) / k * ((without - without.mean()) ** 2).sum())
    total = sum(variances)
    spread = variances[0] ** 2 / (n - 1) + variances[1] ** 2 / (m - 1)
    return t_interval(value, np.sqrt(total), n, confidence, freedom=total**2 / spread if spread > 0 else None)


def cmmd(features, reference, *, sigma: float = 10.0) -> float:
    """1000 times the squared maximum mean discrepancy with the kernel exp(-|x - y|² / (2 sigma²)) (Jayasumana et al. 2024).

    As published each row's pair with itself counts, so that it is never negative and has a bias of order 1 / n. It is the
    CMMD of unit-length features of CLIP ViT-L/14 at 336 px; of other features the name does not belong to it.

    Args:
        features, reference: (n, d) and (m, d), at least two rows each.
        sigma: the kernel's width, above 0.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, or sigma is not above 0.

    >>> round(cmmd([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]), 4)
    19.9003
    """
    if not sigma > 0:
        raise ValueError(f"sigma = {sigma} must be above 0; 10 is the published width for unit-length features")
    a, b = _sets(features, reference, least=2)

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return sum(np.exp(-square / (2 * sigma**2)).sum() for square in _squares(x, y)) / (len(x) * len(y))

    return float(1000 * max(mean(a, a) + mean(b, b) - 2 * mean(a, b), 0.0))


def inception_score(probabilities, *, splits: int = 10) -> float:
    """exp of the mean KL divergence of each image's class probabilities from their mean (Salimans et al. 2016).

    It is the Inception score of Inception-v3's probabilities. As published it is the mean over `splits` parts of the
    images in their order; it grows with the images a part has, so compare at equal numbers. The deviation over parts,
    which is often printed beside it, is not an interval for it.

    Args:
        probabilities: (n, classes), each row adding up to 1.
        splits: parts, 1 to n.

    Returns:
        1 (all images alike, or undecided) to the number of classes.

    Raises:
        ValueError: rows that are no probabilities, or more parts than images.

    >>> inception_score([[1.0, 0.0], [0.0, 1.0]], splits=1)
    2.0
    """
    p = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 2 or not p.size or not (p >= 0).all() or not np.allclose(p.sum(axis=1), 1, atol=1e-4):
        raise ValueError(f"probabilities of shape {p.shape} must be (n, classes), 0 or above, each row adding up to 1")
    if not 1 <= splits <= len(p):
        raise ValueError(f"splits = {splits} must be from 1 to the number of images, {len(p)}")
    parts = [special.rel_entr(part, part.mean(axis=0)).sum(axis=1).mean() for part in np.array_split(p, splits)]
    return float(np.exp(parts).mean())


def clip_score(images, texts, *, prompts=None, confidence: float = 0.95) -> Estimate:
    """100 times the mean cosine of each image with its own prompt, with Student's t interval over images, or over prompts.

    images, texts: (n, d) features of a CLIP, row for row. prompts: (n,) which prompt each image is of; the mean is then of the
    prompts' means, since images of one prompt are not independent. The name of the CLIP belongs to the number. Hessel et al. (2021)
    scale by 2.5 and cut at 0 where this, as is common in tables of generated images, scales by 100.

    Raises:
        ValueError: the shapes differ, a row is zero, or a number is not finite.

    >>> clip_score([[1.0, 0.0]], [[3.0, 4.0]]).value
    60.0
    """
    a, b = _sets(images, texts, least=1)
    if len(a) != len(b) or not (a.any(axis=1).all() and b.any(axis=1).all()):
        raise ValueError(
            f"images {a.shape} and texts {b.shape} must have equal rows, one prompt an image, none of them 0"
        )
    values = 100 * (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    if prompts is not None:
        if len(prompts) != len(a):
            raise ValueError(f"prompts has {len(prompts)} entries for {len(a)} images")
        _, which = np.unique(np.asarray(prompts), return_inverse=True)
        values = np.bincount(which, values) / np.bincount(which)
    return mean_interval(values, confidence=confidence)


def neighbours(features, reference, *, k: int = 5) -> Neighbours:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020) of samples.

    Each reference image has a ball up to, not including, its k-th nearest other. precision: the share of samples in any
    ball; density: how many balls hold a sample, over k; coverage: the share of balls that hold a sample. recall: the share
    of reference images in a ball of any sample. A few outliers among the samples inflate recall; coverage does not mind.

    Args:
        features, reference: (n, d) and (m, d), more than k rows each.
        k: 5, as Naeem et al.; 3 in Kynkäänniemi et al.

    Raises:
        ValueError: the shapes do not fit, a number is not finite, or k is not from 1 to rows - 1.

    >>> neighbours([[0.0], [1.5]], [[0.0], [1.0], [9.0]], k=1)
    Neighbours(precision=1.0, recall=0.6666666666666666, density=1.5, coverage=1.0)
    """
    a, b = _sets(features, reference, least=2)
    if not 1 <= k < min(len(a), len(b)):
        raise ValueError(
            f"k = {k} must be from 1 to {min(len(a), len(b)) - 1}, one less than the rows of the smaller set"
        )
    # the smallest of each row is its distance to itself
    of_a, of_b = (np.concatenate([np.partition(s, k, axis=1)[:, k] for s in _squares(x, x)]) for x in (a, b))
    nearest, held, recalled, done = np.full(len(b), np.inf), [], np.zeros(len(b), dtype=bool), 0
    for square in _squares(a, b):
        held.append((square < of_b).sum(axis=1))
        nearest = np.minimum(nearest, square.min(axis=0))
        recalled |= (square < of_a[done : done + len(square), None]).any(axis=0)
        done += len(square)
    balls = np.concatenate(held)
    shares = ((balls > 0).mean(), recalled.mean(), balls.mean() / k, (nearest < of_b).mean())
    return Neighbours(*(float(share) for share in shares))


def _parts(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _squares(x: np.ndarray, y: np.ndarray) -> Iterator[np.ndarray]:
    """Squared distances of some rows of x to all of y, a block at a time."""
    of_y = (y**2).sum(axis=1)
    for part in _parts(x):
        yield np.maximum((part**2).sum(axis=1)[:, None] + of_y - 2 * (part @ y.T), 0)


def _sets(features, reference, *, least: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(values, dtype=np.float64) for values in (features, reference))
    for name, values in (("features", a), ("reference", b)):
        if values.ndim != 2 or len(values) < least or not np.isfinite(values).all() or a.shape[-1] != b.shape[-1]:
            raise ValueError(
                f"{name} of shape {values.shape} must be (n, d) finite numbers, n >= {least}, d the same for both"
            )
    return a, b
